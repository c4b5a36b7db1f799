"""The time loop of the discrete network, (STEP) for a whole graph in one kernel."""

import numpy as np
from numba import njit, prange

# Columns of the connection table.
SOURCE, C_IN, C_OUT, N_TAPS, TARGETS, WEIGHTS, KEEP, DEPTHWISE = range(8)


@njit(cache=True, nogil=True, fastmath={"contract"})
def _propagate(events, values, n_events, row, targets, weights, segments, out):
    """Add what events bring through one connection to out, the drive of the receiving population.

    ``events`` are cell indices in ascending order, so those of one position lie side by side. A cell of
    channel c at position p reaches position targets[p, k] through tap k with the weight row W[k, c, :]; a
    depthwise connection has the one weight W[k, c] and keeps the channel. The tap is the outer loop: its
    weights stay in the nearest cache while all positions pass. Four rows are added at a time.
    """
    c_in = row[C_IN]
    c_out = row[C_OUT]
    n_taps = row[N_TAPS]
    n_segments = 0
    position = -1
    for e in range(n_events):
        p = events[e] // c_in
        if p != position:
            position = p
            segments[n_segments] = e
            n_segments += 1
    segments[n_segments] = n_events
    for k in range(n_taps):
        table = row[TARGETS] + k
        w = row[WEIGHTS] + k * (c_out if row[DEPTHWISE] else c_in * c_out)
        for i in range(n_segments):
            first = segments[i]
            last = segments[i + 1]
            p = events[first] // c_in
            q = targets[table + p * n_taps]
            if q < 0:
                continue
            o = out[q * c_out : (q + 1) * c_out]
            if row[DEPTHWISE]:
                for e in range(first, last):
                    c = events[e] - p * c_in
                    o[c] += values[e] * weights[w + c]
                continue
            base = w - p * c_in * c_out
            fours = last - (last - first) % 4
            for e in range(first, fours, 4):
                v0 = values[e]
                v1 = values[e + 1]
                v2 = values[e + 2]
                v3 = values[e + 3]
                at = base + events[e] * c_out
                w0 = weights[at : at + c_out]
                at = base + events[e + 1] * c_out
                w1 = weights[at : at + c_out]
                at = base + events[e + 2] * c_out
                w2 = weights[at : at + c_out]
                at = base + events[e + 3] * c_out
                w3 = weights[at : at + c_out]
                for j in range(c_out):
                    o[j] = o[j] + v0 * w0[j] + v1 * w1[j] + v2 * w2[j] + v3 * w3[j]
            for e in range(fours, last):
                v0 = values[e]
                at = base + events[e] * c_out
                w0 = weights[at : at + c_out]
                for j in range(c_out):
                    o[j] = o[j] + v0 * w0[j]


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
        events = np.empty(n, np.int64)
        ones = np.ones(n, drive.dtype)
        arrived = np.empty(n_in, np.int64)
        arrived_values = np.empty(n_in, drive.dtype)
        segments = np.empty(max(n, n_in) + 1, np.int64)
        n_events = np.zeros(n_populations, np.int64)
        n_arrived = 0
        closest = np.inf
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
                for j in range(lo, hi):
                    v[j] = leak * u[b, j] + drive[b, j]
                for i in range(incoming[pop], incoming[pop + 1]):
                    row = table[i]
                    source = row[SOURCE]
                    masked = row[KEEP] >= 0
                    out = scratch[lo:hi] if masked else v[lo:hi]
                    if masked:
                        out[:] = 0
                    if source < 0:
                        _propagate(arrived, arrived_values, n_arrived, row, targets, weights, segments, out)
                    else:
                        sent = events[starts[source] : starts[source + 1]]
                        _propagate(sent, ones, n_events[source], row, targets, weights, segments, out)
                    if masked:
                        offset = row[KEEP] + b * (hi - lo)
                        for j in range(hi - lo):
                            v[lo + j] += keep[offset + j] * out[j]
                for j in range(lo, hi):
                    closest = min(closest, abs(v[j] - v_th))
                    u[b, j] = v[j] - v_th if v[j] >= v_th else v[j]
                count = 0
                for j in range(lo, hi):
                    if v[j] >= v_th:
                        a[b, j] += rate_weights[t]
                        events[lo + count] = j - lo
                        count += 1
                        if record:
                            spikes[b, t, j] = 1
                if record:
                    potentials[b, t, lo:hi] = u[b, lo:hi]
                n_events[pop] = count
                n_spikes[b, pop] += count
        margin[b] = closest
