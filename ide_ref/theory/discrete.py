"""(BALANCE), (SPLIT), (ERR) and (FLOOR) along a run in discrete time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ide_ref import _checks, certificates
from ide_ref.equilibrium import Equilibrium, find_equilibrium, sweep
from ide_ref.maps import Frozen
from ide_ref.network import Network
from ide_ref.neurons import Neuron
from ide_ref.norms import ROUNDOFF, raised
from ide_ref.simulation import Rates
from ide_ref.synapses import to_channels_last
from ide_ref.theory.condition import Conditions, along, check_run, conditions, inner, median_ratio, population_norms

_CHUNK = 2**21  # numbers of one array while a run is replayed


@dataclass(frozen=True)
class _Stretch:
    """Steps lo .. hi of a run: every array is (B, hi − lo, n), of times t + 1 where not said otherwise."""

    lo: int
    hi: int
    total: NDArray  # S_{t+1}
    ratio: NDArray  # S_t / S_{t+1}
    a: NDArray
    p: NDArray  # p[t]
    feedback: NDArray  # Σ over feedback of W a[t]
    inputs: NDArray  # F x̄[t], without constants
    u: NDArray  # as recorded


def common_leak(net: Network) -> Neuron:
    """A neuron of the one λ that all populations have; ValueError where they differ.

    What a population receives is its senders' spikes averaged by its own λ, and these averages are the senders' rates
    only where that is theirs too.
    """
    leaks = {p.name: neuron.leak for p, neuron in zip(net.populations, net.neurons, strict=True)}
    if len(set(leaks.values())) > 1:
        told = ", ".join(f"{name!r} {leak:g}" for name, leak in leaks.items())
        raise ValueError(
            f"leaks differ between populations ({told}); (BALANCE), (ERR) and (FLOOR) are proved for one leak, "
            "expected the same of all; simulate, find_equilibrium, backward, certificates and check_gradient need none"
        )
    return net.neurons[0]


def _replay(frozen: Frozen, x: NDArray, rates: Rates) -> Iterator[_Stretch]:
    """The averages of a recorded run, a stretch of time at once."""
    net, neuron = frozen.network, common_leak(frozen.network)
    if rates.recording is None:
        raise ValueError("rates has no recording of every step; expected one from simulate(..., record=True)")
    x = frozen.check_input(x).astype(np.float64)
    n_batch, n_steps, n = rates.recording.s.shape
    if x.shape[0] != n_batch or (net.is_spike_input(x) and x.shape[1] != n_steps):
        raise ValueError(f"x has shape {x.shape}; expected the input of the run, {n_batch} samples and {n_steps} steps")
    nothing = np.zeros((n_batch, *net.input_shape)), np.zeros((n_batch, n))
    constants = certificates.pre_activations(frozen, *nothing)
    constant = np.concatenate([p.value for p in constants], axis=1)[:, None]
    n_in = int(np.prod(net.input_shape))
    a = sums = np.zeros((n_batch, 1, n))
    x_sums = np.zeros((n_batch, 1, n_in))
    still = None if net.is_spike_input(x) else _input_part(frozen, to_channels_last(x, net.input_shape)[:, None])
    size = max(1, _CHUNK // (n_batch * max(n, n_in)))
    for lo in range(0, n_steps, size):
        hi = min(lo + size, n_steps)
        total = np.array([neuron.total_weight(t) for t in range(lo, hi + 1)])[:, None]
        last = a[:, -1:]
        sums = _sums(rates.recording.s[:, lo:hi], sums[:, -1], neuron.leak)
        a = sums / total[1:]
        before = np.concatenate([last, a[:, :-1]], axis=1)
        if still is None:
            cells = to_channels_last(x[:, lo:hi].reshape(-1, *net.input_shape), net.input_shape)
            x_sums = _sums(cells.reshape(n_batch, -1, n_in), x_sums[:, -1], neuron.leak)
            inputs = _input_part(frozen, x_sums / total[1:])
        else:
            inputs = np.broadcast_to(still, a.shape)
        forward = np.zeros_like(a)
        feedback = np.zeros_like(a)
        for m, (source, target) in inner(frozen):
            into, sent = (forward, a) if source < target else (feedback, before)
            into[:, :, net.slice_of(target)] += along(m, sent[:, :, net.slice_of(source)])
        ratio = total[:-1] / total[1:]
        p = forward + ratio * feedback + inputs + constant
        yield _Stretch(lo, hi, total[1:], ratio, a, p, feedback, inputs, rates.recording.u[:, lo:hi])


def _sums(steps: NDArray, before: NDArray, leak: float) -> NDArray:
    """Σ λ^(t−τ) x[τ] after each of some steps (B, k, n), going on from the sum before them, (B, n)."""
    out = np.empty(steps.shape)
    for t in range(steps.shape[1]):
        before = leak * before + steps[:, t]
        out[:, t] = before
    return out


def _rounding_of_p(frozen: Frozen, x: NDArray, n_steps: int) -> NDArray:
    """(B, N) bounds, in the norm, of what the p[t] of ``_replay`` have lost to rounding, for any rates in [0, 1]."""
    net = frozen.network
    largest = np.abs(x).max(axis=1) if net.is_spike_input(x) else np.abs(x)
    sizes = certificates.pre_activations(frozen, largest, np.ones((len(x), net.state_size)), absolute=True)
    # Averages over time are sums of as many terms, none of them negative but for inputs. _replay adds constants apart,
    # multiplies by ratios and is allowed a few roundings more.
    share = (n_steps + 8.0) * ROUNDOFF
    return np.stack([4.0 * certificates.norm_above(p.error + share * p.value) for p in sizes], axis=1)


def _input_part(frozen: Frozen, cells: NDArray) -> NDArray:
    """F x of the input connections without constants, (B, m, n_in) to (B, m, n)."""
    net = frozen.network
    out = np.zeros((*cells.shape[:2], net.state_size))
    for m, (source, target) in zip(frozen.maps, net.edges, strict=True):
        if source < 0:
            out[:, :, net.slice_of(target)] += along(m, cells)
    return out


@dataclass(frozen=True)
class Split:
    """(BALANCE) and (SPLIT) of a run.

    Attributes
    ----------
    a : (B, T, n) array
        a[t] for t = 1..T, spikes per step.
    p : (B, T, n) array
        p[t−1], the average drive that a[t] answers.
    u_plus : (B, T, n) array
        u⁺[t] = u[t] − S_t (p[t−1] − clip(p[t−1], 0, V_th)), from the recorded potentials.
    balance_error, split_error : float
        Largest violation of (BALANCE) and of (SPLIT): rounding.
    """

    a: NDArray
    p: NDArray
    u_plus: NDArray
    balance_error: float
    split_error: float


def split(frozen: Frozen, x: NDArray, rates: Rates) -> Split:
    """u⁺ of every step of a recorded run: (BALANCE) and (SPLIT), two identities.

    (BALANCE) V_th a[t+1] = p[t] − u[t+1]/S_{t+1}; p[t] = (S_t/S_{t+1}) W a[t] + F x̄[t] + b, where only feedback has
    the factor S_t/S_{t+1}.

    (SPLIT) V_th a[t+1] = clip(p[t], 0, V_th) − u⁺[t+1]/S_{t+1}, which defines u⁺.

    Parameters
    ----------
    frozen : Frozen
    x : (B, *input_shape) array, or (B, T, *input_shape) for a spike train
        The input of the run.
    rates : Rates
        From ``simulate(..., record=True)``.

    Raises
    ------
    ValueError
        For a run without recording, an input that is not the run's, or populations of different leak.
    """
    frozen = check_run(frozen, "rates", rates, Rates)
    v_th = frozen.network.thresholds()
    parts = []
    balance = of_split = 0.0
    for s in _replay(frozen, x, rates):
        u = s.u.astype(np.float64)
        u_plus = u - s.total * (s.p - np.clip(s.p, 0.0, v_th))
        balance = max(balance, float(np.abs(v_th * s.a - (s.p - u / s.total)).max()))
        right = np.clip(s.p, 0.0, v_th) - u_plus / s.total
        of_split = max(of_split, float(np.abs(v_th * s.a - right).max()))
        parts.append((s.a, s.p, u_plus))
    a, p, u_plus = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    return Split(a, p, u_plus, balance, of_split)


@dataclass(frozen=True)
class ErrorBound:
    """(ERR) along a run, a column per population.

    What is bounded: E_l[t] = ‖a_l[t] − a*_l‖₂, entry by entry, and so their root of squares ‖a[t] − a*‖₂ too. The
    bounds hold in floating point: they are about the exact a* where ``certificate`` is finite, and about a* as it was
    computed where that is infinite, see ``why_not``.

    Attributes
    ----------
    error : (B, T, N) array
        E[t] for t = 1..T, with a* as it was computed.
    one_step : (B, T, N) array
        G E[t−1] + (I − L)⁻¹ r[t−1]/V_th with the errors observed at t − 1: the right-hand side of (ERR).
    iterated : (B, T, N) array
        G^t E[0] + Σ_τ G^{t−1−τ} (I − L)⁻¹ r[τ]/V_th: its sum, which knows the error at no time but 0.
    drift, input, potential : (B, T, N) arrays
        The three parts of r[t−1]: (1 − S_{t−1}/S_t) ‖Σ_feedback W a[t−1]‖, ‖F(x̄[t−1] − x*)‖ and ‖u⁺[t]‖/S_t, with
        u⁺/S = clip(p) − V_th a as (SPLIT) defines it.
    rounding : (B, N) array
        A fourth part, of floating point: V_th times the defect that a* as it was computed leaves in (FP), and what the
        averages, products and norms of the other parts may have lost.
    certificate : (B, N) array
        Bound of the distance between a* as it was computed and the exact one, (CERT); it is part of the bounds where it
        is finite.
    u_plus_sup : (B, N) array
        c of the theorems as it was observed: sup over t and neurons of |u⁺|.
    equilibrium : Equilibrium
    conditions : Conditions
    """

    error: NDArray
    one_step: NDArray
    iterated: NDArray
    drift: NDArray
    input: NDArray
    potential: NDArray
    rounding: NDArray
    certificate: NDArray
    u_plus_sup: NDArray
    equilibrium: Equilibrium
    conditions: Conditions

    @property
    def times(self) -> NDArray[np.int64]:
        """(T,) t = 1..T."""
        return np.arange(1, self.error.shape[1] + 1)

    def total(self, name: str) -> NDArray:
        """(B, T) of ``"error"``, ``"one_step"`` or ``"iterated"``, all populations together: the root of squares.

        ValueError for another name.
        """
        if name not in ("error", "one_step", "iterated"):
            raise ValueError(f"name is {name!r}; expected 'error', 'one_step' or 'iterated'")
        # Beyond (COND) the sum passes the root of the largest float long before it is infinite.
        with np.errstate(over="ignore"):
            return np.hypot.reduce(getattr(self, name), axis=2)

    @property
    def why_not(self) -> str:
        """Why the bounds are about a* as it was computed alone; empty where they are about the exact one."""
        return certificates.why_not(self.equilibrium.frozen)

    @property
    def violation(self) -> float:
        """Largest E[t] minus its bound: not positive."""
        return float(max((self.error - self.one_step).max(), (self.error - self.iterated).max()))

    @property
    def tightness(self) -> float:
        """Median over samples, times and populations of error over the one-step bound."""
        return median_ratio(self.error, self.one_step)

    def envelope(self) -> NDArray:
        """O(1/t) bound of IF over the run, (B, T, N): (1/t) (I − G)⁻² (E[0] + (I − L)⁻¹ R/V_th).

        R = sup_t (t r[t−1]) of the run; the input must converge as 1/t for it to stay finite with T.
        Infinite where the block condition does not hold. ValueError for LIF neurons.
        """
        net = self.equilibrium.network
        neuron = net.neurons[0]
        if neuron.leak != 1.0:
            raise ValueError(f"leak is {neuron.leak}; the O(1/t) envelope is for IF, expected leak 1 (see floor)")
        times = self.times[:, None]
        r = self.drift + self.input + self.potential + self.rounding[:, None]
        disturbance = raised((times * r).max(axis=1), 12)
        envelope = if_envelope(self.conditions, net.population_thresholds, disturbance, self._start, self.times)
        return envelope + certificates.known_to(self.certificate)[:, None]

    def floor(self) -> NDArray:
        """(FLOOR) with the observed c, (B, N): what the limit error of LIF cannot exceed, from above."""
        floor = lif_floor(self.conditions, self.equilibrium.network, self.u_plus_sup)
        return floor + certificates.known_to(self.certificate)

    def transient(self) -> NDArray:
        """What the iterated bound adds to ``floor`` at each time, (B, T, N), for LIF at a constant |u⁺| ≤ c."""
        net = self.equilibrium.network
        neuron = net.neurons[0]
        sizes = np.sqrt([p.size for p in net.populations])
        total = np.array([neuron.total_weight(int(t)) for t in self.times])[:, None]
        rest = self.drift + self.input + self.u_plus_sup[:, None] * sizes * (1.0 / total - (1.0 - neuron.leak))
        rest = np.maximum(rest, 0.0) + self.rounding[:, None]
        return _iterate(self.conditions, raised(rest / net.population_thresholds, 12), self._start)

    @property
    def _start(self) -> NDArray:
        """(B, N) E[0] = ‖a*‖ of each population, from above."""
        norms = population_norms(self.equilibrium.network, self.equilibrium.a.astype(np.float64))
        return raised(norms, self.equilibrium.a.shape[1] + 4)


def error_bound(
    frozen: Frozen, x: NDArray, rates: Rates, *, x_star: NDArray | None = None, known: Conditions | None = None
) -> ErrorBound:
    """(ERR) at every step of a recorded run.

    (ERR) ‖a[t+1] − a*‖ ≤ γ ‖a[t] − a*‖ + ((1 − S_t/S_{t+1}) ‖W a[t]‖ + ‖F(x̄[t] − x*)‖ + ‖u⁺[t+1]‖/S_{t+1})/V_th;
    γ = ‖W‖₂/V_th for one population, and for graphs the vector inequality at the top of this module.

    Parameters
    ----------
    frozen : Frozen
    x : (B, *input_shape) or (B, T, *input_shape) array
        The input of the run.
    rates : Rates
        From ``simulate(..., record=True)``.
    x_star : (B, *input_shape) array, optional
        x*. Any will do: (ERR) holds for each with its own a*. By default x̄ of the whole run.
    known : Conditions, optional
        Of this network, where they have been computed before; they do not depend on the leak.

    Returns
    -------
    ErrorBound
        Also where no condition holds: the inequality is true then too, for any a*, but its sum grows.

    Raises
    ------
    ValueError
        For a run without recording, an input that is not the run's, or populations of different leak; for an x*
        other than the batch's own where the network was frozen with the batch's statistics.
    NotConverged
        When a* cannot be found.
    """
    frozen = check_run(frozen, "rates", rates, Rates)
    if known is not None:
        _checks.kind("known", known, Conditions)
    net = frozen.network
    total = common_leak(net).total_weight(rates.n_steps)
    v_th, v_th_of_neurons = net.population_thresholds, net.thresholds()
    star = rates.x_mean
    if x_star is not None:
        if frozen.batch_size is not None:
            raise ValueError("x_star was given, but the network is frozen with a batch's statistics; expected none")
        star = _checks.reals("x_star", x_star)
        if star.shape != rates.x_mean.shape or not np.all(np.isfinite(star)):
            raise ValueError(f"x_star has shape {star.shape}; expected {rates.x_mean.shape}, finite, a sample a run")
    star = frozen.check_input(star)
    conditions_ = known or conditions(frozen)
    # Where (COND) holds there is one a*. Beyond it the run's own rates lead to one, mostly, when zero rates do not.
    equilibrium = find_equilibrium(frozen, star, method="newton", start=rates.a)
    a_star = equilibrium.a[:, None].astype(np.float64)
    input_star = _input_part(frozen, to_channels_last(star, net.input_shape)[:, None].astype(np.float64))
    columns = []
    c = np.zeros(rates.a.shape)
    for s in _replay(frozen, x, rates):
        # (SPLIT) defines u⁺: what potentials were recorded, and how the rollout rounded them, does not enter.
        u_plus = s.total * (np.clip(s.p, 0.0, v_th_of_neurons) - v_th_of_neurons * s.a)
        drift = (1.0 - s.ratio) * population_norms(net, s.feedback)
        of_input = population_norms(net, s.inputs - input_star)
        potential = population_norms(net, u_plus) / s.total
        columns.append((population_norms(net, s.a - a_star), drift, of_input, potential))
        c = np.maximum(c, np.abs(u_plus).max(axis=1))
    error, drift, of_input, potential = (np.concatenate(column, axis=1) for column in zip(*columns, strict=True))
    n_steps = rates.n_steps
    lost = _rounding_of_p(frozen, frozen.check_input(x), n_steps) + _rounding_of_p(frozen, star, 1)
    c = raised(np.maximum.reduceat(c, net.offsets[:-1], axis=1) + total * lost, 12)
    defect = certificates.defects(frozen, star, equilibrium.a)
    certificate = certificates.resolved(conditions_.both, defect)
    # Norms of n numbers, averages of T steps: relative to parts of r of at most this size.
    sizes = (drift + of_input + potential).max(axis=1)
    of_averages = (n_steps + 16.0) * ROUNDOFF * np.sqrt([p.size for p in net.populations])
    rounding = v_th * defect + 3.0 * lost + (net.state_size + 32.0) * ROUNDOFF * sizes + 2.0 * v_th * of_averages
    norms = population_norms(net, a_star)
    before = raised(np.concatenate([norms, error[:, :-1]], axis=1), net.state_size + 4) + of_averages
    r = raised((drift + of_input + potential + rounding[:, None]) / v_th, 12)
    one_step = before @ conditions_.propagation.T + r @ conditions_.resolvent.T
    one_step = raised(one_step, 2 * len(net.populations) + 8)
    iterated = _iterate(conditions_, r, raised(norms[:, 0], net.state_size + 4))
    one_step, iterated = (bound + certificates.known_to(certificate)[:, None] for bound in (one_step, iterated))
    return ErrorBound(
        error, one_step, iterated, drift, of_input, potential, rounding, certificate, c, equilibrium, conditions_
    )


def fixed_point_residual(frozen: Frozen, x: NDArray, rates: Rates, times: ArrayLike) -> NDArray:
    """‖f(a[t]) − a[t]‖₂ in spikes per step, over all populations: how far the rates of a run are from solving (FP).

    It needs no a*, so it can be told where none was found.

    Parameters
    ----------
    frozen : Frozen
    x : (B, *input_shape) or (B, T, *input_shape) array
        The input of the run; x* is its x̄ over the whole run.
    rates : Rates
        From ``simulate(..., record=True)``.
    times : (K,) ints
        Steps t from 1 to T, ascending.

    Returns
    -------
    (B, K) array

    Raises
    ------
    ValueError
        For a run without recording, an input that is not the run's, times that are not of the run, or populations of
        different leak.
    """
    frozen = check_run(frozen, "rates", rates, Rates)
    wanted = _checks.reals("times", times)
    if wanted.ndim != 1 or not wanted.size or not np.all(np.isin(wanted, np.arange(1, rates.n_steps + 1))):
        raise ValueError(f"times has shape {wanted.shape}; expected whole numbers from 1 to {rates.n_steps}, ascending")
    if np.any(np.diff(wanted) <= 0):
        raise ValueError(f"times is not ascending; expected whole numbers from 1 to {rates.n_steps} in order")
    wanted = wanted.astype(np.int64)
    drive = frozen.drive(frozen.check_input(rates.x_mean))
    columns = []
    for s in _replay(frozen, x, rates):
        for t in wanted[(wanted > s.lo) & (wanted <= s.hi)]:
            a = s.a[:, t - 1 - s.lo].astype(frozen.dtype)
            columns.append(np.linalg.norm(sweep(frozen, a, drive).a - a, axis=1))
    return np.stack(columns, axis=1)


def _iterate(conditions_: Conditions, r: NDArray, start: NDArray) -> NDArray:
    """b[t] = G b[t−1] + (I − L)⁻¹ r[t−1], (B, T, N), from b[0] = ``start``; ``r`` is over V_th already."""
    n = len(conditions_.forward)
    given = raised(r @ conditions_.resolvent.T, n + 4)
    out = np.empty_like(given)
    # Where no condition holds the sum outgrows the floats: infinity is the bound then. No factor is 0.
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(given.shape[1]):
            start = raised(start @ conditions_.propagation.T + given[:, t], n + 5)
            out[:, t] = start
    return out


def if_envelope(
    conditions_: Conditions, v_th: float | NDArray, disturbance: NDArray, start: NDArray, times: ArrayLike
) -> NDArray:
    """Bound of E[t] where r[t−1] ≤ R/t: (1/t) (I − G)⁻² (E[0] + (I − L)⁻¹ R/V_th).

    Both steps are entry by entry and use Σ_j (1+j) G^j = (I − G)⁻²: 1/τ ≤ (1 + t − τ)/t for 1 ≤ τ ≤ t turns
    the sum into that series, and t G^t is at most one of its terms.

    Parameters
    ----------
    v_th : float or (N,) array
        V_th of all populations, or of each.
    disturbance : (B, N) array
        R.
    start : (B, N) array
        E[0] = ‖a*‖ of each population.
    times : (T,) array
        t ≥ 1.

    Returns
    -------
    (B, T, N) array, infinite where the block condition does not hold.
    """
    times = np.asarray(times, np.float64)[:, None]
    # Raised above 0, for the series is infinite where the condition does not hold.
    total = raised(start + (disturbance / v_th) @ conditions_.resolvent.T, len(conditions_.forward) + 2)
    constant = total @ (conditions_.series @ conditions_.series).T
    return raised(constant[:, None] / times, 3 * len(conditions_.forward) + 10)


def lif_floor(conditions_: Conditions, net: Network, c: NDArray) -> NDArray:
    """What the limit error of LIF cannot exceed: (I − G)⁻¹ (I − L)⁻¹ (1 − λ) c √n/V_th, a column per population.

    (FLOOR) (1 − λ) c √n/(V_th (1 − γ)); c = sup |u⁺| for one population.

    Parameters
    ----------
    c : (B, N) array
        sup |u⁺| of each population.

    Returns
    -------
    (B, N) array, infinite where the block condition does not hold; 0 for IF.

    Raises
    ------
    ValueError
        For populations of different leak.
    """
    sizes = np.sqrt([p.size for p in net.populations])
    # Raised above 0, for the series is infinite where the condition does not hold.
    rest = raised((1.0 - common_leak(net).leak) * c * sizes / net.population_thresholds, 4)
    return raised(rest @ (conditions_.series @ conditions_.resolvent).T, 2 * len(sizes) + 16)
