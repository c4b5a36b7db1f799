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

from ide_ref import _checks, certificates
from ide_ref.certificates import Map, Near, inverse
from ide_ref.constraints import leading_singular_pair
from ide_ref.continuous import ContinuousRun, constant_drive, time_constant
from ide_ref.equilibrium import Equilibrium, find_equilibrium, sweep
from ide_ref.network import Frozen, FrozenConnection, Network
from ide_ref.norms import EXACT_SIZE, ROUNDOFF, matrix_norm, raised
from ide_ref.simulation import Rates
from ide_ref.synapses import to_cells

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
        ‖W‖₂ is at most value + error: rounding where the value comes from a full decomposition, the distance to the
        symbol's bound where it comes from a search.
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
        L and U, from above.
    by_weights : bool
        Whether ``elementwise`` is below 1 beyond doubt, rounding included.
    """

    norms: tuple[OperatorNorm, ...]
    paper: float
    block: float
    elementwise: float | None
    stacked: OperatorNorm
    forward: NDArray
    feedback: NDArray
    by_weights: bool = False

    @property
    def applies(self) -> bool:
        """Whether one of the conditions for the discrete theorems holds beyond doubt, rounding included."""
        return bool(np.all(np.isfinite(self.series))) or self.by_weights

    @cached_property
    def resolvent(self) -> NDArray:
        """(I − L)⁻¹, (N, N), from above: how a disturbance of a population reaches the later ones in the same step."""
        return inverse(self.forward)

    @cached_property
    def propagation(self) -> NDArray:
        """G = (I − L)⁻¹ U, (N, N), from above."""
        return _above(self.resolvent @ self.feedback, len(self.forward))

    @cached_property
    def series(self) -> NDArray:
        """(I − G)⁻¹, (N, N), from above; infinite where the block condition is not verified."""
        return inverse(self.propagation)

    @cached_property
    def stacked_series(self) -> NDArray:
        """(I − N)⁻¹ with N = L + U, (N, N), from above; infinite where the block condition is not verified."""
        return inverse(_above(self.forward + self.feedback, 1))

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
    norms = tuple(operator_norm(c) for c, _ in _inner(frozen))
    forward, feedback = certificates.population_norms(frozen, simulated=True)
    # The figures are of the norms as well as they are known; whether they suffice is asked of the bounds from above.
    L, U = np.zeros((2, *forward.shape))
    for norm, (_, (source, target)) in zip(norms, _inner(frozen), strict=True):
        (L if source < target else U)[target, source] += norm.value / net.neuron.v_th
    G = np.linalg.solve(np.eye(len(L)) - L, U)
    sources = list(net.feedback_sources)
    paper = float(np.linalg.norm(G[np.ix_(sources, sources)], 2)) if sources else 0.0
    block = float(np.max(np.abs(np.linalg.eigvals(G))))
    elementwise = None
    by_weights = False
    if net.state_size <= EXACT_SIZE:
        parts = np.abs(np.stack([block_matrix(frozen, part) for part in ("forward", "feedback")])) / net.neuron.v_th
        once = np.linalg.solve(np.eye(net.state_size) - parts[0], parts[1])
        elementwise = float(np.max(np.abs(np.linalg.eigvals(once))))
        # A weight is off by a few roundings at most.
        whole = (parts[0] + parts[1]) * (1.0 + 16.0 * ROUNDOFF)
        by_weights = bool(np.all(np.isfinite(certificates.resolved(whole, np.ones((1, len(whole)))))))
    stacked = _stacked_norm(frozen, forward + feedback)
    return Conditions(norms, paper, block, elementwise, stacked, forward, feedback, by_weights)


def operator_norm(c: FrozenConnection) -> OperatorNorm:
    """‖scale ⊙ W‖₂ of a connection at its input size, times the largest factor of its mask: :mod:`ide_ref.norms`."""
    norm = _plain(c).norm_bound
    if c.keep is not None:
        norm = norm.times(float(c.keep.max(initial=0.0)))
    return OperatorNorm(c.connection.name, norm.value, norm.upper - norm.value)


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
            B[net.place(target), net.place(source)] += factor * _along(_plain(c), np.eye(c.synapse.n_in)[None])[0].T
    return B


def _stacked_norm(frozen: Frozen, norms: NDArray) -> OperatorNorm:
    """‖B‖₂/V_th; of a large network from a search, and from above by the matrix of the connections' norms."""
    net = frozen.network
    n, v_th = net.state_size, net.neuron.v_th
    if n <= EXACT_SIZE:
        norm = matrix_norm(block_matrix(frozen))
        return OperatorNorm("stacked", norm.value / v_th, raised(norm.upper / v_th, 3) - norm.value / v_th)
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
    upper = matrix_norm(norms).upper
    value = min(pair.value / v_th, upper)
    return OperatorNorm("stacked", value, upper - value)


