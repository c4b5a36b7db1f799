"""The theorems as functions: u⁺, the one-step bound (ERR) along a run, its sums and limits, the conditions.

Nothing is a scalar here that a graph makes a vector: E[t] is the vector of ‖a_l[t] − a*_l‖₂, one entry a
population. With L and U the non-negative matrices of ‖W_lk‖₂/V_th of forward and of feedback connections and
r[t] the vector of what disturbs each population,

    E[t+1] ≤ L E[t+1] + U E[t] + r[t]/V_th,   hence   E[t+1] ≤ G E[t] + (I − L)⁻¹ r[t]/V_th,   G = (I − L)⁻¹ U,

entry by entry. For one population this is (ERR) with G = γ. ``docs/derivations.md`` has the proofs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ide_ref import _checks
from ide_ref.constraints import leading_singular_pair
from ide_ref.continuous import ContinuousRun, constant_drive, time_constant
from ide_ref.equilibrium import Equilibrium, find_equilibrium, sweep
from ide_ref.network import Frozen, FrozenConnection, Network
from ide_ref.simulation import Rates
from ide_ref.synapses import to_cells

EXACT_SIZE = 1024
"""A map with at most so many rows and columns gets its norm from a full decomposition."""

_CHUNK = 2**21  # numbers of one array while a run is replayed


# --- conditions -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OperatorNorm:
    """‖W‖₂ of a linear map.

    Attributes
    ----------
    name : str
        Of the connection, or ``"stacked"``.
    value : float
    error : float
        0 where the value comes from a full decomposition. Otherwise ‖Wᵀu − σv‖₂ of the last singular triple:
        W has a singular value that close to ``value``, which is itself never above ‖W‖₂ but for rounding.
    """

    name: str
    value: float
    error: float


def verdict(contraction: float) -> str:
    """(COND) in words: whether it holds for a network of this γ, and what that means."""
    if contraction < 1:
        return "(COND) holds: the average rates converge to the equilibrium"
    return "(COND) does not hold: the theorems promise no equilibrium for these weights"


@dataclass(frozen=True)
class Conditions:
    """(COND) and sharper ones, side by side. Each is sufficient where it is below 1.

    Attributes
    ----------
    norms : tuple of OperatorNorm
        Of every connection between populations.
    paper : float
        (COND): for layers the product of the norms over V_th^N; for any other graph ‖G‖₂ on the feedback
        sources, which is that product where there is one path.
    block : float
        Spectral radius of G, the sharpest that norms alone can say. Equal to ``paper`` for layers.
    elementwise : float or None
        Spectral radius of the same matrix built from |W_ij| instead of norms, one row a neuron. Neither
        implies the other: 0 for a feedback without cycles, however large its norm. None for large networks.
    stacked : OperatorNorm
        ‖B‖₂/V_th of the block matrix B of all connections. Below 1, a* is unique; it is γ itself where every
        connection carries the same delay, as in continuous time, but does not speak of (LAYERS)' timing.
    forward, feedback : (N, N) arrays
        L and U.
    """

    norms: tuple[OperatorNorm, ...]
    paper: float
    block: float
    elementwise: float | None
    stacked: OperatorNorm
    forward: NDArray
    feedback: NDArray

    @property
    def applies(self) -> bool:
        """Whether one of the conditions for the discrete theorems holds."""
        return min(self.paper, self.block, np.inf if self.elementwise is None else self.elementwise) < 1.0

    @cached_property
    def resolvent(self) -> NDArray:
        """(I − L)⁻¹, (N, N): how a disturbance of one population reaches the later ones in the same step."""
        return _neumann(self.forward)

    @cached_property
    def propagation(self) -> NDArray:
        """G = (I − L)⁻¹ U, (N, N)."""
        return self.resolvent @ self.feedback

    def describe(self) -> str:
        """One line: the numbers, and whether the theorems speak of this network."""
        elementwise = "not computed" if self.elementwise is None else f"{self.elementwise:.4g}"
        verdict = (
            "a condition holds: the theorems apply"
            if self.applies
            else "no condition holds: the theorems do not apply, what is shown is what was observed"
        )
        return (
            f"(COND) {self.paper:.4g}, block radius {self.block:.4g}, elementwise radius {elementwise}, "
            f"stacked norm {self.stacked.value:.4g} (error {self.stacked.error:.1e}); {verdict}"
        )


def conditions(frozen: Frozen) -> Conditions:
    """(COND) of a network in operator norms, and the sharper conditions of the block system.

    Parameters
    ----------
    frozen : Frozen
        Dropout masks count with their largest factor.
    """
    _checks.kind("frozen", frozen, Frozen)
    net = frozen.network
    n = len(net.populations)
    forward, feedback = np.zeros((2, n, n))
    norms = []
    for c, (source, target) in _inner(frozen):
        norm = operator_norm(c)
        norms.append(norm)
        # Parallel connections: the norm of their sum is at most the sum of their norms.
        (forward if source < target else feedback)[target, source] += norm.value / net.neuron.v_th
    G = _neumann(forward) @ feedback
    sources = list(net.feedback_sources)
    paper = float(np.linalg.norm(G[np.ix_(sources, sources)], 2)) if sources else 0.0
    block = float(np.max(np.abs(np.linalg.eigvals(G))))
    elementwise = None
    if net.state_size <= EXACT_SIZE:
        parts = np.abs(np.stack([block_matrix(frozen, part) for part in ("forward", "feedback")])) / net.neuron.v_th
        once = np.linalg.solve(np.eye(net.state_size) - parts[0], parts[1])
        elementwise = float(np.max(np.abs(np.linalg.eigvals(once))))
    return Conditions(tuple(norms), paper, block, elementwise, _stacked_norm(frozen), forward, feedback)


def operator_norm(c: FrozenConnection) -> OperatorNorm:
    """‖scale ⊙ W‖₂ of a connection at its input size, times the largest factor of its mask.

    By a full decomposition up to ``EXACT_SIZE`` neurons on both sides, by Golub-Kahan bidiagonalisation beyond.
    """
    plain = _plain(c)
    factor = 1.0 if c.keep is None else float(c.keep.max(initial=0.0))
    if max(c.synapse.n_in, c.synapse.n_out) <= EXACT_SIZE:
        value = np.linalg.norm(plain.linear(np.eye(c.synapse.n_in)), 2)
        return OperatorNorm(c.connection.name, factor * float(value), 0.0)
    start = np.random.default_rng(0).standard_normal(c.synapse.n_in).astype(c.taps.dtype)
    tol = 1e-6 if c.taps.dtype == np.float64 else 1e-4
    pair = leading_singular_pair(
        lambda v: plain.linear(v[None])[0], lambda v: plain.adjoint(v[None])[0], start, tol=tol
    )
    return OperatorNorm(c.connection.name, factor * pair.value, factor * pair.value * pair.residual)


def block_matrix(frozen: Frozen, part: str = "all") -> NDArray:
    """The block matrix of the connections between populations, (n, n): row the receiving neuron.

    Parameters
    ----------
    part : {"all", "forward", "feedback"}
        Which connections. For small networks: n² numbers. Dropout masks count with their largest factor.
    """
    _checks.kind("frozen", frozen, Frozen)
    if not _checks.is_one_of(part, ("all", "forward", "feedback")):
        raise ValueError(f"part is {part!r}; expected 'all', 'forward' or 'feedback'")
    net = frozen.network
    B = np.zeros((net.state_size, net.state_size))
    for c, (source, target) in _inner(frozen):
        if part == "all" or part == ("forward" if source < target else "feedback"):
            factor = 1.0 if c.keep is None else float(c.keep.max(initial=0.0))
            B[net.place(target), net.place(source)] += factor * _plain(c).linear(np.eye(c.synapse.n_in)).T
    return B


def _stacked_norm(frozen: Frozen) -> OperatorNorm:
    net = frozen.network
    n, v_th = net.state_size, net.neuron.v_th
    if n <= EXACT_SIZE:
        return OperatorNorm("stacked", float(np.linalg.norm(block_matrix(frozen), 2)) / v_th, 0.0)
    inner = [(_plain(c), c.keep, ends) for c, ends in _inner(frozen)]

    def product(v: NDArray, transposed: bool) -> NDArray:
        out = np.zeros(n, v.dtype)
        for c, keep, (source, target) in inner:
            reads, writes = (target, source) if transposed else (source, target)
            part = v[None, net.place(reads)]
            factor = 1.0 if keep is None else float(keep.max(initial=0.0))
            out[net.place(writes)] += factor * (c.adjoint(part) if transposed else c.linear(part))[0]
        return out

    start = np.random.default_rng(0).standard_normal(n).astype(frozen.dtype)
    tol = 1e-6 if frozen.dtype == np.float64 else 1e-4
    pair = leading_singular_pair(lambda v: product(v, False), lambda v: product(v, True), start, tol=tol)
    return OperatorNorm("stacked", pair.value / v_th, pair.value * pair.residual / v_th)


def _plain(c: FrozenConnection) -> FrozenConnection:
    """The connection as a linear map of one sample, as the rollout applies it, without its mask."""
    if c.couples:
        raise ValueError(
            f"connection {c.connection.name!r} couples the samples of a batch; the theorems need affine connections"
        )
    return replace(c.simulated, keep=None, z=None)


def _inner(frozen: Frozen) -> Iterator[tuple[FrozenConnection, tuple[int, int]]]:
    """Connections between populations with their ends."""
    for c, ends in zip(frozen.connections, frozen.network.ends, strict=True):
        if ends[0] >= 0:
            yield c, ends


# --- a run replayed ---------------------------------------------------------------------------------


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


def _replay(frozen: Frozen, x: NDArray, rates: Rates) -> Iterator[_Stretch]:
    """The averages of a recorded run, a stretch of time at once."""
    net, neuron = frozen.network, frozen.network.neuron
    if rates.spikes is None or rates.potentials is None:
        raise ValueError("rates has no recording of every step; expected one from simulate(..., record=True)")
    x = frozen.check_input(x).astype(np.float64)
    n_batch, n_steps, n = rates.spikes.shape
    if x.shape[0] != n_batch or (net.is_train(x) and x.shape[1] != n_steps):
        raise ValueError(f"x has shape {x.shape}; expected the input of the run, {n_batch} samples and {n_steps} steps")
    # Connections of the input are affine too; its constant part is in ``constants``.
    constants = frozen.constants(n_batch, with_input=True)[:, None].astype(np.float64)
    n_in = int(np.prod(net.input_shape))
    weight = np.zeros((n_batch, n))
    weight_x = np.zeros((n_batch, n_in))
    still = None if net.is_train(x) else _input_part(frozen, to_cells(x, net.input_shape)[:, None])
    size = max(1, _CHUNK // (n_batch * max(n, n_in)))
    for lo in range(0, n_steps, size):
        hi = min(lo + size, n_steps)
        total = np.array([neuron.total_weight(t + 1) for t in range(lo, hi)])[:, None]
        before_total = np.array([neuron.total_weight(t) for t in range(lo, hi)])[:, None]
        a = np.empty((n_batch, hi - lo, n))
        before = np.empty_like(a)
        for t in range(lo, hi):
            before[:, t - lo] = weight / max(neuron.total_weight(t), 1.0)
            weight = neuron.leak * weight + rates.spikes[:, t]
            a[:, t - lo] = weight
        a /= total
        if still is None:
            x_mean = np.empty((n_batch, hi - lo, n_in))
            for t in range(lo, hi):
                weight_x = neuron.leak * weight_x + to_cells(x[:, t], net.input_shape)
                x_mean[:, t - lo] = weight_x
            inputs = _input_part(frozen, x_mean / total)
        else:
            inputs = np.broadcast_to(still, a.shape)
        forward = np.zeros_like(a)
        feedback = np.zeros_like(a)
        for c, (source, target) in _inner(frozen):
            into, sent = (forward, a) if source < target else (feedback, before)
            into[:, :, net.place(target)] += _along(c, sent[:, :, net.place(source)])
        ratio = before_total / total
        yield _Stretch(lo, hi, total, ratio, a, forward + ratio * feedback + inputs + constants, feedback, inputs)


def _along(c: FrozenConnection, cells: NDArray) -> NDArray:
    """The linear part for (B, m, n_from): (B, m, n_to)."""
    out = _plain(c).linear(cells.reshape(-1, cells.shape[2])).reshape(*cells.shape[:2], -1)
    return out if c.keep is None else c.keep[:, None] * out


def _input_part(frozen: Frozen, cells: NDArray) -> NDArray:
    """F x of the input connections without constants, (B, m, n_in) to (B, m, n)."""
    net = frozen.network
    out = np.zeros((*cells.shape[:2], net.state_size))
    for c, (source, target) in zip(frozen.connections, net.ends, strict=True):
        if source < 0:
            out[:, :, net.place(target)] += _along(c, cells)
    return out


@dataclass(frozen=True)
class Split:
    """(BALANCE) and (SPLIT) of a run.

    Attributes
    ----------
    a : (B, T, n) array
        a[t] for t = 1..T.
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

    (BALANCE) is V_th a[t+1] = p[t] − u[t+1]/S_{t+1} with p[t] = (S_t/S_{t+1}) W a[t] + F x̄[t] + b, (SPLIT) is
    V_th a[t+1] = clip(p[t], 0, V_th) − u⁺[t+1]/S_{t+1} and defines u⁺; only feedback has the factor S_t/S_{t+1}.

    Parameters
    ----------
    frozen : Frozen
    x : array
        The input of the run.
    rates : Rates
        From ``simulate(..., record=True)``.

    Raises
    ------
    ValueError
        For a run without recording, or an input that is not the run's.
    """
    _check_run(frozen, "rates", rates, Rates)
    v_th = frozen.network.neuron.v_th
    parts = []
    balance = of_split = 0.0
    for s in _replay(frozen, x, rates):
        u = _potentials(rates, s)
        u_plus = u - s.total * (s.p - np.clip(s.p, 0.0, v_th))
        balance = max(balance, float(np.abs(v_th * s.a - (s.p - u / s.total)).max(initial=0.0)))
        right = np.clip(s.p, 0.0, v_th) - u_plus / s.total
        of_split = max(of_split, float(np.abs(v_th * s.a - right).max(initial=0.0)))
        parts.append((s.a, s.p, u_plus))
    a, p, u_plus = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    return Split(a, p, u_plus, balance, of_split)


def _check_run(frozen: Frozen, name: str, run: Rates | ContinuousRun, kind: type) -> None:
    """Refuse what is no run, or one of another network."""
    _checks.kind("frozen", frozen, Frozen)
    _checks.kind(name, run, kind)
    if run.network != frozen.network:
        raise ValueError(f"{name} is a run of another network than frozen; expected one of the same")


def _potentials(rates: Rates, s: _Stretch) -> NDArray:
    if rates.potentials is None:
        raise ValueError("rates has no recording of every step; expected one from simulate(..., record=True)")
    return rates.potentials[:, s.lo : s.hi].astype(np.float64)


@dataclass(frozen=True)
class ErrorBound:
    """(ERR) along a run, a column a population.

    What is bounded: E_l[t] = ‖a_l[t] − a*_l‖₂, entry by entry, and so their root of squares ‖a[t] − a*‖₂ too.

    Attributes
    ----------
    error : (B, T, N) array
        E[t] for t = 1..T.
    one_step : (B, T, N) array
        G E[t−1] + (I − L)⁻¹ r[t−1]/V_th with the errors observed at t − 1: the right-hand side of (ERR).
    iterated : (B, T, N) array
        G^t E[0] + Σ_τ G^{t−1−τ} (I − L)⁻¹ r[τ]/V_th: its sum, which knows the error at no time but 0.
    drift, input, potential : (B, T, N) arrays
        The three parts of r[t−1]: (1 − S_{t−1}/S_t) ‖Σ_feedback W a[t−1]‖, ‖F(x̄[t−1] − x*)‖ and ‖u⁺[t]‖/S_t.
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
    u_plus_sup: NDArray
    equilibrium: Equilibrium
    conditions: Conditions

    @property
    def times(self) -> NDArray[np.int64]:
        """(T,) t = 1..T."""
        return np.arange(1, self.error.shape[1] + 1)

    def total(self, name: str) -> NDArray:
        """(B, T) of ``"error"``, ``"one_step"`` or ``"iterated"``, all populations together: the root of squares."""
        if name not in ("error", "one_step", "iterated"):
            raise ValueError(f"name is {name!r}; expected 'error', 'one_step' or 'iterated'")
        # Beyond (COND) the sum passes the root of the largest float long before it is infinite.
        with np.errstate(over="ignore"):
            return np.hypot.reduce(getattr(self, name), axis=2)

    @property
    def violation(self) -> float:
        """Largest E[t] minus its bound: positive by no more than rounding."""
        return float(max((self.error - self.one_step).max(), (self.error - self.iterated).max()))

    @property
    def tightness(self) -> float:
        """Median over samples, times and populations of error over the one-step bound."""
        return _median_ratio(self.error, self.one_step)

    def envelope(self) -> NDArray:
        """O(1/t) bound of IF over the run, (B, T, N): (1/t) (I − G)⁻² (E[0] + (I − L)⁻¹ R/V_th).

        R = sup_t (t r[t−1]) of the run; the input must converge as 1/t for it to stay finite with T.
        Infinite where the block condition does not hold.
        """
        leak = self.equilibrium.network.neuron.leak
        if leak != 1.0:
            raise ValueError(f"leak is {leak}; the O(1/t) envelope is for IF, expected leak 1 (see floor)")
        times = self.times[:, None]
        disturbance = (times * (self.drift + self.input + self.potential)).max(axis=1)
        start = _population_norms(self.equilibrium.network, self.equilibrium.a[:, None])[:, 0]
        return if_envelope(self.conditions, self._v_th, disturbance, start, self.times)

    def floor(self) -> NDArray:
        """(FLOOR) with the observed c, (B, N): what the limit error of LIF cannot exceed."""
        net = self.equilibrium.network
        return lif_floor(self.conditions, net, self.u_plus_sup)

    @property
    def _v_th(self) -> float:
        return self.equilibrium.network.neuron.v_th

    def transient(self) -> NDArray:
        """What the iterated bound adds to ``floor`` at each time, (B, T, N), for LIF at a constant |u⁺| ≤ c."""
        net = self.equilibrium.network
        sizes = np.sqrt([p.size for p in net.populations])
        total = np.array([net.neuron.total_weight(int(t)) for t in self.times])[:, None]
        rest = self.drift + self.input + self.u_plus_sup[:, None] * sizes * (1.0 / total - (1.0 - net.neuron.leak))
        start = _population_norms(net, self.equilibrium.a[:, None])[:, 0]
        return _iterate(self.conditions, rest / self._v_th, start)


