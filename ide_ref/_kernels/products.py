"""Products along the taps of a connection: apply, adjoint and Hebbian of every convolution.

A population of P positions with C channels is (B, P, C), and a part of a state: one flat array in which sample b begins
at b · row, see ``memory.rows``. What each output position sees is told by runs, see ``layout.Runs``; exchanging what
sends and what receives (and the axes of the weights) transposes the map.
"""

import numpy as np
from numba import prange

from ide_ref._kernels._jit import helper, njit
from ide_ref._kernels.propagate import COLUMNS, JOIN, chunk_of, locate, propagate
from ide_ref._kernels.vector import add_rows_through, nonzero

SHARES = 4  # of one sample's output positions
CHANNELS = 64  # rows of a weight tile, which stays in the first-level cache beside most of a sample's rows


@helper
def _list_events(x, x_at, n, events, values, at):
    """Events of x[x_at:][:n] into events[at:] and values[at:]; returns their number."""
    n_events = nonzero(x, x_at, n, events, at)
    for e in range(at, at + n_events):
        values[e] = x[x_at + events[e]]
    return n_events


@njit(parallel=True)
def apply(x, row, n_batch, n_positions, c_in, weights, fine, coarse, share, out, out_row, c_out, add):
    """The map of a batch: x (B, P, C_in) to out (B, Q, C_out), weights as ``propagate`` has them.

    Numbers that are 0 are passed over: Mβ and rates are sparse, (ACTIVE). ``fine`` and ``coarse`` say the same with
    short runs and with long ones. A task takes ``share`` samples, see ``block_of``. Overwrites out, or adds to it.
    """
    n_out = fine.shape[1]
    n = n_positions * c_in
    n_taps = fine.shape[0]
    chunk = chunk_of(c_in)
    for block in prange((n_batch + share - 1) // share):
        b_first = block * share
        size = min(share, n_batch - b_first)
        events = np.empty(size * n, np.uint32)
        values = np.empty(size * n, x.dtype)
        places = np.empty(size, np.int64)
        first = np.empty((size, n_positions * (c_in // chunk) + 1), np.int32)
        total = 0
        for i in range(size):
            n_events = _list_events(x, (b_first + i) * row, n, events, values, i * n)
            locate(events, i * n, n_events, chunk, first[i])
            places[i] = (b_first + i) * out_row
            if not add:
                out[places[i] : places[i] + n_out * c_out] = 0
            total += n_events
        runs = coarse if total < JOIN * n_positions * size else fine
        joined = runs.shape[0] < fine.shape[0]
        propagate(
            runs, joined, 0, n_out, first, chunk, events, values, n_taps, c_in, weights, 0, c_out, out, places
        )  # fmt: skip


@njit(parallel=True)
def apply_one(x, n_positions, c_in, weights, fine, coarse, n_parts, out, c_out, add):
    """The same for one sample, its output positions in n_parts shares."""
    n_out = fine.shape[1]
    n = n_positions * c_in
    n_taps = fine.shape[0]
    events = np.empty(n, np.uint32)
    values = np.empty(n, x.dtype)
    chunk = chunk_of(c_in)
    first = np.empty((1, n_positions * (c_in // chunk) + 1), np.int32)
    n_events = _list_events(x, 0, n, events, values, 0)
    locate(events, 0, n_events, chunk, first[0])
    runs = coarse if n_events < JOIN * n_positions else fine
    joined = runs.shape[0] < fine.shape[0]
    places = np.zeros(1, np.int64)
    if not add:
        out[: n_out * c_out] = 0
    for part in prange(n_parts):
        lo = part * n_out // n_parts
        hi = (part + 1) * n_out // n_parts
        propagate(
            runs, joined, lo, hi, first, chunk, events, values, n_taps, c_in, weights, 0, c_out, out, places
        )  # fmt: skip


@helper
def _list_by_channel(x, at, n_channels, part_of, events, starts, following, index, values):
    """Events of x (P, C) from x[at] on by part of the positions, then channel, then position.

    List i = part C + channel gets index[starts[i]:starts[i + 1]] and values, where starts[0] is given.
    """
    n_events = nonzero(x, at, part_of.shape[0] * n_channels, events, 0)
    starts[1:] = 0
    for again in range(2):
        p = 0
        for e in range(n_events):
            cell = np.int64(events[e])
            while cell >= (p + 1) * n_channels:
                p += 1
            i = part_of[p] * n_channels + cell - p * n_channels
            if again == 0:
                starts[i + 1] += 1
            else:
                index[following[i]] = p
                values[following[i]] = x[at + cell]
                following[i] += 1
        if again == 0:
            for i in range(starts.shape[0] - 1):
                following[i] = starts[i]
                starts[i + 1] += starts[i]


def shape_of_rows(n_batch, n_others, depth):
    """Shape of the memory that ``hebbian`` lays the other side out in.

    In blocks of columns, like weights, so that a sample's rows lie in one piece and fit the first-level cache; a row of
    zeros behind them stands for no position.
    """
    columns = min(COLUMNS, depth)
    return -(-depth // columns), n_batch, n_others + 1, columns


@njit(parallel=True)
def hebbian(x, row, others, others_row, n_batch, table, part_of, part_of_tap, rows, out):
    """out[k, c, :] = Σ over samples and positions p of x[b, p, c] others[b, table[k, p], :].

    Parameters
    ----------
    x : (B, P, C)  the sparser side, taken event by event.
    others : (B, Q, D)
    row, others_row : from a sample of either to the next
    table : (K, P) unsigned  position on the other side that tap k joins with p; Q for none.
    rows : (⌈D / columns⌉, B, Q + 1, columns)  overwritten, see ``shape_of_rows``.
    part_of, part_of_tap : (P,), (K,)  tap k joins positions p with part_of[p] = part_of_tap[k] alone.
    out : (K, C, D)  overwritten.

    A tile of out is summed by one task over all samples in their order: the same bits from any number of threads.
    """
    n_taps, n_positions = table.shape
    n_channels, depth = out.shape[1:]
    n_cells = n_positions * n_channels
    n_lists = (max(part_of.max(), part_of_tap.max()) + 1) * n_channels
    n_columns, columns = rows.shape[0], rows.shape[3]
    n_others = rows.shape[2] - 1
    starts = np.empty((n_batch, n_lists + 1), np.int64)
    for b in prange(n_batch):
        for j in range(n_columns):
            width = min(columns, depth - j * columns)
            for q in range(n_others):
                at = b * others_row + q * depth + j * columns
                rows[j, b, q, :width] = others[at : at + width]
                rows[j, b, q, width:] = 0
            rows[j, b, n_others] = 0
        starts[b, n_lists] = np.count_nonzero(x[b * row : b * row + n_cells])
    total = 0
    for b in range(n_batch):
        starts[b, 0] = total
        total += starts[b, n_lists]
    index = np.empty(total, np.uint32)
    values = np.empty(total, x.dtype)
    for b in prange(n_batch):
        events = np.empty(n_cells, np.uint32)
        following = np.empty(n_lists, np.int64)
        _list_by_channel(x, b * row, n_channels, part_of, events, starts[b], following, index, values)

    n_rows = (n_channels + CHANNELS - 1) // CHANNELS
    for task in prange(n_taps * n_rows * n_columns):
        k = task // (n_rows * n_columns)
        c_first = task // n_columns % n_rows * CHANNELS
        c_last = min(c_first + CHANNELS, n_channels)
        j = task % n_columns
        width = min(columns, depth - j * columns)
        part = part_of_tap[k] * n_channels
        tile = np.zeros((c_last - c_first, columns), out.dtype)
        for b in range(n_batch):
            first = (j * n_batch + b) * (n_others + 1) * columns
            for c in range(c_first, c_last):
                add_rows_through(
                    tile, (c - c_first) * columns, width, rows, first, columns, index, values,
                    starts[b, part + c], starts[b, part + c + 1], table, k * n_positions,
                )  # fmt: skip
        out[k, c_first:c_last, j * columns : j * columns + width] = tile[:, :width]


@njit(parallel=True)
def depthwise(x, factors, runs, out):
    """out[b, q, c] = Σ over taps k of factors[k, c] x[b, p, c], p what q sees through tap k. Overwrites out."""
    for b in prange(x.shape[0]):
        out[b] = 0
        for k in range(runs.shape[0]):
            for q in range(runs.shape[1]):
                if runs[k, q, 0] < runs[k, q, 1]:
                    sent = x[b, runs[k, q, 0]]
                    o = out[b, q]
                    for c in range(factors.shape[1]):
                        o[c] += factors[k, c] * sent[c]
