"""The event loop of (IF-C) and (LIF-C), and the averages of its spikes.

Potentials are kept in a frame in which nothing moves between events. With y = τ (exp((t − T0)/τ) − 1), which is
t − T0 for IF, whose τ is infinite, and d a neuron's drive,

    u = V − (c − r y) / (1 + y/τ),  r = d − V/τ,      reaches V at y = c/r

so an arriving spike takes w (1 + y/τ) from c, no logarithm stands in a crossing, and one exponential serves all
receivers of an event. All of it is right to rounding for any τ: nothing of the size of τ d is taken from another. The
frame moves on (T0 to now) before numbers in it grow large. What rounding takes from c is kept in a second number,
``lost``: a neuron held far below threshold would else drift away from its balance.
"""

import math

import numpy as np

from ide_ref._kernels._jit import helper, njit

DONE, BUDGET = 0, 1
SPIKES, DELIVERIES, INPUTS, STATUS, DELIVERED, EDGES, WORK, N_COUNTS = range(8)
NOW, ORIGIN, FRAME, N_CLOCK = range(4)
EDGE, INPUT, DELIVERY, SAMPLE = range(4)


FAR = 1e15  # exp((t − T0)/τ) beyond which the frame moves,
LARGEST = 1e300  # and y beyond which it does
SHORT = 1e-20  # parts of τ: in so short a time nothing leaks, and dividing by τ might leave the range of numbers


@helper
def _frame_of(elapsed, tau):
    """y so long after T0."""
    x = elapsed / tau
    return elapsed if x < SHORT else tau * math.expm1(x)


@helper
def _time_of(y, tau):
    """How long after T0 that is; infinity for infinity."""
    x = y / tau
    return y if x < SHORT or y == np.inf else tau * math.log1p(x)


@helper
def _crossing(c, slope, y):
    """Where in the frame a neuron next fires: y itself if it stands at threshold now, infinity for never."""
    if c <= slope * y:
        return y
    return max(c / slope, y) if slope > 0 else np.inf


@helper
def _potential(c, lost, slope, y, v_th, tau):
    return v_th - (c - (slope * y - lost)) / (1.0 + y / tau)


@helper
def _add(c, lost, i, value):
    """c[i] += value, the rounding error into lost[i]."""
    old = c[i]
    new = old + value
    part = new - old
    lost[i] += (old - (new - part)) + (value - part)
    c[i] = new


@helper
def _before(key, i, j):
    return key[i] < key[j] or (key[i] == key[j] and i < j)


@helper
def _rise(heap, place, key, i):
    """Neuron i's key has fallen: move it towards the top."""
    at = place[i]
    while at > 0:
        parent = (at - 1) >> 1
        j = heap[parent]
        if not _before(key, i, j):
            break
        heap[at] = j
        place[j] = at
        at = parent
    heap[at] = i
    place[i] = at


@helper
def _sink(heap, place, key, i):
    """Neuron i's key has risen: move it towards the leaves."""
    n = heap.shape[0]
    at = place[i]
    while True:
        child = 2 * at + 1
        if child >= n:
            break
        if child + 1 < n and _before(key, heap[child + 1], heap[child]):
            child += 1
        j = heap[child]
        if not _before(key, j, i):
            break
        heap[at] = j
        place[j] = at
        at = child
    heap[at] = i
    place[i] = at


