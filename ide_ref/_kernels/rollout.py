"""The time loop of the discrete network, (STEP) for a whole graph in one kernel."""

import numpy as np
from numba import njit, prange

from ide_ref._kernels.events import U, group, propagate, propagate_depthwise

# Columns of the connection table.
SOURCE, C_IN, C_OUT, N_TAPS, N_POSITIONS, TARGETS, WEIGHTS, KEEP, DEPTHWISE = range(9)


@njit(cache=True, nogil=True)
def _propagate(positions, channels, factors, n_groups, row, targets, weights, out):
    """Add what grouped events bring through the connection of one row of the table."""
    at = row[TARGETS]
    n_taps = row[N_TAPS]
    table = targets[at : at + row[N_POSITIONS] * n_taps].reshape(-1, n_taps)
    at = row[WEIGHTS]
    n_rows = n_taps if row[DEPTHWISE] else n_taps * row[C_IN]
    rows = weights[at : at + n_rows * row[C_OUT]].reshape(n_rows, row[C_OUT])
    cells = out.reshape(-1, row[C_OUT])
    if row[DEPTHWISE]:
        propagate_depthwise(positions, channels, factors, n_groups, table, rows, cells)
    else:
        propagate(positions, channels, factors, n_groups, table, rows, cells)


@njit(cache=True, nogil=True, fastmath={"contract"})
def _leak(leak, u, drive, v):
    """v = λ u + F x + b, the part of (STEP) without spikes."""
    for j in range(v.shape[0]):
        v[j] = leak * u[j] + drive[j]


@njit(cache=True, nogil=True)
def _fire(v, v_th, weight, u, a, near, events):
    """s = H(v − V_th), u = v − V_th s, the rates' sums and the neurons' smallest |v − V_th|.

    Writes the indices of the spikes and returns their number.
    """
    n = v.shape[0]
    for j in range(n):
        distance = abs(v[j] - v_th)
        near[j] = distance if distance < near[j] else near[j]
    for j in range(n):
        u[j] = v[j] - v_th if v[j] >= v_th else v[j]
    for j in range(n):
        a[j] = a[j] + weight if v[j] >= v_th else a[j]
    count = U(0)
    for j in range(U(n)):
        # Without a branch: a place is written every time, and kept where there was a spike.
        events[count] = j
        count += U(v[j] >= v_th)
    return count


@njit(cache=True, nogil=True)
def _aligned(n, kind):
    """An array (n,) of kind's dtype that begins at a cache line, so that no vector straddles two."""
    size = kind.itemsize
    buffer = np.empty(n + 64 // size, kind.dtype)
    skip = (-buffer.ctypes.data % 64) // size
    return buffer[skip : skip + n]


@njit(parallel=True, cache=True, nogil=True)
def rollout(
    drive,
    train,
    leak,
    v_th,
    rate_weights,
    starts,
    incoming,
    table,
    targets,
    weights,
    keep,
    u,
    a,
    n_spikes,
    margin,
    spikes,
    potentials,
):
    """(STEP) for t = 0..T-1 over the graph, event by event, and (RATE).

    Parameters
    ----------
    drive : (B, n)  constant part of the drive of every neuron.
    train : (B, T, n_in)  spike-train input; (B, 0, 0) where the input is static.
    leak, v_th : scalars of the array dtype.
    rate_weights : (T,)  what a spike of each step adds to its neuron's rate, (RATE).
    starts : (L + 1,)  offsets of the populations in the state.
    incoming : (L + 1,)  rows incoming[l]:incoming[l + 1] of ``table`` end in population l.
    table : (n_connections, 9)  see the column names above; source -1 is the input.
    targets, weights, keep : flat arrays the table points into; keep is (B, n_to) per connection.
    u, a : (B, n)  overwritten: potential u[T] and average rate a[T].
    n_spikes : (B, L)  overwritten: spikes a population fired in all steps.
    margin : (B,)  overwritten: smallest |v - V_th| met.
    spikes, potentials : (B, T, n) recordings, or (B, 0, 0) for none.

    A population's event list is replaced when it has been updated, so a connection from an earlier
    population reads s[t + 1], and one from the same or a later population s[t]: the rule of (LAYERS).
    """
    n_batch, n = drive.shape
    n_populations = starts.shape[0] - 1
    n_in = train.shape[2]
    record = spikes.shape[1] > 0
    largest = n_in
    for pop in range(n_populations):
        largest = max(largest, starts[pop + 1] - starts[pop])
    for b in prange(n_batch):
        v = _aligned(n, drive)
        scratch = _aligned(n, drive)
        near = _aligned(n, drive)
        near[:] = np.inf
        events = np.empty(n, np.int32)
        ones = np.ones(n, drive.dtype)
        arrived = np.empty(n_in, np.int32)
        arrived_values = np.empty(n_in, drive.dtype)
        positions = np.empty(largest, np.uint32)
        channels = np.empty((largest, 4), np.uint32)
        factors = np.empty((largest, 4), drive.dtype)
        n_events = np.zeros(n_populations, np.int64)
        n_arrived = 0
        u[b, :] = 0
        a[b, :] = 0
        n_spikes[b, :] = 0
        for t in range(rate_weights.shape[0]):
            if n_in > 0:
                n_arrived = 0
                for j in range(n_in):
                    if train[b, t, j] != 0:
                        arrived[n_arrived] = j
                        arrived_values[n_arrived] = train[b, t, j]
                        n_arrived += 1
            for pop in range(n_populations):
                lo = starts[pop]
                hi = starts[pop + 1]
                _leak(leak, u[b, lo:hi], drive[b, lo:hi], v[lo:hi])
                for i in range(incoming[pop], incoming[pop + 1]):
                    row = table[i]
                    source = row[SOURCE]
                    masked = row[KEEP] >= 0
                    out = scratch[lo:hi] if masked else v[lo:hi]
                    if masked:
                        out[:] = 0
                    if source < 0:
                        n_groups = group(
                            arrived, arrived_values, n_arrived, row[C_IN], positions, channels, factors
                        )
                    else:
                        sent = events[starts[source] : starts[source + 1]]
                        n_groups = group(sent, ones, n_events[source], row[C_IN], positions, channels, factors)
                    _propagate(positions, channels, factors, n_groups, row, targets, weights, out)
                    if masked:
                        offset = row[KEEP] + b * (hi - lo)
                        for j in range(hi - lo):
                            v[lo + j] += keep[offset + j] * out[j]
                n_events[pop] = _fire(
                    v[lo:hi], v_th, rate_weights[t], u[b, lo:hi], a[b, lo:hi], near[lo:hi], events[lo:hi]
                )
                if record:
                    for e in range(n_events[pop]):
                        spikes[b, t, lo + events[lo + e]] = 1
                if record:
                    potentials[b, t, lo:hi] = u[b, lo:hi]
                n_spikes[b, pop] += n_events[pop]
        margin[b] = near.min()
