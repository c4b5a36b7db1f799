"""The time loop of the discrete network, (STEP) for a whole graph in one kernel.

Spikes are sent by delta coding. A neuron is predicted to fire at every step or at none, and what it is predicted to do
is part of its targets' constant drive; an event, of value 1 or −1, says that it did otherwise. So a neuron that fires
at most steps costs what one that fires at few does. At first no neuron is predicted to fire; before the steps that
``prediction_bounds`` names, each is predicted to go on as it did so far, where that was clear enough.
"""

from collections import namedtuple

import numpy as np
from numba import prange

from ide_ref._kernels._jit import helper, njit
from ide_ref._kernels.layout import (
    C_IN,
    C_OUT,
    COARSE,
    DEPTHWISE,
    FINE,
    KEEP,
    N_COARSE,
    N_FINE,
    N_IN,
    N_OUT,
    SOURCE,
    WEIGHTS,
    Plan,
)
from ide_ref._kernels.propagate import CLOSE, JOIN, chunk_of, locate, propagate, propagate_depthwise
from ide_ref._kernels.vector import fire, nonzero

CHANGES, EVENTS = range(2)  # what is sent: a prediction's change, for the constant drive too, and what differs from it

Sent = namedtuple("Sent", "predicted constant events values count")
"""Delta coding of a block of samples, whose rows of n + n_in hold the neurons and then the input.

predicted : (samples, n + n_in) uint8  whether a neuron is predicted to fire at every step from now on.
constant : (samples, n + n_in)  drive with what the predicted spikes bring.
events, values : (2, samples, n + n_in)  lists of CHANGES and of EVENTS, those of a population from its first neuron on.
count : (2, L + 1, samples)  how long they are; the last population is the input, which is not predicted.
"""


@helper
def _propagate(first, size, n_events, events, values, row, plan, out, places):
    """Add what a block's events bring through the connection of one row of the table, to out[places[i]:] each."""
    n_samples = places.shape[0]
    coarse = n_events.sum() < JOIN * row[N_IN] * n_samples and not row[DEPTHWISE]
    at = row[COARSE] if coarse else row[FINE]
    n_runs = row[N_COARSE] if coarse else row[N_FINE]
    table = plan.runs[at : at + 3 * n_runs * row[N_OUT]].reshape(n_runs, row[N_OUT], 3)
    if row[DEPTHWISE]:
        for i in range(n_samples):
            propagate_depthwise(table, first[i], events, values, plan.weights, row[WEIGHTS], row[C_OUT], out, places[i])
    else:
        joined = coarse and n_runs < row[N_FINE]
        propagate(
            table, joined, 0, row[N_OUT], first, size, events, values, row[N_FINE], row[C_IN], plan.weights,
            row[WEIGHTS], row[C_OUT], out, places,
        )  # fmt: skip


@helper(fastmath={"contract"})
def _leak(leak, drive, u):
    """λ u + F x + b, the part of (STEP) without spikes, in place."""
    for j in range(u.shape[0]):
        u[j] = leak * u[j] + drive[j]


@helper(fastmath={"contract"})
def _add(arrived, masked, keep, u):
    """What has arrived, or what dropout lets through of it."""
    for j in range(u.shape[0]):
        u[j] = u[j] + (keep[j] * arrived[j] if masked else arrived[j])


@helper
def _send_input(inputs, t, sent):
    """The input of step t, of (samples, T, n_in), as events."""
    n_samples, _, n_in = inputs.shape
    row = sent.constant.shape[1]
    for i in range(n_samples):
        count = nonzero(inputs[i, t], 0, n_in, sent.events[EVENTS], (i + 1) * row - n_in)
        sent.count[EVENTS, -1, i] = count
        for e in range(row - n_in, row - n_in + count):
            sent.values[EVENTS, i, e] = inputs[i, t, sent.events[EVENTS, i, e]]


