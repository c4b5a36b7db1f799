"""Sparse cells through a connection, event by event: a weight row for each cell that is not 0.

An event is a cell of channel c at position p with a value. Events are handled in groups of four of one position; a
group that is not full is filled up with channel 0 and value 0, so that nothing branches on its size.
"""

import numpy as np
from numba import njit

U = np.uint64  # an unsigned index needs no look at its sign


@njit(cache=True, nogil=True)
def group(events, values, n_events, c_in, positions, channels, factors):
    """Groups of a list of cell indices, ascending; returns their number.

    Group g lies at positions[g], with the channels channels[g, :] and the values factors[g, :].
    """
    n_groups = 0
    filled = 4
    position = -1
    for e in range(n_events):
        p = events[e] // c_in
        if p != position or filled == 4:
            position = p
            positions[n_groups] = p
            channels[n_groups] = 0
            factors[n_groups] = 0
            n_groups += 1
            filled = 0
        channels[n_groups - 1, filled] = events[e] - p * c_in
        factors[n_groups - 1, filled] = values[e]
        filled += 1
    return n_groups


@njit(cache=True, nogil=True)
def group_cells(cells, positions, channels, factors):
    """Groups of the cells (P, C) that are not 0; channels and factors have room for P ceil(C/4) of them."""
    flat_channels = channels.reshape(-1)
    flat_factors = factors.reshape(-1)
    n_groups = 0
    for p in range(cells.shape[0]):
        x = cells[p]
        first = 4 * n_groups
        n = U(first)
        for c in range(U(cells.shape[1])):
            # Without a branch: a place is written every time, and kept where there was an event.
            flat_channels[n] = c
            flat_factors[n] = x[c]
            n += U(x[c] != 0)
        last = (int(n) + 3) // 4 * 4
        flat_channels[n:last] = 0
        flat_factors[n:last] = 0
        while 4 * n_groups < last:
            positions[n_groups] = p
            n_groups += 1
    return n_groups


@njit(cache=True, nogil=True, fastmath={"contract"})
def propagate(positions, channels, factors, n_groups, targets, rows, out):
    """Add what events bring along the taps to out (Q, C_out).

    Channel c at position p reaches position targets[p, k] through tap k, -1 for none, with the weight row W[k, c, :] =
    rows[k C_in + c]. The tap is the outer loop: its weights stay in the nearest cache while all positions pass.
    """
    n_taps = targets.shape[1]
    c_in = U(rows.shape[0] // n_taps)
    c_out = rows.shape[1]
    for k in range(U(n_taps)):
        first = k * c_in
        for g in range(U(n_groups)):
            q = targets[positions[g], k]
            if q < 0:
                continue
            o = out[U(q)]
            c = channels[g]
            v = factors[g]
            v0, v1, v2, v3 = v[0], v[1], v[2], v[3]
            w0 = rows[first + c[0]]
            w1 = rows[first + c[1]]
            w2 = rows[first + c[2]]
            w3 = rows[first + c[3]]
            for j in range(c_out):
                o[j] = o[j] + v0 * w0[j] + v1 * w1[j] + v2 * w2[j] + v3 * w3[j]


@njit(cache=True, nogil=True)
def propagate_depthwise(positions, channels, factors, n_groups, targets, rows, out):
    """The same where a channel stays a channel: one weight W[k, c] = rows[k, c]."""
    for k in range(targets.shape[1]):
        for g in range(n_groups):
            q = targets[positions[g], k]
            if q >= 0:
                for i in range(4):
                    c = channels[g, i]
                    out[q, c] += factors[g, i] * rows[k, c]