@helper
def _order(heap, place, key, c, drive, y, rheobase):
    """All keys anew, and the heap from the leaves up."""
    n = heap.shape[0]
    for i in range(n):
        key[i] = _crossing(c[i], drive[i] - rheobase[i], y)
    for at in range(n // 2 - 1, -1, -1):
        _sink(heap, place, key, heap[at])


@helper
def _deliver(source, y, blocks, weights, heap, place, key, c, lost, drive, rheobase, tau):
    """One spike reaches its receivers. Returns how many there are.

    A key is a lower bound of its neuron's next crossing: what holds a neuron back needs no look at the heap.
    """
    starts, targets, offsets, lengths = blocks
    reached = 0
    factor = 1.0 + y / tau
    for s in range(starts[source], starts[source + 1]):
        first = targets[s]
        offset = offsets[s]
        for j in range(lengths[s]):
            w = weights[offset + j]
            i = first + j
            _add(c, lost, i, -w * factor)
            if w > 0:
                crossing = _crossing(c[i], drive[i] - rheobase[i], y)
                if crossing < key[i]:
                    key[i] = crossing
                    _rise(heap, place, key, i)
        reached += lengths[s]
    return reached


@helper
def _next_arrival(sample, delay, delivered, spikes, arrived, input_times, edge, edges):
    """What comes next by itself, not by a neuron at threshold, and when: a sample after all else of its instant."""
    kind, t = SAMPLE, sample
    if delay > 0 and delivered < spikes.shape[0] and spikes[delivered] + delay <= t:
        kind, t = DELIVERY, spikes[delivered] + delay
    if arrived < input_times.shape[0] and input_times[arrived] <= t:
        kind, t = INPUT, input_times[arrived]
    if edge < edges.shape[0] and edges[edge] <= t:
        kind, t = EDGE, edges[edge]
    return kind, t


@helper
def _next_crossing(heap, place, key, c, drive, rheobase, y):
    """The neuron that fires next, and where in the frame: the top of the heap, once its bound is its crossing."""
    i = heap[0]
    crossing = _crossing(c[i], drive[i] - rheobase[i], y)
    while crossing > key[i]:
        key[i] = crossing
        _sink(heap, place, key, i)
        i = heap[0]
        crossing = _crossing(c[i], drive[i] - rheobase[i], y)
    return i, crossing


@helper
def _potentials(c, lost, drive, rheobase, y, v_th, tau, u):
    for j in range(u.shape[0]):
        u[j] = _potential(c[j], lost[j], drive[j] - rheobase[j], y, v_th[j], tau)


@njit
def begin(drive, tau, v_th, c, lost, key, heap, clock, counts):
    """A network at rest at time 0, where its drive (n,) sets in: overwrites the arrays that ``run`` goes on from."""
    n = c.shape[0]
    clock[NOW] = 0.0
    clock[ORIGIN] = 0.0
    clock[FRAME] = 0.0
    counts[:] = 0
    counts[EDGES] = 1
    for i in range(n):
        c[i] = v_th[i]
        lost[i] = 0.0
        heap[i] = i
    _order(heap, np.arange(n), key, c, drive, 0.0, v_th / tau)


@njit
def run(
    blocks, weights, drives, edges, input_times, input_sources, tau, v_th, delay, samples, spike_times, spike_neurons,
    u_samples, u, c, lost, key, heap, clock, counts, stop,
):  # fmt: skip
    """Go on from where ``begin`` or an earlier run stopped, to the last of ``samples`` or until the spikes are full.

    Parameters
    ----------
    blocks : starts (n_sources + 1,), targets, offsets, lengths (n_blocks,)  blocks starts[i]:starts[i + 1] belong to
        source i, neurons first, then inputs; one reaches ``lengths`` neurons in a row from ``targets``, with the
        weights from ``offsets`` on.
    weights : flat.
    drives, edges : (K, n), (K,)  drive[k] holds from edges[k] on; edges[0] = 0.
    input_times, input_sources : (E,)  arriving input spikes, ascending; sources count from n.
    tau : infinite for IF.
    v_th : (n,)
    delay : ≥ 0.
    samples : (M,)  times at which to note u, ascending, none before clock[NOW].
    spike_times, spike_neurons : (max,)  hold counts[SPIKES] spikes of before; overwritten behind these.
    u_samples : (M, n)  overwritten as far as the run comes.
    u : (n,)  overwritten: the potentials where it stops.
    c, lost, key, heap : (n,)  constants in the frame, what rounding took from them, lower bounds of the next
        crossings, and the neurons as a heap by these; overwritten.
    clock : (3,)  the time, T0 and y; overwritten.
    counts : (7,)  overwritten, see the names above.
    stop : (1,) uint8  as soon as another thread writes 1 here, the rest is left undone.

    Of what happens at one instant, first the drive changes, then input spikes arrive, then delayed spikes, in
    the order in which they were fired; then, as long as any neuron stands at threshold, the one of them with the
    lowest index fires. Without delay its spike arrives before the next is asked. A sample sees all of it.
    """
    n = u.shape[0]
    place = np.empty(n, np.int64)
    place[heap] = np.arange(n)
    t, origin, y = clock[NOW], clock[ORIGIN], clock[FRAME]
    arrived, delivered, edge, work = counts[INPUTS], counts[DELIVERED], counts[EDGES], counts[WORK]
    drive = drives[edge - 1]
    # The drives that just hold each neuron at threshold.
    rheobase = v_th / tau
    far = min(FAR, LARGEST / tau)
    counts[STATUS] = DONE
    sampled = 0
    while sampled < samples.shape[0] and not stop[0]:
        kind, t_next = _next_arrival(
            samples[sampled], delay, delivered, spike_times[: counts[SPIKES]], arrived, input_times, edge, edges
        )
        i, crossing = _next_crossing(heap, place, key, c, drive, rheobase, y)
        # The time that will be noted decides, not y, which rounds otherwise: a sample at a spike's very time must see
        # it. Nor may y round a crossing to before the last event's time.
        t_fires = max(t, origin + _time_of(crossing, tau)) if crossing > y else t
        source = -1  # of a spike that arrives now
        if t_fires < t_next or (kind == SAMPLE and t_fires <= t_next):
            t, y = t_fires, crossing
            if counts[SPIKES] == spike_times.shape[0]:
                counts[STATUS] = BUDGET
                break
            _add(c, lost, i, v_th[i] * (1.0 + y / tau))
            key[i] = _crossing(c[i], drive[i] - rheobase[i], y)
            _sink(heap, place, key, i)
            spike_times[counts[SPIKES]], spike_neurons[counts[SPIKES]] = t, i
            counts[SPIKES] += 1
            work += 1
            if delay == 0:
                source = i
        else:
            t, y = t_next, max(y, _frame_of(t_next - origin, tau))
            # Beyond the range of exp, or with a new drive, the frame has to move.
            if kind == EDGE or y / tau > far:
                _move(c, lost, drive, rheobase, t - origin, tau)
                origin, y, work = t, 0.0, 0
                if kind == EDGE:
                    drive = drives[edge]
                    edge += 1
                _order(heap, place, key, c, drive, y, rheobase)
            if kind == SAMPLE:
                _potentials(c, lost, drive, rheobase, y, v_th, tau, u_samples[sampled])
                sampled += 1
            elif kind == INPUT:
                source = input_sources[arrived]
                arrived += 1
            elif kind == DELIVERY:
                source = spike_neurons[delivered]
                delivered += 1
        if source >= 0:
            reached = _deliver(source, y, blocks, weights, heap, place, key, c, lost, drive, rheobase, tau)
            counts[DELIVERIES] += reached
            work += reached
        if work > 16 * n or y / tau > far:
            _move(c, lost, drive, rheobase, t - origin, tau)
            origin, y, work = t, 0.0, 0
            _order(heap, place, key, c, drive, y, rheobase)
    _potentials(c, lost, drive, rheobase, y, v_th, tau, u)
    clock[NOW], clock[ORIGIN], clock[FRAME] = t, origin, y
    counts[INPUTS], counts[DELIVERED], counts[EDGES], counts[WORK] = arrived, delivered, edge, work


@helper
def _move(c, lost, drive, rheobase, elapsed, tau):
    """Constants c of a frame that begins ``elapsed`` later: how far below threshold potentials are then."""
    x = elapsed / tau
    leaked = -math.expm1(-x)
    kept = math.exp(-x)
    # What a drive of 1 has brought.
    brought = elapsed if x < SHORT else tau * leaked
    for i in range(c.shape[0]):
        rest = lost[i] * kept - (drive[i] - rheobase[i]) * brought
        lost[i] = 0.0
        if x < 0.5:
            _add(c, lost, i, rest - c[i] * leaked)
        else:
            # Little of c is left: taking off what leaked would cancel.
            c[i] = c[i] * kept + rest


@njit
def weighted_counts(times, neurons, samples, tau, out):
    """out[m, i] = Σ of exp(−(samples[m] − t)/τ) over the spikes t ≤ samples[m] of neuron i; τ is infinite for IF.

    times and samples ascend; overwrites out (M, n).
    """
    total = np.zeros(out.shape[1])
    at = 0
    before = 0.0
    for m in range(samples.shape[0]):
        now = samples[m]
        total *= math.exp(-(now - before) / tau)
        while at < times.shape[0] and times[at] <= now:
            total[neurons[at]] += math.exp(-(now - times[at]) / tau)
            at += 1
        out[m] = total
        before = now
