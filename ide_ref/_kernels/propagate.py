"""Sparse cells through a connection, event by event: a weight row for each cell that is not 0.

An event is a cell that is not 0. A list of events has their cell indices, ascending, and their values; channel c at
position p is cell p C + c, so the events of neighbouring positions are neighbours in the list. A *run* of an output
position is a range of input positions it sees through consecutive taps: one range of events, whose weight rows follow
from their cell indices by one constant. ``runs`` (R, Q, 3) holds, for run r of output position q, the first input
position, the one after the last, and what is to be added to an input position for its tap. Runs may join one tap each
or a whole row of a kernel; the sums have the same order, so the same bits.
"""

import numpy as np
from numba import get_num_threads

from ide_ref._kernels._jit import helper, njit
from ide_ref._kernels.memory import LINE
from ide_ref._kernels.vector import add_runs

JOIN = 8  # events per position below which longer runs win: the output is loaded and stored less often
BLOCK = 8  # samples that share a tile of weights while it is near,
BLOCK_ROWS = 512  # or as many as have so many rows of the output: they stay in the second-level cache
CLOSE = 4  # fewer rows than this have no use for weights that stay near
CHUNK = 128  # most channels of a tile
COLUMNS = 64  # of a tile, which in float32 just fills the first-level cache

# Columns of a table of runs, and of a list of them as ``add_runs`` takes it.
FIRST, LAST, ADDED = np.arange(3, dtype=np.uint64)
LO, HI, AT = np.array([0, 1, 3], np.uint64)


def block_of(n_batch, n_positions):
    """Samples of a block, such that every thread has as many blocks. Compiled, it could not be cached.

    At most BLOCK, or as many as have BLOCK_ROWS output positions together.
    """
    n_threads = get_num_threads()
    n_blocks = max(1, -(-n_batch // (max(BLOCK, BLOCK_ROWS // n_positions) * n_threads))) * n_threads
    return max(1, -(-n_batch // n_blocks))


@njit
def chunk_of(c_in):
    """Channels of a tile: the largest divisor of c_in up to CHUNK, unless that is small; then all of them."""
    if c_in > CHUNK:
        for size in range(CHUNK, CHUNK // 4, -1):
            if c_in % size == 0:
                return size
    return c_in


@njit
def locate(events, at, n_events, size, first):
    """first[i] = place of the first event at cell i size or after it, in a list of n_events from events[at] on."""
    e = 0
    for i in range(first.shape[0]):
        while e < n_events and events[at + e] < i * size:
            e += 1
        first[i] = at + e


@njit
def propagate(
    runs, joined, q_first, q_last, first, size, events, values, n_taps, c_in, weights, w_at, c_out, out, places
):  # fmt: skip
    """Add what events bring to the output positions q_first to q_last of out[places[i]:], (Q, C_out), of each sample i.

    Weights lie from w_at on in blocks of COLUMNS outputs, each (K, C_in, its outputs): a tile of one run's taps and
    ``size`` channels of a block lies in one piece, so it fits the first-level cache whatever C_out is, and all
    positions of all samples pass while it is there. first[i] locates sample i's events by ``size`` cells. ``joined``
    tells that runs have several positions; they take all channels at once.
    """
    if places.shape[0] == 0:
        return
    n_chunks = c_in // size
    n_tiles = 1 if joined else n_chunks
    # All runs are listed once where several blocks of outputs read the list; else one after the other, and it is short.
    together = 1 if c_out <= COLUMNS else runs.shape[0]
    listed = np.empty((together * n_tiles * places.shape[0] * (q_last - q_first), 4), np.int32)
    ends = np.empty(together * n_tiles + 1, np.int64)
    line = LINE // weights.itemsize
    for r_first in range(0, runs.shape[0], together):
        ends[0] = 0
        n = np.uint64(0)
        for r in range(together):
            for tile in range(n_tiles):
                n = _list_runs(
                    runs[r_first + r], joined, q_first, q_last, tile, n_chunks, first, places, c_out, listed, n
                )  # fmt: skip
                ends[r * n_tiles + tile + 1] = n
        for j in range(0, c_out, COLUMNS):
            width = min(COLUMNS, c_out - j)
            block = w_at + n_taps * c_in * j
            a_tap = c_in * width
            tile_size = n_taps * a_tap // (runs.shape[0] * n_tiles)
            last = block + n_taps * a_tap - 1
            for i in range(together * n_tiles):
                ahead = min(block + (r_first * n_tiles + i + 1) * tile_size, last)
                add_runs(
                    out, places[0] + j, width, weights, block, a_tap, events, values, listed, ends[i], ends[i + 1],
                    ahead, max(1, min(tile_size, last - ahead) // line),
                )  # fmt: skip


@helper
def _list_runs(seen, joined, q_first, q_last, tile, n_chunks, first, places, c_out, listed, n):
    """The runs of all samples that have events, as ``add_runs`` takes them, from listed[n] on; returns where they end.

    Numbers are unsigned, for that costs half the time: Numba asks of a signed one whether it counts from the end.
    """
    per_position, one = np.uint64(n_chunks), np.uint64(1)
    for i in range(places.shape[0]):
        place_of = first[i]
        at = places[i] - places[0]
        for q in range(np.uint64(q_first), np.uint64(q_last)):
            p, p_end = np.uint64(seen[q, FIRST]), np.uint64(seen[q, LAST])
            if p == p_end:
                continue
            here = p * per_position + np.uint64(tile)
            listed[n, LO] = place_of[here]
            listed[n, HI] = place_of[p_end * per_position if joined else here + one]
            listed[n, ADDED] = seen[q, ADDED]
            listed[n, AT] = at + np.int64(q) * c_out
            n += np.uint64(listed[n, LO] < listed[n, HI])
    return n


@njit
def propagate_depthwise(runs, first, events, values, weights, w_at, n_channels, out, out_at):
    """The same where a channel stays a channel, with one weight per tap and channel and one tap per run."""
    for r in range(runs.shape[0]):
        for q in range(runs.shape[1]):
            p = runs[r, q, 0]
            for e in range(first[p], first[runs[r, q, 1]]):
                cell = np.int64(events[e])
                w = weights[w_at + cell + runs[r, q, 2] * n_channels]
                out[out_at + q * n_channels + cell - p * n_channels] += values[e] * w
