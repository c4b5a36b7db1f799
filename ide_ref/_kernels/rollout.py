"""The time loop of the discrete network, (STEP) for a whole graph in one kernel."""

import numpy as np
from numba import njit, prange

from ide_ref._kernels.events import CLOSE, JOIN, chunk_of, locate, propagate, propagate_depthwise
from ide_ref._kernels.rows import fire, nonzero

# Columns of the connection table.
SOURCE, C_IN, C_OUT, N_IN, N_OUT, FINE, N_FINE, COARSE, N_COARSE, WEIGHTS, KEEP, DEPTHWISE, N_COLUMNS = range(13)
CHANGES, EVENTS = range(2)


@njit(cache=True, nogil=True)
def _propagate(first, size, n_events, events, values, row, runs, weights, out, places):
    """Add what a block's events bring through the connection of one row of the table, to out[places[i]:] each."""
    n_samples = places.shape[0]
    total = 0
    for i in range(n_samples):
        total += n_events[i]
    coarse = total < JOIN * row[N_IN] * n_samples and not row[DEPTHWISE]
    at = row[COARSE] if coarse else row[FINE]
    n_runs = row[N_COARSE] if coarse else row[N_FINE]
    table = runs[at : at + 3 * n_runs * row[N_OUT]].reshape(n_runs, row[N_OUT], 3)
    if row[DEPTHWISE]:
        for i in range(n_samples):
            propagate_depthwise(table, first[i], events, values, weights, row[WEIGHTS], row[C_OUT], out, places[i])
    else:
        joined = coarse and n_runs < row[N_FINE]
        propagate(
            table, joined, 0, row[N_OUT], first, size, events, values, row[N_FINE], row[C_IN], weights, row[WEIGHTS],
            row[C_OUT], out, places,
        )  # fmt: skip


@njit(cache=True, nogil=True, fastmath={"contract"})
def _leak(leak, drive, u):
    """λ u + F x + b, the part of (STEP) without spikes, in place."""
    for j in range(u.shape[0]):
        u[j] = leak * u[j] + drive[j]


@njit(cache=True, nogil=True, fastmath={"contract"})
def _add(arrived, masked, keep, u):
    """What has arrived, or what dropout lets through of it."""
    for j in range(u.shape[0]):
        u[j] = u[j] + (keep[j] * arrived[j] if masked else arrived[j])


@njit(cache=True, nogil=True)
def _revise(a, at, n, few, many, expected, changes, values, first):
    """Expects a neuron to fire from now on if its rate's sum is above ``many``, and not to if it is below ``few``.

    Lists the neurons of which that is new from place ``first`` on, with value new − old; returns their number.
    """
    count = 0
    for i in range(n):
        rate, old = a[at + i], expected[first + i]
        s = 1 if rate > many else 0 if rate < few else old
        if s != old:
            changes[first + count] = i
            values[first + count] = 1 if s else -1
            expected[first + i] = s
            count += 1
    return count


