"""Continuous time, simulated exactly: (IF-C) and (LIF-C) from event to event.

Units: potentials are in that of V_th, and all times (τ_m, Δ, of inputs and answers) in one unit of time, whichever.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ide_ref import _checks, _threads
from ide_ref._kernels import continuous as _continuous
from ide_ref.maps import Frozen
from ide_ref.network import Network
from ide_ref.synapses import to_channels_last

_ROOM = 2**18
"""Spikes that a run first has room for; it doubles while the budget allows."""


@dataclass(frozen=True)
class PiecewiseInput:
    """An input that is constant from each time to the next.

    Parameters
    ----------
    times : (K,) array
        Ascending; the first is 0.
    values : (K, *input_shape) array
        values[k] holds from times[k] on.
    """

    times: NDArray
    values: NDArray


@dataclass(frozen=True)
class Pulses:
    """An input of Dirac pulses of weight 1.

    Parameters
    ----------
    times : (E,) array
        Ascending, not negative.
    neurons : (E,) int array
        Which input each belongs to, counted along the flattened input_shape.
    """

    times: NDArray
    neurons: NDArray


@dataclass(frozen=True)
class SimulatorState:
    """Where the event loop stopped, in its own terms: what ``resume`` needs beside the spikes.

    Attributes
    ----------
    arrays : tuple of array
        How far potentials are below threshold, as constants of the moving frame, the rounding error of these, lower
        bounds of the next crossings, the neurons in the order in which the loop asks them (n each), the clock (3),
        event counts (7).
    digest : bytes
        Of the weights and of the input up to this time.
    """

    arrays: tuple[NDArray, ...]
    digest: bytes


@dataclass(frozen=True)
class ContinuousRun:
    """What an event-driven run leaves behind.

    Attributes
    ----------
    network : Network
    tau : float
        τ_m; infinite for IF.
    delay : float
        Δ.
    times : (M,) array
        The requested times that were reached.
    spike_times, spike_neurons : (S,) arrays
        All spikes in the order in which they were fired; neurons in channels-last order.
    a : (M, n) array
        Average rates: (1/K) ∫ κ(t−τ) s(τ) dτ up to and with each time, κ = 1 and K = t for IF,
        κ = exp(−·/τ_m) and K = τ_m (1 − exp(−t/τ_m)) for LIF. Spikes per unit of time.
    a_delayed : (M, n) array
        a(t − Δ); 0 before.
    drive : (M, n) array
        F x̄(t) + b.
    recurrent : (M, n) array
        W a(t − Δ).
    u : (M, n) array
        Potentials, as the event loop kept them.
    u_end : (n,) array
        Potentials at ``t_end``.
    t_end : float
        Where the run stopped.
    n_deliveries, n_inputs : int
        Receivers reached by spikes, and input events.
    completed : bool
        False where the event budget ended the run.
    message : str
        Why it stopped early, empty if it did not.
    state : SimulatorState
        From which another call goes on.
    """

    network: Network
    tau: float
    delay: float
    times: NDArray
    spike_times: NDArray
    spike_neurons: NDArray[np.int64]
    a: NDArray
    a_delayed: NDArray
    drive: NDArray
    recurrent: NDArray
    u: NDArray
    u_end: NDArray
    t_end: float
    n_deliveries: int
    n_inputs: int
    completed: bool
    message: str
    state: SimulatorState

    @property
    def n_spikes(self) -> NDArray[np.int64]:
        """(n,) spikes of each neuron."""
        return np.bincount(self.spike_neurons, minlength=self.network.state_size)

    @property
    def kernel_total(self) -> NDArray:
        """K(t) = ∫_0^t κ at the requested times, (M,)."""
        return kernel_total(self.times, self.tau)

    @property
    def ratio(self) -> NDArray:
        """K(t − Δ)/K(t), (M,): the weight of the spikes that have arrived."""
        return kernel_total(np.maximum(self.times - self.delay, 0.0), self.tau) / self.kernel_total

    @property
    def p(self) -> NDArray:
        """(M, n) average drive: (K(t−Δ)/K(t)) W a(t−Δ) + F x̄(t) + b."""
        return self.ratio[:, None] * self.recurrent + self.drive

    @property
    def u_plus(self) -> NDArray:
        """(M, n) u⁺ of (SPLIT), here V_th a = ReLU(p) − u⁺/K: u − K min(p, 0)."""
        return self.u - self.kernel_total[:, None] * np.minimum(self.p, 0.0)

    @property
    def balance_error(self) -> float:
        """Largest violation of V_th a = p − u/K, times K: in units of the potential. Rounding."""
        charge = self.kernel_total[:, None] * (self.p - self.network.thresholds() * self.a)
        return float(np.abs(charge - self.u).max(initial=0.0))


def kernel_total(t: NDArray, tau: float) -> NDArray:
    """K(t) = ∫_0^t κ, of t's shape: t for IF, τ_m (1 − exp(−t/τ_m)) for LIF."""
    if np.isinf(tau):
        return t
    part = t / tau
    # In so short a time nothing leaks, and the part may lie below the range of numbers.
    return np.where(part < _continuous.SHORT, t, -tau * np.expm1(-part))