def _plain(c: FrozenConnection) -> FrozenConnection:
    """The connection as a linear map of one sample, as the rollout applies it, without its mask."""
    if c.couples:
        raise ValueError(
            f"connection {c.connection.name!r} couples the samples of a batch; the theorems need affine connections"
        )
    # The rollout's own statistics, where a profile gives it others than the gradient has.
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
    constants = _constants(frozen, n_batch)[:, None]
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
    """The linear part in float64 as the rollout has it: (B, m, n_from) to (B, m, n_to)."""
    plain = _plain(c)
    out = plain.synapse.apply(plain.taps.astype(np.float64), cells.reshape(-1, cells.shape[2]))
    if plain.norm is not None:
        out = out * plain.synapse.out_channels(plain.norm.scale.astype(np.float64))
    out = out.reshape(*cells.shape[:2], -1)
    return out if c.keep is None else c.keep[:, None] * out


def _constants(frozen: Frozen, n_batch: int) -> NDArray:
    """What arrives without any spike or input, (B, n), in float64."""
    net = frozen.network
    out = np.zeros((n_batch, net.state_size))
    for c, (_, target) in zip(frozen.connections, net.ends, strict=True):
        none = Near.exactly(np.zeros((n_batch, c.synapse.n_in)))
        out[:, net.place(target)] += Map(c.simulated, slice(None)).output(none).value
    return out