@njit(parallel=True, cache=True, nogil=True)
def rollout(
    drive,
    train,
    leak,
    v_th,
    rate_weights,
    bounds,
    starts,
    incoming,
    table,
    runs,
    weights,
    keep,
    u,
    a,
    n_spikes,
    n_events,
    margin,
    spikes,
    potentials,
    share,
):
    """(STEP) for t = 0..T-1 over the graph, event by event, and (RATE).

    A spiking neuron is expected to fire at every step or at none. What it is expected to do is part of its targets'
    drive; an event, of value 1 or -1, says that it did otherwise. So a neuron that fires at most steps costs what one
    that fires at few does. At first no neuron is expected to fire; before the steps that ``bounds`` names each is
    expected to go on as it did so far, where that was clear enough.

    Parameters
    ----------
    drive : (B, n)  constant part of the drive of every neuron.
    train : (B, T, n_in)  spike-train input; (B, 0, 0) where the input is static.
    leak, v_th : scalars of the array dtype.
    rate_weights : (T,)  what a spike of each step adds to its neuron's rate, (RATE).
    bounds : (T, 2)  before which steps expectations are revised: the rate so far below which a neuron is expected not
        to fire from then on, and that above which it is. NaN for the other steps.
    starts : (L + 1,)  offsets of the populations in the state.
    incoming : (L + 1,)  rows incoming[l]:incoming[l + 1] of ``table`` end in population l.
    table : (n_connections, N_COLUMNS)  see the column names above; source -1 is the input.
    runs, weights, keep : flat arrays the table points into; keep is (B, n_to) per connection.
    u, a : (B, n)  overwritten: potential u[T] and average rate a[T].
    n_spikes, n_events : (B, L)  overwritten: spikes a population fired in all steps, and events it sent.
    margin : (B,)  overwritten: smallest |v - V_th| met.
    spikes, potentials : (B, T, n) recordings, or (B, 0, 0) for none.
    share : samples of a block, see ``block_of``.

    A population's event list is replaced when it has been updated, so a connection from an earlier
    population reads s[t + 1], and one from the same or a later population s[t]: the rule of (LAYERS).
    Samples go in blocks that share the weights in the caches; a sample's sums do not depend on its block.
    """
    n_batch, n = drive.shape
    n_steps = rate_weights.shape[0]
    n_populations = starts.shape[0] - 1
    n_in = train.shape[2]
    record = spikes.shape[1] > 0
    largest = 0
    for pop in range(n_populations):
        largest = max(largest, starts[pop + 1] - starts[pop])
    n_located = 1
    for i in range(table.shape[0]):
        n_located = max(n_located, table[i, N_IN] * (table[i, C_IN] // chunk_of(table[i, C_IN])))
    for block in prange((n_batch + share - 1) // share):
        b_first = block * share
        size = min(share, n_batch - b_first)
        scratch = np.empty((size, largest), drive.dtype)
        places = np.empty(size, np.int64)
        first = np.empty((size, n_located + 1), np.int32)
        expected = np.zeros((size, n), np.uint8)
        constant = np.empty((size, n), drive.dtype)  # the drive with what the expected spikes bring
        # Changes of what is expected, for the constant part, and events, for the potential: rows of n each.
        events = np.empty((2, size, n), np.uint32)
        values = np.empty((2, size, n), drive.dtype)
        n_sent = np.zeros((2, n_populations, size), np.int64)
        arrived = np.empty((size, n_in), np.uint32)
        arrived_values = np.empty((size, n_in), drive.dtype)
        n_arrived = np.zeros(size, np.int64)
        so_far = drive.dtype.type(0)  # what the rate's sum of a neuron is that fired at every step
        for i in range(size):
            b = b_first + i
            constant[i] = drive[b]
            u[b] = drive[b]
            a[b, :] = 0
            n_spikes[b, :] = 0
            n_events[b, :] = 0
            margin[b] = np.inf
        for t in range(n_steps):
            goes_on = t + 1 < n_steps
            if n_in > 0:
                for i in range(size):
                    x = train[b_first + i, t]
                    n_arrived[i] = nonzero(x, 0, n_in, arrived, i * n_in)
                    for e in range(n_arrived[i]):
                        arrived_values[i, e] = x[arrived[i, e]]
            for pop in range(n_populations):
                lo = starts[pop]
                hi = starts[pop + 1]
                for kind in range(2):
                    for c in range(incoming[pop], incoming[pop + 1]):
                        row = table[c]
                        source = row[SOURCE]
                        if source < 0 and kind == CHANGES:
                            continue
                        # The input's events lie in rows of n_in, the populations' in rows of n.
                        sent = events[kind].reshape(-1) if source >= 0 else arrived.reshape(-1)
                        sent_values = values[kind].reshape(-1) if source >= 0 else arrived_values.reshape(-1)
                        n_here = n_sent[kind, source] if source >= 0 else n_arrived
                        if not n_here.any():
                            continue
                        masked = row[KEEP] >= 0
                        # What dropout lets through is added by itself, and so is what is added twice.
                        apart = masked or kind == CHANGES
                        # Depthwise, channels stay apart.
                        few = row[N_IN] * size < CLOSE
                        chunk = row[C_IN] if row[DEPTHWISE] or few else chunk_of(row[C_IN])
                        n_first = row[N_IN] * (row[C_IN] // chunk) + 1
                        for i in range(size):
                            if apart:
                                scratch[i, : hi - lo] = 0
                            places[i] = i * largest if apart else (b_first + i) * n + lo
                            at = i * n + starts[source] if source >= 0 else i * n_in
                            locate(sent, at, n_here[i], chunk, first[i, :n_first])
                        out = scratch.reshape(-1) if apart else u.reshape(-1)
                        _propagate(first, chunk, n_here, sent, sent_values, row, runs, weights, out, places)
                        if apart:
                            for i in range(size):
                                at = row[KEEP] + (b_first + i) * (hi - lo) if masked else 0
                                kept = keep[at : at + hi - lo]
                                _add(scratch[i, : hi - lo], masked, kept, u[b_first + i, lo:hi])
                                if kind == CHANGES:
                                    _add(scratch[i, : hi - lo], masked, kept, constant[i, lo:hi])
                for i in range(size):
                    b = b_first + i
                    n_sent[CHANGES, pop, i] = 0
                    if not np.isnan(bounds[t, 0]):
                        n_sent[CHANGES, pop, i] = _revise(
                            a.reshape(-1), b * n + lo, hi - lo, bounds[t, 0] * so_far, bounds[t, 1] * so_far,
                            expected.reshape(-1), events[CHANGES].reshape(-1), values[CHANGES].reshape(-1), i * n + lo,
                        )  # fmt: skip
                    n_sent[EVENTS, pop, i], fired, near = fire(
                        u, a, b * n + lo, hi - lo, v_th, rate_weights[t], expected, events[EVENTS], values[EVENTS],
                        i * n + lo, goes_on and not record, leak, constant,
                    )  # fmt: skip
                    margin[b] = min(margin[b], near)
                    n_spikes[b, pop] += fired
                    n_events[b, pop] += n_sent[CHANGES, pop, i] + n_sent[EVENTS, pop, i]
                    if record:
                        spikes[b, t, lo:hi] = expected[i, lo:hi]
                        for e in range(n_sent[EVENTS, pop, i]):
                            spikes[b, t, lo + events[EVENTS, i, lo + e]] ^= 1
                        potentials[b, t, lo:hi] = u[b, lo:hi]
                        if goes_on:
                            _leak(leak, constant[i, lo:hi], u[b, lo:hi])
            so_far += rate_weights[t]