def simulate_continuous(
    frozen: Frozen,
    x: NDArray | PiecewiseInput | Pulses,
    times: NDArray,
    *,
    tau: float = np.inf,
    delay: float = 0.0,
    max_events: int = 1_000_000,
    resume: ContinuousRun | None = None,
) -> ContinuousRun:
    """Run one sample in continuous time from rest, (IF-C) or (LIF-C), without a time grid.

    (IF-C) du/dt = W s(t−Δ) + F x(t) + b − V_th s(t), s a sum of Dirac pulses.

    (LIF-C) du/dt = −u/τ_m + W s(t−Δ) + F x(t) + b − V_th s(t).

    Between events the potential has a closed form and the next crossing is computed from it. Each spike
    costs in proportion to its receivers. All connections between populations carry the delay; the input
    has none. Of what happens at one instant, first the drive changes, then input spikes arrive, then delayed
    spikes in the order in which they were fired; then, as long as any neuron stands at threshold, the one of them with
    the lowest index fires, so a neuron fires all that it has before a higher index fires at all; without delay its
    spike arrives before the next is asked. Requested times see all of it.

    Parameters
    ----------
    frozen : Frozen
        float64, frozen for evaluation. Its leaks are not used: ``tau`` takes their place, in all populations.
    x : (*input_shape) array, PiecewiseInput or Pulses
        Constant input, piecewise constant input, or spikes.
    times : (M,) array
        Where rates and potentials are wanted, ascending and positive; the last ends the run.
    tau : float
        τ_m; infinite for IF.
    delay : float
        Δ ≥ 0.
    max_events : int
        Most spikes of this call. Rates have no upper end here, and with strong feedback they may diverge. Memory
        grows with the spikes there are, not with their budget.
    resume : ContinuousRun, optional
        Go on from where this run stopped, spikes on their way included. The other arguments are those of its
        call but for the times and the input beyond its end. The result is that of the whole run, bit for bit what
        one call with all these times and a budget large enough returns.

    Returns
    -------
    ContinuousRun
        Where the budget ends it, with everything up to that spike, and a message.

    Raises
    ------
    ValueError
        For arguments that do not fit.

    Notes
    -----
    Potentials and times are right to rounding for any τ; as it grows, the run tends to that of (IF-C).
    """
    times, tau, delay, max_events = _checked(frozen, times, tau, delay, max_events)
    net = frozen.network
    edges, drives, input_times, input_cells = given = _inputs(frozen, x)
    blocks, weights = _blocks(frozen, input_times.size > 0)
    n, v_th = net.state_size, net.thresholds()
    u_samples, u = np.empty((times.size, n)), np.empty(n)
    if resume is None:
        sizes = (n, n, n, n, _continuous.N_CLOCK, _continuous.N_COUNTS)
        arrays = tuple(np.empty(size, dtype) for size, dtype in zip(sizes, "dddqdq", strict=True))
        _continuous.begin(drives[0], tau, v_th, *arrays)
        n_sampled, spike_times, spike_neurons = 0, np.array([]), np.array([], np.int64)
    else:
        n_sampled = _check_resumed(resume, net, tau, delay, times)
        arrays = tuple(array.copy() for array in resume.state.arrays)
        spike_times, spike_neurons = resume.spike_times, resume.spike_neurons
        u_samples[:n_sampled] = resume.u[np.searchsorted(resume.times, times[:n_sampled])]
        if resume.state.digest != _digest(arrays[-1], weights, *given):
            raise ValueError(
                f"frozen or x is not that of the run to resume; expected its weights, and its input up to t = "
                f"{resume.t_end:.6g}"
            )
    clock, counts = arrays[-2:]
    n_before = int(counts[_continuous.SPIKES])
    budget, room = n_before + max_events, n_before
    while True:
        room = min(budget, max(2 * room, _ROOM))
        spike_times, spike_neurons = _with_room(spike_times, room), _with_room(spike_neurons, room)
        arguments = (
            blocks, weights, drives, edges, input_times, input_cells + n, tau, v_th, delay, times[n_sampled:],
            spike_times, spike_neurons, u_samples[n_sampled:], u, *arrays,
        )  # fmt: skip
        # An event may reach every neuron.
        work = n * (room - int(counts[_continuous.SPIKES]) + len(input_times))
        _threads.stoppable(partial(_continuous.run, *arguments), work)
        if counts[_continuous.STATUS] == _continuous.DONE or room == budget:
            break
        # At the instant where the room ended spikes are still to come, so a sample there has not been taken.
        n_sampled = int(np.searchsorted(times, clock[_continuous.NOW]))
    t_end = float(clock[_continuous.NOW])
    spike_times, spike_neurons = (array[: counts[_continuous.SPIKES]].copy() for array in (spike_times, spike_neurons))
    completed = bool(counts[_continuous.STATUS] == _continuous.DONE)
    # At the instant of the stop itself spikes are still to come.
    reached = times if completed else times[times < t_end]
    a, a_delayed = (_averages(spike_times, spike_neurons, reached, tau, n, late) for late in (0.0, delay))
    drive, recurrent = _drives(frozen, _mean_input(net, x, given, reached, tau), a_delayed)
    message = "" if completed else _storm(net, spike_times, spike_neurons, t_end, times[-1], n_before)
    n_deliveries, n_inputs = int(counts[_continuous.DELIVERIES]), int(counts[_continuous.INPUTS])
    return ContinuousRun(
        net, tau, delay, reached, spike_times, spike_neurons, a, a_delayed, drive, recurrent, u_samples[: reached.size],
        u, t_end, n_deliveries, n_inputs, completed, message, SimulatorState(arrays, _digest(counts, weights, *given)),
    )  # fmt: skip


