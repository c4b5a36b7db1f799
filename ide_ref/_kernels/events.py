"""Sparse cells through a connection, event by event: a weight row for each cell that is not 0.

An event is a cell that is not 0. A list of events has their cell indices, ascending, and their values; channel c at
position p is cell p C + c, so the events of neighbouring positions are neighbours in the list. A *run* of an output
position is a range of input positions it sees through consecutive taps: one range of events, whose weight rows follow
from their cell indices by one constant. ``runs`` (R, Q, 3) holds, for run r of output position q, the first input
position, the one after the last, and what is to be added to an input position for its tap. Runs may join one tap each
or a whole row of a kernel; the sums have the same order, so the same bits.
"""

import numpy as np
from numba import njit

from ide_ref._kernels.rows import add_rows

JOIN = 8
BLOCK = 4


@njit(cache=True, nogil=True)
def locate(events, at, n_events, c_in, first):
    """first[p] = place of the first event at position p or after it, in a list of n_events from events[at] on."""
    e = 0
    for p in range(first.shape[0]):
        while e < n_events and events[at + e] < p * c_in:
            e += 1
        first[p] = at + e


@njit(cache=True, nogil=True)
def propagate(runs, r, q_first, q_last, first, events, values, c_in, weights, w_at, c_out, out, out_at):
    """Add what events bring along run r of the output positions q_first to q_last to out[out_at:], (Q, C_out).

    The weight row of tap k and channel c begins at weights[w_at + (k C_in + c) C_out].
    """
    for q in range(q_first, q_last):
        lo = first[runs[r, q, 0]]
        hi = first[runs[r, q, 1]]
        if lo < hi:
            row = w_at + runs[r, q, 2] * c_in * c_out
            add_rows(out, out_at + q * c_out, c_out, weights, row, c_out, events, values, lo, hi)


@njit(cache=True, nogil=True)
def propagate_depthwise(runs, first, events, values, weights, w_at, n_channels, out, out_at):
    """The same where a channel stays a channel, with one weight a tap and channel and one tap a run."""
    for r in range(runs.shape[0]):
        for q in range(runs.shape[1]):
            p = runs[r, q, 0]
            for e in range(first[p], first[runs[r, q, 1]]):
                cell = np.int64(events[e])
                w = weights[w_at + cell + runs[r, q, 2] * n_channels]
                out[out_at + q * n_channels + cell - p * n_channels] += values[e] * w