def _rounding_of_p(frozen: Frozen, x: NDArray, n_steps: int) -> NDArray:
    """(B, N) bounds, in the norm, of what the p[t] of ``_replay`` have lost to rounding, for any rates in [0, 1]."""
    net = frozen.network
    largest = np.abs(x).max(axis=1) if net.is_train(x) else np.abs(x)
    sizes = to_cells(largest.astype(np.float64), net.input_shape)
    total = [Near.exactly(np.zeros((len(x), p.size))) for p in net.populations]
    for c, (source, target) in zip(frozen.connections, net.ends, strict=True):
        sent = sizes if source < 0 else np.ones((len(x), net.populations[source].size))
        # Averages over time are sums of as many terms, none of them negative but for inputs.
        given = Near(sent, (n_steps + 8.0) * ROUNDOFF * sent)
        total[target] = total[target].plus(Map(c.simulated, slice(None)).absolute().output(given))
    # _replay adds constants apart, multiplies by ratios and is allowed a few roundings more.
    return np.stack([4.0 * certificates.norm_above(part.error) for part in total], axis=1)


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

    (BALANCE) V_th a[t+1] = p[t] − u[t+1]/S_{t+1}; p[t] = (S_t/S_{t+1}) W a[t] + F x̄[t] + b, where only feedback has
    the factor S_t/S_{t+1}.

    (SPLIT) V_th a[t+1] = clip(p[t], 0, V_th) − u⁺[t+1]/S_{t+1}, which defines u⁺.

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
        """(B, T) of ``"error"``, ``"one_step"`` or ``"iterated"``, all populations together: the root of squares."""
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
        r = self.drift + self.input + self.potential + self.rounding[:, None]
        disturbance = _above((times * r).max(axis=1), 8)
        envelope = if_envelope(self.conditions, self._v_th, disturbance, self._start, self.times)
        return envelope + self._known[:, None]

    def floor(self) -> NDArray:
        """(FLOOR) with the observed c, (B, N): what the limit error of LIF cannot exceed, from above."""
        return lif_floor(self.conditions, self.equilibrium.network, self.u_plus_sup) + self._known

    @property
    def _v_th(self) -> float:
        return self.equilibrium.network.neuron.v_th

    def transient(self) -> NDArray:
        """What the iterated bound adds to ``floor`` at each time, (B, T, N), for LIF at a constant |u⁺| ≤ c."""
        net = self.equilibrium.network
        sizes = np.sqrt([p.size for p in net.populations])
        total = np.array([net.neuron.total_weight(int(t)) for t in self.times])[:, None]
        rest = self.drift + self.input + self.u_plus_sup[:, None] * sizes * (1.0 / total - (1.0 - net.neuron.leak))
        rest = np.maximum(rest, 0.0) + self.rounding[:, None]
        return _iterate(self.conditions, _above(rest / self._v_th, 8), self._start)

    @property
    def _start(self) -> NDArray:
        """(B, N) E[0] = ‖a*‖ of each population, from above."""
        norms = _population_norms(self.equilibrium.network, self.equilibrium.a[:, None].astype(np.float64))[:, 0]
        return _above(norms, self.equilibrium.a.shape[1])

    @property
    def _known(self) -> NDArray:
        """(B, N) the certificate where it is finite: where a* is known that well, bounds speak of the exact one."""
        return np.where(np.isfinite(self.certificate), self.certificate, 0.0)


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
        # (SPLIT) defines u⁺: what potentials were recorded, and how the rollout rounded them, does not enter.
        u_plus = s.total * (np.clip(s.p, 0.0, v_th) - v_th * s.a)
        drift = (1.0 - s.ratio) * _population_norms(net, s.feedback)
        of_input = _population_norms(net, s.inputs - input_star)
        potential = _population_norms(net, u_plus) / s.total
        columns.append((_population_norms(net, s.a - a_star), drift, of_input, potential))
        sups = [np.abs(u_plus[:, :, net.place(i)]).max(axis=(1, 2)) for i in range(len(net.populations))]
        c = np.maximum(c, np.stack(sups, axis=1))
    error, drift, of_input, potential = (np.concatenate(column, axis=1) for column in zip(*columns, strict=True))
    n_steps = rates.n_steps
    lost = _rounding_of_p(frozen, frozen.check_input(x), n_steps) + _rounding_of_p(frozen, star, 1)
    c = _above(c + net.neuron.total_weight(n_steps) * lost, 8)
    defect = certificates.defects(frozen, star, equilibrium.a, simulated=True)
    certificate = certificates.equilibrium_error(frozen, star, equilibrium.a, simulated=True)
    # Norms of n numbers, averages of T steps: relative to parts of r of at most this size.
    sizes = (drift + of_input + potential).max(axis=1)
    of_averages = (n_steps + 16.0) * ROUNDOFF * np.sqrt([p.size for p in net.populations])
    rounding = v_th * defect + 3.0 * lost + (net.state_size + 32.0) * ROUNDOFF * sizes + 2.0 * v_th * of_averages
    known_to = np.where(np.isfinite(certificate), certificate, 0.0)[:, None]
    norms = _population_norms(net, a_star)
    before = _above(np.concatenate([norms, error[:, :-1]], axis=1), net.state_size) + of_averages
    r = _above((drift + of_input + potential + rounding[:, None]) / v_th, 8)
    n = len(net.populations)
    one_step = _above(before @ conditions_.propagation.T + r @ conditions_.resolvent.T, 2 * n + 4) + known_to
    iterated = _iterate(conditions_, r, _above(norms[:, 0], net.state_size)) + known_to
    return ErrorBound(
        error, one_step, iterated, drift, of_input, potential, rounding, certificate, c, equilibrium, conditions_
    )


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
    rounding : (M, N) array
        A fourth part of r, of floating point: V_th times the defect that a* as it was computed leaves in (FP), what the
        run's balance is off by, and what averages, products and norms may have lost.
    certificate : (N,) array
        Bound of the distance between a* as it was computed and the exact one, (CERT); part of the bounds where finite.
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
    rounding: NDArray
    certificate: NDArray
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
        if not np.all(np.isfinite(self.conditions.stacked_series)):
            return np.full(len(net.populations), np.inf)
        sizes = np.sqrt([p.size for p in net.populations])
        floor = self.conditions.stacked_series @ (self.u_plus_sup * sizes / (tau * net.neuron.v_th))
        return _above(floor, len(sizes) + 16) + np.where(np.isfinite(self.certificate), self.certificate, 0.0)


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
    off = np.abs(v_th * run.a - (np.maximum(run.p, 0.0) - potential))
    # Rates and drives are sums over spikes and connections: relative to what they are made of.
    terms = run.spike_times.size + net.state_size + float(np.prod(net.input_shape)) + 32.0
    made_of = np.abs(run.recurrent) + np.abs(run.drive) + v_th * run.a + np.abs(potential)
    lost = _population_norms(net, (off + 4.0 * terms * ROUNDOFF * _sizes_of_p(frozen, star, run, made_of))[None])[0]
    defect = certificates.defects(frozen, equilibrium.x_mean, equilibrium.a, "relu", simulated=True)[0]
    certificate = certificates.equilibrium_error(frozen, equilibrium.x_mean, equilibrium.a, "relu", simulated=True)[0]
    known = np.where(np.isfinite(certificate), certificate, 0.0)
    rounding = v_th * defect + lost
    n = len(net.populations)
    slack = 4 * net.state_size + 4 * n + 32
    r = _above((drift_ + input_ + potential_ + rounding) / v_th, slack)
    N = _above(conditions_.forward + conditions_.feedback, 1)
    gamma = raised(conditions_.stacked.value + conditions_.stacked.error, 1)
    whole = sum(np.linalg.norm(part, axis=1) for part in (drift, of_input, potential, rounding)) / v_th
    whole = _above(whole, slack)
    all_known = float(certificates.norm_above(known[None])[0])
    if run.delay > 0:
        one_step = _above(delayed @ N.T + r, slack)
        stacked = _above(gamma * np.linalg.norm(errors[1], axis=1) + whole, slack)
    else:
        # Without delay the error stands on both sides.
        if np.all(np.isfinite(conditions_.stacked_series)):
            one_step = _above(r @ conditions_.stacked_series.T, slack)
        else:
            one_step = np.full_like(r, np.inf)
        stacked = certificates.certified(whole, gamma)
    c = np.array([np.abs(run.u_plus[:, net.place(i)]).max(initial=0.0) for i in range(n)])
    c = _above(c + float(run.kernel_total.max(initial=0.0)) * lost.max(axis=0, initial=0.0), 8)
    return ContinuousBound(
        error,
        delayed,
        one_step + known,
        drift_,
        input_,
        potential_,
        rounding,
        certificate,
        stacked + all_known,
        c,
        equilibrium,
        conditions_,
    )