def error_bound(
    frozen: Frozen, x: NDArray, rates: Rates, *, x_star: NDArray | None = None, known: Conditions | None = None
) -> ErrorBound:
    """(ERR) at every step of a recorded run.

    For one population ‖a[t+1] − a*‖ ≤ γ ‖a[t] − a*‖ + ((1 − S_t/S_{t+1}) ‖W a[t]‖ + ‖F(x̄[t] − x*)‖
    + ‖u⁺[t+1]‖/S_{t+1})/V_th with γ = ‖W‖₂/V_th; for graphs the vector inequality at the top of this module.

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
        For a run without recording, or an input that is not the run's; for an x* other than the batch's own
        where the network was frozen with the batch's statistics.
    NotConverged
        When a* cannot be found.
    """
    _check_run(frozen, "rates", rates, Rates)
    if known is not None:
        _checks.kind("known", known, Conditions)
    net = frozen.network
    v_th = net.neuron.v_th
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
    input_star = _input_part(frozen, to_cells(star, net.input_shape)[:, None].astype(np.float64))
    columns = []
    c = np.zeros((len(rates.a), len(net.populations)))
    for s in _replay(frozen, x, rates):
        u_plus = _potentials(rates, s) - s.total * (s.p - np.clip(s.p, 0.0, v_th))
        drift = (1.0 - s.ratio) * _population_norms(net, s.feedback)
        of_input = _population_norms(net, s.inputs - input_star)
        columns.append(
            (_population_norms(net, s.a - a_star), drift, of_input, _population_norms(net, u_plus) / s.total)
        )
        sups = [np.abs(u_plus[:, :, net.place(i)]).max(axis=(1, 2)) for i in range(len(net.populations))]
        c = np.maximum(c, np.stack(sups, axis=1))
    error, drift, of_input, potential = (np.concatenate(column, axis=1) for column in zip(*columns, strict=True))
    start = _population_norms(net, a_star)
    r = (drift + of_input + potential) / v_th
    before = np.concatenate([start, error[:, :-1]], axis=1)
    one_step = before @ conditions_.propagation.T + r @ conditions_.resolvent.T
    iterated = _iterate(conditions_, r, start[:, 0])
    return ErrorBound(error, one_step, iterated, drift, of_input, potential, c, equilibrium, conditions_)