def _drives(frozen: Frozen, x_mean: NDArray, a_delayed: NDArray) -> tuple[NDArray, NDArray]:
    """F x̄ + b and W a, (M, n) each, of average inputs and of the average rates that have arrived."""
    net = frozen.network
    recurrent = np.zeros_like(a_delayed)
    drive = np.repeat(frozen.constants(1, with_input=True), len(x_mean), axis=0)
    for m, (source, target) in zip(frozen.maps, net.edges, strict=True):
        into, sent = (drive, x_mean) if source < 0 else (recurrent, a_delayed[:, net.slice_of(source)])
        into[:, net.slice_of(target)] += m.linear(sent)
    return drive, recurrent


def _checked(
    frozen: Frozen, times: NDArray, tau: float, delay: float, max_events: int
) -> tuple[NDArray, float, float, int]:
    """The arguments of a run as they are computed with; ValueError, by name, for what does not fit."""
    _checks.kind("frozen", frozen, Frozen)
    times = _checks.reals("times", times)
    if times.ndim != 1 or times.size == 0 or not (times[0] > 0 and np.all(np.diff(times) >= 0) and times[-1] < np.inf):
        raise ValueError(f"times has shape {times.shape}; expected at least one, positive, finite and ascending")
    tau = time_constant("tau", tau)
    if not (_checks.is_real(delay) and delay >= 0):
        raise ValueError(f"delay is {delay!r}; expected a finite number of at least 0")
    max_events = _checks.whole("max_events", max_events)
    if frozen.batch_size is not None or frozen.dtype != np.float64:
        kind = "evaluation" if frozen.batch_size is None else "a training batch"
        raise ValueError(f"frozen is {frozen.dtype} and made for {kind}; expected float64 for evaluation")
    if not float(max(neuron.v_th for neuron in frozen.network.neurons)) / tau < np.inf:
        raise ValueError(f"tau is {tau!r}; expected one that is not so short that v_th/tau is beyond float64")
    return np.ascontiguousarray(times), tau, float(delay), max_events


def time_constant(name: str, value: float) -> float:
    """Value as a float; ValueError unless it is a positive number, which may be infinite, for IF."""
    infinite = isinstance(value, (float, np.floating)) and value == np.inf
    if not (infinite or (_checks.is_real(value) and value > 0)):
        raise ValueError(f"{name} is {value!r}; expected a positive time constant, infinite for IF")
    return float(value)


