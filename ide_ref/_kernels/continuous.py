"""The event loop of (IF-C) and (LIF-C), and the averages of its spikes.

Potentials are kept in a frame in which nothing moves between events. With z = t − T0 (IF) or
z = exp((t − T0)/τ) (LIF), where d is a neuron's drive,

    IF   u = c + d z,       reaches V at z = (V − c)/d
    LIF  u = τ d + c/z,     reaches V at z = c/(V − τ d)

so an arriving spike changes c by w or by w z, no logarithm stands in a crossing, and one exponential serves all
receivers of an event. The frame moves on (T0 to now) before numbers in it grow large. What rounding takes from c
is kept in a second number, ``lost``: a neuron held far below threshold would else drift away from its balance.
"""

import math

import numpy as np
from numba import njit

DONE, BUDGET = 0, 1
SPIKES, DELIVERIES, INPUTS, STATUS, DELIVERED, EDGES, WORK, N_COUNTS = range(8)
NOW, ORIGIN, FRAME, N_CLOCK = range(4)
EDGE, INPUT, DELIVERY, SAMPLE = range(4)


@njit(cache=True, nogil=True)
def _crossing(c, d, z, v_th, tau):
    """Where in the frame a neuron next fires: z itself if it stands at threshold now, infinity for never."""
    if tau > 0:
        gap = v_th - tau * d
        if c >= gap * z:
            return z
        return max(c / gap, z) if gap < 0 else np.inf
    if c + d * z >= v_th:
        return z
    return max((v_th - c) / d, z) if d > 0 else np.inf


@njit(cache=True, nogil=True)
def _add(c, lost, i, value):
    """c[i] += value, the rounding error into lost[i]."""
    old = c[i]
    new = old + value
    part = new - old
    lost[i] += (old - (new - part)) + (value - part)
    c[i] = new