def _sizes_of_p(frozen: Frozen, star: NDArray, run: ContinuousRun, made_of: NDArray) -> NDArray:
    """(M, n) what p and its parts are sums of, without signs."""
    net = frozen.network
    out = made_of.copy()
    for c, (source, target) in zip(frozen.connections, net.ends, strict=True):
        sizes = Map(c.simulated, slice(None)).absolute()
        if source < 0:
            x = Near.exactly(to_cells(np.abs(star)[None].astype(np.float64), net.input_shape))
            out[:, net.place(target)] += sizes.output(x).value
        else:
            for a in (run.a, run.a_delayed):
                out[:, net.place(target)] += sizes.linear(Near.exactly(a[:, net.place(source)])).value
    return out


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
    N = _above(conditions_.forward + conditions_.feedback, 1)
    if not np.all(np.isfinite(conditions_.stacked_series)):
        return np.full((times.size, len(N)), np.inf)
    sum_ = _above(conditions_.stacked_series @ (disturbance / v_th), len(N) + 4)
    if delay == 0:
        return _above(sum_ / times[:, None], 4)
    steps = np.floor(times / (2 * delay)).astype(int)
    start = np.stack([np.linalg.matrix_power(N, int(m)) @ largest for m in steps])
    # m products with N, by squaring or not, of len(N) terms each.
    start = start * (1.0 + (steps[:, None] + 2.0) * (len(N) + 4.0) * ROUNDOFF)
    return _above(start + 2.0 * sum_ / times[:, None], 8)


def _iterate(conditions_: Conditions, r: NDArray, start: NDArray) -> NDArray:
    """b[t] = G b[t−1] + (I − L)⁻¹ r[t−1], (B, T, N), from b[0] = ``start``; ``r`` is over V_th already."""
    n = len(conditions_.forward)
    given = _above(r @ conditions_.resolvent.T, n)
    out = np.empty_like(given)
    b = start
    # Where no condition holds the sum outgrows the floats: infinity is the bound then.
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(given.shape[1]):
            b = _above(b @ conditions_.propagation.T + given[:, t], n + 1)
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
    if not np.all(np.isfinite(conditions_.series)):
        return np.full((len(start), len(times), start.shape[1]), np.inf)
    constant = (start + disturbance @ conditions_.resolvent.T / v_th) @ (conditions_.series @ conditions_.series).T
    return _above(constant[:, None] / times, 4 * len(conditions_.forward) + 8)


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
    """
    if not np.all(np.isfinite(conditions_.series)):
        return np.full(c.shape, np.inf)
    sizes = np.sqrt([p.size for p in net.populations])
    rest = (1.0 - net.neuron.leak) * c * sizes / net.neuron.v_th
    return _above(rest @ (conditions_.series @ conditions_.resolvent).T, 2 * len(sizes) + 16)


def _above(x: NDArray, n: float) -> NDArray:
    """An array ≥ 0 with room for n roundings of each number."""
    return x * (1.0 + (n + 8.0) * ROUNDOFF) + 8.0 * certificates.GRAIN


def _population_norms(net: Network, state: NDArray) -> NDArray:
    """(B, m, n) to (B, m, N)."""
    return np.stack([np.linalg.norm(state[:, :, net.place(i)], axis=2) for i in range(len(net.populations))], axis=2)


def _median_ratio(error: NDArray, bound: NDArray) -> float:
    ratios = error[bound > 0] / bound[bound > 0]
    return float(np.median(ratios)) if ratios.size else 0.0