def _with_room(array: NDArray, n: int) -> NDArray:
    """A copy with n places, of which the first are the array's."""
    out = np.empty(n, array.dtype)
    out[: array.size] = array
    return out


def _check_resumed(run: ContinuousRun, net: Network, tau: float, delay: float, times: NDArray) -> int:
    """How many of the times the run to resume has been at; refuses what does not go on from it."""
    _checks.kind("resume", run, ContinuousRun)
    if net != run.network:
        raise ValueError("frozen has another network than the run to resume; expected the same")
    for name, given, before in (("tau", tau, run.tau), ("delay", delay, run.delay)):
        if given != before:
            raise ValueError(f"{name} is {given!r}; expected that of the run to resume, {before!r}")
    past = times[times < run.t_end]
    if not np.isin(past, run.times).all():
        raise ValueError(
            f"times has some before t = {run.t_end:.6g} that the run to resume was not asked for; expected later ones"
        )
    return past.size


def _digest(counts: NDArray, weights: NDArray, edges: NDArray, drives: NDArray, *spikes: NDArray) -> bytes:
    """Of the weights, and of what came in so far: another past cannot be gone on from."""
    n_edges, n_inputs = int(counts[_continuous.EDGES]), int(counts[_continuous.INPUTS])
    parts = (weights, edges[:n_edges], drives[:n_edges], *(part[:n_inputs] for part in spikes))
    return hashlib.blake2b(b"".join(part.tobytes() for part in parts), digest_size=16).digest()