def fixed_point_residual(frozen: Frozen, x: NDArray, rates: Rates, times: ArrayLike) -> NDArray:
    """‖f(a[t]) − a[t]‖₂ over all populations: how far the rates of a run are from solving (FP).

    It needs no a*, so it can be told where none was found.

    Parameters
    ----------
    frozen : Frozen
    x : (B, *input_shape) or (B, T, *input_shape) array
        The input of the run; x* is its x̄ over the whole run.
    rates : Rates
        From ``simulate(..., record=True)``.
    times : (K,) ints
        t from 1 to T, ascending.

    Returns
    -------
    (B, K) array

    Raises
    ------
    ValueError
        For a run without recording, an input that is not the run's, or times that are not of the run.
    """
    _check_run(frozen, "rates", rates, Rates)
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


@dataclass(frozen=True)
class ContinuousBound:
    """(ERR) in continuous time at the requested times of a run, a column a population.

    All connections between populations carry the delay there, so that with N = L + U, E(t) = ‖a_l(t) − a*_l‖₂
    and a* = ReLU((W a* + F x* + b)/V_th),

        E(t) ≤ N E(t − Δ) + r(t)/V_th,

    and for Δ = 0 E(t) ≤ (I − N)⁻¹ r(t)/V_th.

    Attributes
    ----------
    error, error_delayed : (M, N) arrays
        E(t) and E(t − Δ); before the first spike can have arrived the latter is ‖a*‖.
    one_step : (M, N) array
        The right-hand side.
    drift, input, potential : (M, N) arrays
        (1 − K(t−Δ)/K(t)) ‖W a(t−Δ)‖, ‖F(x̄(t) − x*)‖ and ‖u⁺(t)‖/K(t).
    stacked : (M,) array
        The same for all populations as one vector, with γ = ‖B‖₂/V_th of the block matrix; bounds
        ‖a(t) − a*‖₂. For one population it is ``one_step``.
    u_plus_sup : (N,) array
        sup |u⁺| over the requested times.
    equilibrium : Equilibrium
    conditions : Conditions
    """

    error: NDArray
    error_delayed: NDArray
    one_step: NDArray
    drift: NDArray
    input: NDArray
    potential: NDArray
    stacked: NDArray
    u_plus_sup: NDArray
    equilibrium: Equilibrium
    conditions: Conditions

    @property
    def total_error(self) -> NDArray:
        """(M,) ‖a(t) − a*‖₂ over all populations."""
        return np.linalg.norm(self.error, axis=1)

    @property
    def tightness(self) -> float:
        """Median of error over one-step bound."""
        return _median_ratio(self.error, self.one_step)

    def floor(self, tau: float) -> NDArray:
        """(N,) limit of the bound: (I − N)⁻¹ c √n/(τ_m V_th), 0 for IF (infinite τ_m)."""
        tau = time_constant("tau", tau)
        net = self.equilibrium.network
        if self.conditions.block >= 1.0:
            return np.full(len(net.populations), np.inf)
        sizes = np.sqrt([p.size for p in net.populations])
        N = self.conditions.forward + self.conditions.feedback
        return _neumann(N) @ (self.u_plus_sup * sizes / (tau * net.neuron.v_th))