@helper
def _receive(kind, pop, block, starts, plan, sent, scratch, first, u):
    """Add what was sent to a population to its potentials, and changes of predictions to its constant drive as well."""
    lo, hi = starts[pop], starts[pop + 1]
    n_samples, n = u.shape
    events, values = sent.events[kind].reshape(-1), sent.values[kind].reshape(-1)
    places = np.empty(n_samples, np.int64)
    for c in range(plan.incoming[pop], plan.incoming[pop + 1]):
        row = plan.table[c]
        n_events = sent.count[kind, row[SOURCE]]
        if not n_events.any():
            continue
        masked = row[KEEP] >= 0
        # What dropout lets through is added by itself, and so is what is added twice.
        apart = masked or kind == CHANGES
        # Depthwise, channels stay apart.
        few = row[N_IN] * n_samples < CLOSE
        chunk = row[C_IN] if row[DEPTHWISE] or few else chunk_of(row[C_IN])
        n_first = row[N_IN] * (row[C_IN] // chunk) + 1
        for i in range(n_samples):
            if apart:
                scratch[i, : hi - lo] = 0
            places[i] = i * scratch.shape[1] if apart else i * n + lo
            at = i * sent.constant.shape[1] + starts[row[SOURCE]]
            locate(events, at, n_events[i], chunk, first[i, :n_first])
        out = scratch.reshape(-1) if apart else u.reshape(-1)
        _propagate(first, chunk, n_events, events, values, row, plan, out, places)
        if apart:
            for i in range(n_samples):
                at = row[KEEP] + (block + i) * (hi - lo) if masked else 0
                kept = plan.keep[at : at + hi - lo]
                _add(scratch[i, : hi - lo], masked, kept, u[i, lo:hi])
                if kind == CHANGES:
                    _add(scratch[i, : hi - lo], masked, kept, sent.constant[i, lo:hi])


@helper
def _predict(a, lo, hi, few, many, i, sent):
    """Of the neurons lo to hi of sample i, predict spikes where the rate's sum is above ``many``, none below ``few``.

    Lists the neurons of which that is new, with value new − old; returns their number.
    """
    predicted, changes, values = sent.predicted[i], sent.events[CHANGES, i], sent.values[CHANGES, i]
    count = 0
    for j in range(lo, hi):
        old = predicted[j]
        s = 1 if a[j] > many else 0 if a[j] < few else old
        if s != old:
            changes[lo + count] = j - lo
            values[lo + count] = 1 if s else -1
            predicted[j] = s
            count += 1
    return count


@helper
def _record(lo, hi, i, sent, n_sent, u, spikes, potentials):
    """Spikes and potentials of the neurons lo to hi of sample i, from what was predicted and what was sent."""
    for j in range(lo, hi):
        spikes[j] = sent.predicted[i, j]
        potentials[j] = u[j]
    for e in range(lo, lo + n_sent):
        spikes[lo + sent.events[EVENTS, i, e]] ^= 1


@helper
def _run(
    block, drive, inputs, leak, v_th, rate_weights, bounds, starts, plan, u, a, n_spikes, n_events, margin, spikes,
    potentials, stop,
):  # fmt: skip
    """All steps of a block of samples, from sample ``block`` on; arguments as those of ``rollout``, for the block."""
    n_samples, n = drive.shape
    n_steps, n_populations, n_in = rate_weights.shape[0], starts.shape[0] - 1, inputs.shape[2]
    record = spikes.shape[1] > 0
    sent = Sent(
        np.zeros((n_samples, n + n_in), np.uint8),
        np.empty((n_samples, n + n_in), drive.dtype),
        np.empty((2, n_samples, n + n_in), np.uint32),
        np.empty((2, n_samples, n + n_in), drive.dtype),
        np.zeros((2, n_populations + 1, n_samples), np.int64),
    )
    n_located, widest = 1, 0
    for row in plan.table:
        n_located = max(n_located, row[N_IN] * (row[C_IN] // chunk_of(row[C_IN])))
    for pop in range(n_populations):
        widest = max(widest, starts[pop + 1] - starts[pop])
    scratch = np.empty((n_samples, widest), drive.dtype)
    first = np.empty((n_samples, n_located + 1), np.int32)
    # Element by element, here and elsewhere: an assignment of one array to a slice takes seconds to compile.
    for i in range(n_samples):
        for j in range(n):
            u[i, j] = sent.constant[i, j] = drive[i, j]
    a[:] = 0
    n_spikes[:] = 0
    n_events[:] = 0
    margin[:] = np.inf
    so_far = np.zeros(n_populations, drive.dtype)  # what the rate's sum of a neuron is that fired at every step
    for t in range(n_steps):
        if stop[0]:
            return
        last = t + 1 == n_steps
        if n_in > 0:
            _send_input(inputs, t, sent)
        for pop in range(n_populations):
            lo, hi = starts[pop], starts[pop + 1]
            for kind in (CHANGES, EVENTS):
                _receive(kind, pop, block, starts, plan, sent, scratch, first, u)
            for i in range(n_samples):
                n_sent = sent.count[:, pop, i]
                n_sent[CHANGES] = 0
                if not np.isnan(bounds[t, 0]):
                    n_sent[CHANGES] = _predict(
                        a[i], lo, hi, bounds[t, 0] * so_far[pop], bounds[t, 1] * so_far[pop], i, sent
                    )
                n_sent[EVENTS], n_fired, nearest = fire(
                    u, a, i * n + lo, hi - lo, v_th[pop], rate_weights[t, pop], sent.predicted, sent.events[EVENTS],
                    sent.values[EVENTS], i * (n + n_in) + lo, not last and not record, leak[pop], sent.constant,
                )  # fmt: skip
                n_spikes[i, pop] += n_fired
                n_events[i, pop] += n_sent.sum()
                margin[i] = min(margin[i], nearest)
                if record:
                    _record(lo, hi, i, sent, n_sent[EVENTS], u[i], spikes[i, t], potentials[i, t])
                    if not last:
                        _leak(leak[pop], sent.constant[i, lo:hi], u[i, lo:hi])
            so_far[pop] += rate_weights[t, pop]


@njit(parallel=True)
def rollout(
    drive, inputs, leak, v_th, rate_weights, bounds, starts, incoming, table, runs, weights, keep, u, a, n_spikes,
    n_events, margin, spikes, potentials, share, stop,
):  # fmt: skip
    """(STEP) for t = 0..T-1 over the graph, event by event, and (RATE).

    Parameters
    ----------
    drive : (B, n)  constant part of the drive of every neuron.
    inputs : (B, T, n_in)  spike-train input; (B, 0, 0) where the input is static.
    leak, v_th : (L,)  of each population, of the array dtype.
    rate_weights : (T, L)  what a spike of each step adds to its neuron's rate, (RATE).
    bounds : (T, 2)  before which steps predictions are revised: the rate so far below which a neuron is predicted not
        to fire from then on, and that above which it is. NaN for the other steps.
    starts : (L + 1,)  offsets of the populations in the state.
    incoming, table, runs, weights, keep : see ``layout.Plan``.
    u, a : (B, n)  overwritten: potential u[T] and average rate a[T].
    n_spikes, n_events : (B, L)  overwritten: spikes a population fired in all steps, and events it sent.
    margin : (B,)  overwritten: smallest |v - V_th| met.
    spikes, potentials : (B, T, n) recordings, or (B, 0, 0) for none.
    share : samples of a block, see ``propagate.block_of``.
    stop : (1,) uint8  as soon as another thread writes 1 here, the rest is left undone.

    A population's event list is replaced when it has been updated, so a connection from an earlier
    population reads s[t + 1], and one from the same or a later population s[t]: the rule of (LAYERS).
    Samples go in blocks that share the weights in the caches; a sample's sums do not depend on its block.
    """
    for i in prange((drive.shape[0] + share - 1) // share):
        here = slice(i * share, min((i + 1) * share, drive.shape[0]))
        _run(
            i * share, drive[here], inputs[here], leak, v_th, rate_weights, bounds, starts,
            Plan(incoming, table, runs, weights, keep), u[here], a[here], n_spikes[here], n_events[here], margin[here],
            spikes[here], potentials[here], stop,
        )  # fmt: skip