def _inputs(frozen: Frozen, x: NDArray | PiecewiseInput | Pulses) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Edges and drives of the piecewise constant part, times and cells of the input spikes."""
    net = frozen.network
    if isinstance(x, Pulses):
        times, neurons = _checks.reals("times of x", x.times), np.asarray(x.neurons)
        n_in = int(np.prod(net.input_shape))
        if times.ndim != 1 or times.shape != neurons.shape:
            raise ValueError(f"x has {times.shape} times and {neurons.shape} neurons; expected the same number of each")
        if times.size and not (times[0] >= 0 and np.all(np.diff(times) >= 0) and times[-1] < np.inf):
            raise ValueError("x has times that are negative, infinite or not in order; expected them ascending from 0")
        if times.size and not (np.issubdtype(neurons.dtype, np.integer) and 0 <= neurons.min() <= neurons.max() < n_in):
            raise ValueError(f"x has neurons outside the input; expected whole numbers from 0 to {n_in - 1}")
        order = to_channels_last(np.arange(n_in).reshape(1, *net.input_shape), net.input_shape)[0]
        cells = np.argsort(order)[neurons.astype(np.int64)]
        return np.zeros(1), frozen.constants(1, with_input=True), times, cells
    if isinstance(x, PiecewiseInput):
        edges = _checks.reals("times of x", x.times)
        values = _checks.reals("values of x", x.values)
        if edges.ndim != 1 or edges.size == 0 or edges[0] != 0 or not np.all(np.diff(edges) > 0):
            raise ValueError("x has times that do not begin at 0 or do not ascend; expected 0 = t_0 < t_1 < ...")
        if values.shape != (edges.size, *net.input_shape):
            raise ValueError(f"x has values of shape {values.shape}; expected {(edges.size, *net.input_shape)}")
    else:
        x = _checks.reals("x", x)
        if x.shape != net.input_shape:
            raise ValueError(
                f"x has shape {x.shape}; expected {net.input_shape}, one sample (or PiecewiseInput, or Pulses)"
            )
        edges, values = np.zeros(1), x[None]
    return edges, constant_drive(frozen, values), np.array([]), np.array([], np.int64)


def constant_drive(frozen: Frozen, x: NDArray) -> NDArray:
    """F x + b with the constants of all connections: (B, *input_shape) to (B, n)."""
    return frozen.drive(frozen.check_input(x)) + frozen.constants(1, with_input=False)


def _mean_input(
    net: Network, x: NDArray | PiecewiseInput | Pulses, given: tuple[NDArray, ...], times: NDArray, tau: float
) -> NDArray:
    """x̄(t) = (1/K(t)) ∫ κ(t−τ) x(τ) dτ as cells, (M, n_in), of x as given and as :func:`_inputs` has it."""
    edges, _, input_times, input_cells = given
    if isinstance(x, Pulses):
        return _averages(input_times, input_cells, times, tau, int(np.prod(net.input_shape)))
    if isinstance(x, PiecewiseInput):
        cells = to_channels_last(np.asarray(x.values, np.float64), net.input_shape)
        ends = np.append(edges, np.inf)
        # ∫ κ over a piece that lies between t − hi and t − lo ago.
        ago = kernel_total(np.maximum(times[:, None] - np.minimum(ends, times[:, None]), 0.0), tau)
        return (ago[:, :-1] - ago[:, 1:]) @ cells / kernel_total(times, tau)[:, None]
    cells = to_channels_last(np.asarray(x, np.float64)[None], net.input_shape)
    return np.repeat(cells, times.size, axis=0)


def _averages(times: NDArray, neurons: NDArray, samples: NDArray, tau: float, n: int, delay: float = 0.0) -> NDArray:
    """(1/K) Σ κ of each neuron's spikes up to ``delay`` before each time, (M, n); 0 for times that are not positive.

    The delay is added to the spikes, as the event loop does: taken from the samples it might round otherwise.
    """
    out = np.empty((samples.size, n))
    _continuous.weighted_counts(times + delay, neurons, samples, tau, out)
    since = (samples - delay)[:, None]
    return np.divide(out, kernel_total(np.maximum(since, 0.0), tau), out=np.zeros_like(out), where=since > 0)


def _blocks(frozen: Frozen, with_input: bool) -> tuple[tuple[NDArray, NDArray, NDArray, NDArray], NDArray]:
    """The sparse matrix of all connections, by sending neuron, in blocks of neighbouring receivers."""
    net = frozen.network
    n = net.state_size
    rows: list[tuple[NDArray, NDArray, NDArray, NDArray]] = []
    weights: list[NDArray] = [np.array([])]
    offset = 0
    for c, (source, target) in zip(frozen.maps, net.edges, strict=True):
        if source < 0 and not with_input:
            continue
        synapse = c.synapse
        c_in, c_out = synapse.channels
        position, tap = (index[:, None] for index in np.nonzero(synapse.targets >= 0))
        q = synapse.targets[position, tap].astype(np.int64)
        # A channel reaches the same one, or all.
        length, channel = 1 if synapse.depthwise else c_out, np.arange(c_in)
        # The input, −1, stands behind the n neurons.
        sender = net.offsets[source] + position * c_in + channel
        receiver = net.offsets[target] + q * c_out + (channel if synapse.depthwise else 0 * channel)
        at = offset + (tap * c_in + channel) * length
        rows.append((sender.ravel(), receiver.ravel(), at.ravel(), np.full(sender.size, length)))
        weights.append(c.folded_taps.ravel())
        offset += weights[-1].size
    # An empty row first: a network may have no such connection.
    empty = (np.array([], np.int64),) * 4
    sender, *columns = (np.concatenate(part) for part in zip(empty, *rows, strict=True))
    order = np.argsort(sender, kind="stable")
    n_sources = n + (int(np.prod(net.input_shape)) if with_input else 0)
    starts = np.concatenate([[0], np.cumsum(np.bincount(sender, minlength=n_sources))]).astype(np.int64)
    targets, offsets, lengths = (np.ascontiguousarray(column[order], np.int64) for column in columns)
    return (starts, targets, offsets, lengths), np.concatenate(weights)


def _storm(net: Network, times: NDArray, neurons: NDArray, t_end: float, wanted: float, n_before: int) -> str:
    """Which neuron used up the budget, and why."""
    recent = neurons[-max(1, neurons.size // 10) :]
    counts = np.bincount(recent, minlength=net.state_size)
    worst = int(np.argmax(counts))
    population = int(np.searchsorted(net.offsets, worst, side="right")) - 1
    late = int(np.count_nonzero(times > t_end / 2))
    early = times.size - late
    why = "rates are steady, so this duration needs a larger max_events"
    if late > 1.5 * early:
        why = (
            f"the second half of that time had {late} spikes and the first {early}: feedback outruns the resets, and "
            "without the clip nothing bounds the rates (is the contraction below 1?)"
        )
    return (
        f"stopped at t = {t_end:.6g} of {wanted:.6g} after max_events = {times.size - n_before} "
        f"{'further ' if n_before else ''}spikes: neuron "
        f"{worst - int(net.offsets[population])} of {net.populations[population].name!r} fired {counts[worst]} of the "
        f"last {recent.size}; {why}; to go on, pass this run as resume"
    )