def continuous_error_bound(frozen: Frozen, x_star: NDArray, run: ContinuousRun) -> ContinuousBound:
    """(ERR) at the requested times of a run in continuous time.

    Parameters
    ----------
    frozen : Frozen
        The network of the run.
    x_star : (*input_shape) array
        x*. Any will do: (ERR) holds for each with its own a*.
    run : ContinuousRun

    Raises
    ------
    NotConverged
        When a* cannot be found.
    """
    _check_run(frozen, "run", run, ContinuousRun)
    net, v_th = frozen.network, frozen.network.neuron.v_th
    star = _checks.reals("x_star", x_star)
    if star.shape != net.input_shape or not np.all(np.isfinite(star)):
        raise ValueError(f"x_star has shape {star.shape}; expected {net.input_shape}, finite, one sample")
    conditions_ = conditions(frozen)
    equilibrium = find_equilibrium(frozen, star[None], method="newton", sigma="relu")
    drift = (1.0 - run.ratio)[:, None] * run.recurrent
    of_input = run.drive - constant_drive(frozen, equilibrium.x_mean)
    potential = run.u_plus / run.kernel_total[:, None]
    errors = (run.a - equilibrium.a, run.a_delayed - equilibrium.a)
    error, delayed, drift_, input_, potential_ = (
        _population_norms(net, part[None])[0] for part in (*errors, drift, of_input, potential)
    )
    r = (drift_ + input_ + potential_) / v_th
    N = conditions_.forward + conditions_.feedback
    gamma = conditions_.stacked.value
    whole = sum(np.linalg.norm(part, axis=1) for part in (drift, of_input, potential)) / v_th
    if run.delay > 0:
        one_step = delayed @ N.T + r
        stacked = gamma * np.linalg.norm(errors[1], axis=1) + whole
    else:
        # Without delay the error stands on both sides.
        infinite = np.full_like(r, np.inf)
        one_step = r @ _neumann(N).T if conditions_.block < 1.0 else infinite
        stacked = whole / (1.0 - gamma) if gamma < 1.0 else infinite[:, 0]
    c = np.array([np.abs(run.u_plus[:, net.place(i)]).max(initial=0.0) for i in range(len(net.populations))])
    return ContinuousBound(
        error, delayed, one_step, drift_, input_, potential_, stacked, c, equilibrium, conditions_
    )


