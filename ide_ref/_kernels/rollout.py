"""The time loop of the discrete network, (STEP) for a whole graph in one kernel."""

import numpy as np
from numba import njit, prange

# Columns of the connection table.
SOURCE, C_IN, C_OUT, N_TAPS, TARGETS, WEIGHTS, KEEP, DEPTHWISE = range(8)


@njit(cache=True, nogil=True)
def _propagate(index, value, row, targets, weights, out):
    """Add the contribution of one event to out, the drive of the receiving population.

    A cell of channel c at position p reaches position targets[p, k] through tap k with the weight row
    W[k, c, :]; a depthwise connection has the one weight W[k, c] and keeps the channel.
    """
    c_in = row[C_IN]
    c_out = row[C_OUT]
    n_taps = row[N_TAPS]
    p = index // c_in
    c = index - p * c_in
    for k in range(n_taps):
        q = targets[row[TARGETS] + p * n_taps + k]
        if q < 0:
            continue
        if row[DEPTHWISE]:
            out[q * c_out + c] += value * weights[row[WEIGHTS] + k * c_out + c]
        else:
            start = row[WEIGHTS] + (k * c_in + c) * c_out
            w = weights[start : start + c_out]
            o = out[q * c_out : (q + 1) * c_out]
            for j in range(c_out):
                o[j] += value * w[j]


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
    table : (n_connections, 8)  see the column names above; source -1 is the input.
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
    for b in prange(n_batch):
        v = np.empty(n, drive.dtype)
        scratch = np.empty(n, drive.dtype)
        events = np.empty(n, np.int32)
        n_events = np.zeros(n_populations, np.int64)
        one = v_th / v_th
        closest = np.inf
        u[b, :] = 0
        a[b, :] = 0
        n_spikes[b, :] = 0
        for t in range(rate_weights.shape[0]):
            for pop in range(n_populations):
                lo = starts[pop]
                hi = starts[pop + 1]
                for j in range(lo, hi):
                    v[j] = leak * u[b, j] + drive[b, j]
                for i in range(incoming[pop], incoming[pop + 1]):
                    row = table[i]
                    source = row[SOURCE]
                    masked = row[KEEP] >= 0
                    if masked:
                        out = scratch[lo:hi]
                        out[:] = 0
                    else:
                        out = v[lo:hi]
                    if source < 0:
                        for j in range(n_in):
                            if train[b, t, j] != 0:
                                _propagate(j, train[b, t, j], row, targets, weights, out)
                    else:
                        first = starts[source]
                        for e in range(n_events[source]):
                            _propagate(np.int64(events[first + e]), one, row, targets, weights, out)
                    if masked:
                        offset = row[KEEP] + b * (hi - lo)
                        for j in range(hi - lo):
                            v[lo + j] += keep[offset + j] * out[j]
                count = 0
                for j in range(lo, hi):
                    closest = min(closest, abs(v[j] - v_th))
                    if v[j] >= v_th:
                        u[b, j] = v[j] - v_th
                        a[b, j] += rate_weights[t]
                        events[lo + count] = j - lo
                        count += 1
                        if record:
                            spikes[b, t, j] = 1
                    else:
                        u[b, j] = v[j]
                    if record:
                        potentials[b, t, j] = u[b, j]
                n_events[pop] = count
                n_spikes[b, pop] += count
        margin[b] = closest