@njit(cache=True, nogil=True)
def _before(key, i, j):
    return key[i] < key[j] or (key[i] == key[j] and i < j)


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def _order(heap, place, key, c, drive, z, v_th, tau):
    """All keys anew, and the heap from the leaves up."""
    n = heap.shape[0]
    for i in range(n):
        key[i] = _crossing(c[i], drive[i], z, v_th, tau)
    for at in range(n // 2 - 1, -1, -1):
        _sink(heap, place, key, heap[at])


@njit(cache=True, nogil=True)
def _deliver(source, z, starts, targets, offsets, lengths, weights, heap, place, key, c, lost, drive, v_th, tau):
    """One spike reaches its receivers. Returns how many there are.

    A key is a lower bound of its neuron's next crossing: what holds a neuron back needs no look at the heap.
    """
    reached = 0
    factor = z if tau > 0 else 1.0
    for s in range(starts[source], starts[source + 1]):
        first = targets[s]
        offset = offsets[s]
        for j in range(lengths[s]):
            w = weights[offset + j]
            i = first + j
            _add(c, lost, i, w * factor)
            if w > 0:
                crossing = _crossing(c[i], drive[i], z, v_th, tau)
                if crossing < key[i]:
                    key[i] = crossing
                    _rise(heap, place, key, i)
        reached += lengths[s]
    return reached


@njit(cache=True, nogil=True)
def begin(drive, tau, v_th, c, lost, key, heap, clock, counts):
    """A network at rest at time 0, where its drive (n,) sets in: overwrites the arrays that ``run`` goes on from."""
    n = c.shape[0]
    z = 1.0 if tau > 0 else 0.0
    clock[NOW] = 0.0
    clock[ORIGIN] = 0.0
    clock[FRAME] = z
    counts[:] = 0
    counts[EDGES] = 1
    for i in range(n):
        c[i] = -tau * drive[i]
        lost[i] = 0.0
        heap[i] = i
    _order(heap, np.arange(n), key, c, drive, z, v_th, tau)


@njit(cache=True, nogil=True)
def run(
    starts,
    targets,
    offsets,
    lengths,
    weights,
    drives,
    edges,
    input_times,
    input_sources,
    tau,
    v_th,
    delay,
    samples,
    spike_times,
    spike_neurons,
    u_samples,
    u,
    c,
    lost,
    key,
    heap,
    clock,
    counts,
):
    """Go on from where ``begin`` or an earlier run stopped, to the last of ``samples`` or until the spikes are full.

    Parameters
    ----------
    starts : (n_sources + 1,)  blocks starts[i]:starts[i + 1] belong to source i; neurons first, then inputs.
    targets, offsets, lengths : (n_blocks,)  a block reaches ``lengths`` neurons in a row from ``targets``, with
        the weights from ``offsets`` on.
    weights : flat.
    drives, edges : (K, n), (K,)  drive[k] holds from edges[k] on; edges[0] = 0.
    input_times, input_sources : (E,)  arriving input spikes, ascending; sources count from n.
    tau : 0 for IF.
    delay : ≥ 0.
    samples : (M,)  times at which to note u, ascending, none before clock[NOW].
    spike_times, spike_neurons : (max,)  hold counts[SPIKES] spikes of before; overwritten behind these.
    u_samples : (M, n)  overwritten as far as the run comes.
    u : (n,)  overwritten: the potentials where it stops.
    c, lost, key, heap : (n,)  constants in the frame, what rounding took from them, lower bounds of the next
        crossings, and the neurons as a heap by these; overwritten.
    clock : (3,)  the time, T0 and z; overwritten.
    counts : (7,)  overwritten, see the names above.

    Of what happens at one instant, first the drive changes, then input spikes arrive, then delayed spikes, in
    the order in which they were fired; then neurons at threshold fire, the lowest index first, each once a
    turn. Without delay a spike arrives before the next neuron fires. A sample sees all of it.
    """
    n = u.shape[0]
    place = np.empty(n, np.int64)
    for at in range(n):
        place[heap[at]] = at
    t = clock[NOW]
    origin = clock[ORIGIN]
    z = clock[FRAME]
    arrived = counts[INPUTS]
    delivered = counts[DELIVERED]
    edge = counts[EDGES]
    work = counts[WORK]
    drive = drives[edge - 1]
    counts[STATUS] = DONE
    sampled = 0
    while sampled < samples.shape[0]:
        kind = SAMPLE
        t_next = samples[sampled]
        # A sample comes after everything else of its instant, an edge before.
        if delay > 0 and delivered < counts[SPIKES] and spike_times[delivered] + delay <= t_next:
            kind = DELIVERY
            t_next = spike_times[delivered] + delay
        if arrived < input_times.shape[0] and input_times[arrived] <= t_next:
            kind = INPUT
            t_next = input_times[arrived]
        if edge < edges.shape[0] and edges[edge] <= t_next:
            kind = EDGE
            t_next = edges[edge]
        i = heap[0]
        crossing = _crossing(c[i], drive[i], z, v_th, tau)
        while crossing > key[i]:
            key[i] = crossing
            _sink(heap, place, key, i)
            i = heap[0]
            crossing = _crossing(c[i], drive[i], z, v_th, tau)
        # The time that will be noted decides, not z, which rounds otherwise: a sample at a spike's very time must see
        # it. Nor may z round a crossing to before the last event's time.
        t_fires = t
        if crossing > z:
            t_fires = max(t, origin + tau * math.log(crossing) if tau > 0 else origin + crossing)
        if t_fires < t_next or (kind == SAMPLE and t_fires <= t_next):
            z = crossing
            t = t_fires
            if counts[SPIKES] == spike_times.shape[0]:
                counts[STATUS] = BUDGET
                break
            _add(c, lost, i, -v_th * z if tau > 0 else -v_th)
            key[i] = _crossing(c[i], drive[i], z, v_th, tau)
            _sink(heap, place, key, i)
            spike_times[counts[SPIKES]] = t
            spike_neurons[counts[SPIKES]] = i
            counts[SPIKES] += 1
            if delay == 0:
                reached = _deliver(
                    i, z, starts, targets, offsets, lengths, weights, heap, place, key, c, lost, drive, v_th, tau
                )
                counts[DELIVERIES] += reached
                work += reached
            work += 1
        else:
            t = t_next
            z = max(z, math.exp((t - origin) / tau) if tau > 0 else t - origin)
            # Beyond the range of exp, or with a new drive, the frame has to move.
            if kind == EDGE or (tau > 0 and z > 1e15):
                _move(c, lost, drive, t - origin, tau)
                origin = t
                z = 1.0 if tau > 0 else 0.0
                if kind == EDGE:
                    if tau > 0:
                        c += tau * (drive - drives[edge])
                    drive = drives[edge]
                    edge += 1
                _order(heap, place, key, c, drive, z, v_th, tau)
                work = 0
            if kind == SAMPLE:
                for j in range(n):
                    u_samples[sampled, j] = tau * drive[j] + c[j] / z if tau > 0 else c[j] + (drive[j] * z + lost[j])
                sampled += 1
            elif kind != EDGE:
                if kind == INPUT:
                    source = input_sources[arrived]
                    arrived += 1
                else:
                    source = spike_neurons[delivered]
                    delivered += 1
                reached = _deliver(
                    source, z, starts, targets, offsets, lengths, weights, heap, place, key, c, lost, drive, v_th, tau
                )
                counts[DELIVERIES] += reached
                work += reached
        if work > 16 * n or (tau > 0 and z > 1e15):
            _move(c, lost, drive, t - origin, tau)
            origin = t
            z = 1.0 if tau > 0 else 0.0
            _order(heap, place, key, c, drive, z, v_th, tau)
            work = 0
    for j in range(n):
        u[j] = tau * drive[j] + c[j] / z if tau > 0 else c[j] + (drive[j] * z + lost[j])
    clock[NOW] = t
    clock[ORIGIN] = origin
    clock[FRAME] = z
    counts[INPUTS] = arrived
    counts[DELIVERED] = delivered
    counts[EDGES] = edge
    counts[WORK] = work


@njit(cache=True, nogil=True)
def _move(c, lost, drive, elapsed, tau):
    """Constants c of a frame that begins ``elapsed`` later."""
    if tau > 0:
        factor = math.exp(-elapsed / tau)
        c *= factor
        lost *= factor
    else:
        for i in range(c.shape[0]):
            _add(c, lost, i, drive[i] * elapsed)


@njit(cache=True, nogil=True)
def weighted_counts(times, neurons, samples, tau, out):
    """out[m, i] = Σ of κ(samples[m] − t) over the spikes t ≤ samples[m] of neuron i; κ = 1 for tau = 0.

    times and samples ascend; overwrites out (M, n).
    """
    total = np.zeros(out.shape[1])
    at = 0
    before = 0.0
    for m in range(samples.shape[0]):
        now = samples[m]
        if tau > 0:
            total *= math.exp(-(now - before) / tau)
        while at < times.shape[0] and times[at] <= now:
            total[neurons[at]] += math.exp(-(now - times[at]) / tau) if tau > 0 else 1.0
            at += 1
        out[m] = total
        before = now