def continuous_envelope(
    conditions_: Conditions, v_th: float, disturbance: NDArray, largest: NDArray, times: ArrayLike, delay: float
) -> NDArray:
    """O(1/t) bound of E(t) for IF in continuous time, where r(t) ≤ R/t: N^m E_sup + (2/t) (I − N)⁻¹ R/V_th.

    m = ⌊t/(2Δ)⌋ steps back lead to no time before t/2, and r is at most 2R/t after that.

    Parameters
    ----------
    disturbance, largest : (N,) arrays
        R, and a bound of E at all times.

    Returns
    -------
    (M, N) array, infinite where the block condition does not hold.
    """
    times = np.asarray(times, np.float64)
    N = conditions_.forward + conditions_.feedback
    if conditions_.block >= 1.0:
        return np.full((times.size, len(N)), np.inf)
    sum_ = _neumann(N) @ (disturbance / v_th)
    if delay == 0:
        return sum_ / times[:, None]
    steps = np.floor(times / (2 * delay)).astype(int)
    start = np.stack([np.linalg.matrix_power(N, int(m)) @ largest for m in steps])
    return start + 2.0 * sum_ / times[:, None]


def _iterate(conditions_: Conditions, r: NDArray, start: NDArray) -> NDArray:
    """b[t] = G b[t−1] + (I − L)⁻¹ r[t−1], (B, T, N), from b[0] = ``start``; ``r`` is over V_th already."""
    given = r @ conditions_.resolvent.T
    out = np.empty_like(given)
    b = start
    # Where no condition holds the sum outgrows the floats: infinity is the bound then.
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(given.shape[1]):
            b = b @ conditions_.propagation.T + given[:, t]
            out[:, t] = b
    out[np.isnan(out)] = np.inf
    return out


def if_envelope(
    conditions_: Conditions, v_th: float, disturbance: NDArray, start: NDArray, times: ArrayLike
) -> NDArray:
    """Bound of E[t] where r[t−1] ≤ R/t: (1/t) (I − G)⁻² (E[0] + (I − L)⁻¹ R/V_th).

    Both steps are entry by entry and use Σ_j (1+j) G^j = (I − G)⁻²: 1/τ ≤ (1 + t − τ)/t for 1 ≤ τ ≤ t turns
    the sum into that series, and t G^t is at most one of its terms.

    Parameters
    ----------
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
    if conditions_.block >= 1.0:
        return np.full((len(start), len(times), start.shape[1]), np.inf)
    inverse = _neumann(conditions_.propagation)
    constant = (start + disturbance @ conditions_.resolvent.T / v_th) @ (inverse @ inverse).T
    return constant[:, None] / times


def lif_floor(conditions_: Conditions, net: Network, c: NDArray) -> NDArray:
    """(FLOOR): (I − G)⁻¹ (I − L)⁻¹ (1 − λ) c √n/V_th, a column a population; (1 − λ) c √n/(V_th (1 − γ)) for one.

    Parameters
    ----------
    c : (B, N) array
        sup |u⁺| of each population.

    Returns
    -------
    (B, N) array, infinite where the block condition does not hold; 0 for IF.
    """
    if conditions_.block >= 1.0:
        return np.full(c.shape, np.inf)
    sizes = np.sqrt([p.size for p in net.populations])
    rest = (1.0 - net.neuron.leak) * c * sizes / net.neuron.v_th
    inverse = _neumann(conditions_.propagation)
    return rest @ (inverse @ conditions_.resolvent).T


def _neumann(A: NDArray) -> NDArray:
    """(I − A)⁻¹ = Σ A^k of a non-negative matrix with a spectral radius below 1: non-negative, rounding or not."""
    return np.maximum(np.linalg.inv(np.eye(len(A)) - A), 0.0)


def _population_norms(net: Network, state: NDArray) -> NDArray:
    """(B, m, n) to (B, m, N)."""
    return np.stack(
        [np.linalg.norm(state[:, :, net.place(i)], axis=2) for i in range(len(net.populations))], axis=2
    )


def _median_ratio(error: NDArray, bound: NDArray) -> float:
    ratios = error[bound > 0] / bound[bound > 0]
    return float(np.median(ratios)) if ratios.size else 0.0
