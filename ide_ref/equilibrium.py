"""The fixed-point equation (FP) of a graph: its map, its Jacobian's products, its solution, its contraction.

The unknowns are the rates of the populations that send feedback. One *sweep* goes through the populations in
order, forward connections reading rates just computed and feedback connections the given ones; a single
layer, the layers of (LAYERS) and any other graph are the same sweep.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ide_ref import _checks, _threads, certificates, constraints, solvers
from ide_ref._kernels import memory
from ide_ref.maps import AffineMap, BatchNormCache, Frozen
from ide_ref.network import Network, of_population
from ide_ref.neurons import MaskRule

Sigma = Literal["clip", "relu"]
Method = Literal["iterate", "anderson", "newton"]

TOLERANCE = {"float64": 1e-13, "float32": 1e-6}
"""Of an equilibrium by dtype, unless another is asked for: see :func:`find_equilibrium`."""

_Map = Callable[[NDArray], tuple[NDArray, "Sweep"]]  # f of (FP), and the sweep that it took

DENSE_SIZE = 512
"""With at most so many neurons in the feedback sources, Newton's method solves by dense matrices."""


@dataclass(frozen=True)
class Sweep:
    """(FP) evaluated once.

    Attributes
    ----------
    a, p : (B, n) arrays
        Rates of all populations, a = σ(p / V_th) unless they were given, and the pre-activations p.
    maps : tuple of AffineMap
        Of the connections, as they are linearised here.
    caches : tuple of BatchNormCache or None
        What each connection's batch normalisation sees here, None where it was not asked or has none.
    """

    a: NDArray
    p: NDArray
    maps: tuple[AffineMap, ...]
    caches: tuple[BatchNormCache | None, ...]


def sweep(
    frozen: Frozen,
    feedback: NDArray,
    drive: NDArray,
    *,
    forward: NDArray | None = None,
    sigma: Sigma = "clip",
    keep_caches: bool = False,
) -> Sweep:
    """One pass of (FP) through the populations in order.

    Parameters
    ----------
    feedback : (B, n) array
        Rates that feedback connections read.
    drive : (B, n) array
        F x + b of the input connections, in units of the potential.
    forward : (B, n) array, optional
        Rates that forward connections read, in place of those just computed; then p alone is computed.
    sigma : {"clip", "relu"}
        σ of (FP): of discrete time, or of continuous time, where rates have no upper end.
    keep_caches : bool
        Keep what the batch normalisations see: (HEBB) and the running statistics ask for it.
    """
    net = frozen.network
    p = memory.copied(drive)
    a = memory.empty(p.shape, p.dtype) if forward is None else forward
    maps = list(frozen.maps)
    caches: list[BatchNormCache | None] = [None] * len(maps)
    for target in range(len(net.populations)):
        columns = net.slice_of(target)
        for i, source in net.into(target):
            if source >= 0:
                rates = (feedback if source >= target else a)[:, net.slice_of(source)]
                maps[i], z = frozen.maps[i].apply_at(rates, p[:, columns])
                caches[i] = maps[i].cache(rates, z) if keep_caches else None
        if forward is not None:
            continue
        if sigma == "clip":
            a[:, columns] = net.neurons[target].sigma(p[:, columns])
        else:
            a[:, columns] = np.maximum(p[:, columns], 0.0) / p.dtype.type(net.neurons[target].v_th)
    return Sweep(a, p, tuple(maps), tuple(caches))


def fixed_point_map(frozen: Frozen, x: NDArray, z: NDArray) -> NDArray:
    """f_θ of (FP): rates of the feedback sources after one sweep.

    Parameters
    ----------
    x : (B, *input_shape) array
        x*.
    z : (B, m) array
        Rates of the feedback sources, side by side.

    Raises
    ------
    ValueError
        For arrays that do not fit.
    """
    _checks.kind("frozen", frozen, Frozen)
    x, z = frozen.check_input(x), np.asarray(z)
    expected = (len(x), frozen.network.feedback_size)
    if z.shape != expected or z.dtype.kind not in "fiub":
        raise ValueError(f"z is {z.dtype} of shape {z.shape}; expected real numbers of shape {expected}")
    return gather_sources(frozen.network, sweep(frozen, spread_sources(frozen.network, z), frozen.drive(x)).a)


def gather_sources(net: Network, state: NDArray) -> NDArray:
    """The feedback sources' part of a state: (B, n) to (B, m)."""
    if net.feedback_size == net.state_size:
        return state
    if not net.feedback_sources:
        return state[:, :0]
    return np.concatenate([state[:, columns] for _, columns, _ in net.feedback_slices], axis=1)


def spread_sources(net: Network, z: NDArray) -> NDArray:
    """Transpose of ``gather_sources``: (B, m) to (B, n), zero elsewhere."""
    if net.feedback_size == net.state_size:
        return z
    state = memory.zeros((z.shape[0], net.state_size), z.dtype)
    for _, columns, part in net.feedback_slices:
        state[:, columns] = z[:, part]
    return state


class BetaDelta(NamedTuple):
    """β and δ = (1/V_th) M β of all populations, (B, n) each."""

    beta: NDArray
    delta: NDArray


class Kept(NamedTuple):
    """Batch-norm caches, and the maps and rates for which they are."""

    caches: tuple[BatchNormCache | None, ...]
    at: tuple[tuple[AffineMap, ...], NDArray, NDArray]


@dataclass(frozen=True)
class Linearisation:
    """(FP) around given rates: masks, and products with J and Jᵀ.

    Attributes
    ----------
    frozen : Frozen
    maps : tuple of AffineMap
        Of the connections, as they are linearised there.
    slope : (B, n) array
        M / V_th, (MASK).
    forward, feedback : (B, n) arrays
        Rates that forward and feedback connections read there.
    kept : Kept or None
        Batch-norm caches.
    """

    frozen: Frozen
    maps: tuple[AffineMap, ...]
    slope: NDArray
    forward: NDArray
    feedback: NDArray
    kept: Kept | None = None

    @property
    def caches(self) -> tuple[BatchNormCache | None, ...]:
        """What each connection's batch normalisation sees at these rates, as far as it is known."""
        here = (self.maps, self.forward, self.feedback)
        # A linearisation that was moved carries the caches of elsewhere.
        if self.kept is None or any(was is not now for was, now in zip(self.kept.at, here, strict=True)):
            return (None,) * len(self.maps)
        return self.kept.caches

    def jvp(self, v: NDArray) -> NDArray:
        """J v on the feedback sources: (B, m) to (B, m)."""
        net = self.frozen.network
        given = spread_sources(net, v)
        da = np.zeros_like(self.slope)
        for target in range(len(net.populations)):
            columns = net.slice_of(target)
            for i, source in net.into(target):
                if source >= 0:
                    rates = da if source < target else given
                    da[:, columns] += self.maps[i].linear(rates[:, net.slice_of(source)])
            da[:, columns] *= self.slope[:, columns]
        return gather_sources(net, da)

    def vjp(self, w: NDArray) -> NDArray:
        """Jᵀ w on the feedback sources: (B, m) to (B, m), one backward sweep."""
        return self.sweep_back(w)[0]

    def sweep_back(self, w: NDArray, g: NDArray | None = None) -> tuple[NDArray, BetaDelta]:
        """One backward sweep of (BETA): Jᵀ w, (B, m), where g is None; and β and δ, see :meth:`spread_back`."""
        spread = self.spread_back(w, g)
        return self.returned(spread.delta), spread

    def spread_back(self, w: NDArray, g: NDArray | None = None) -> BetaDelta:
        """β_l = (w or g)_l + Σ over forward connections l → k of (1/V_th) W_klᵀ m_k β_k, populations in reverse.

        Parameters
        ----------
        w : (B, m) array
            What has arrived at the feedback sources from the loss and through feedback.
        g : (B, n) array, optional
            ∂L/∂a of the populations that send no feedback.
        """
        net = self.frozen.network
        beta = spread_sources(net, w)
        if g is not None:
            beta = beta + g
        elif beta is w and any(0 <= source < target for source, target in net.edges):
            # What forward connections add must not go into the array that was given.
            beta = memory.copied(beta)
        delta = memory.empty(self.slope.shape, self.slope.dtype)
        for target in range(len(net.populations) - 1, -1, -1):
            columns = net.slice_of(target)
            constraints.multiply(self.slope[:, columns], beta[:, columns], delta[:, columns])
            for i, source in net.into(target):
                if 0 <= source < target:
                    self.maps[i].adjoint(delta[:, columns], beta[:, net.slice_of(source)])
        return BetaDelta(beta, delta)

    def returned(self, delta: NDArray) -> NDArray:
        """Σ over feedback connections l → k of W_klᵀ δ_k at their sources: (B, n) to (B, m)."""
        net = self.frozen.network
        y = memory.zeros((len(delta), net.feedback_size), delta.dtype)
        part_of = {source: part for source, _, part in net.feedback_slices}
        for m, (source, target) in zip(self.maps, net.edges, strict=True):
            if source >= target:
                m.adjoint(delta[:, net.slice_of(target)], y[:, part_of[source]])
        return y


def linearise(
    frozen: Frozen, a: NDArray, drive: NDArray, *, mask_rule: MaskRule = "closed", recompute: bool = False
) -> Linearisation:
    """Linearise (FP) at given rates.

    Parameters
    ----------
    frozen : Frozen
        The network.
    a : (B, n) array
        Rates of all populations, a rollout's or an equilibrium's.
    drive : (B, n) array
        F x + b of the input connections, in units of the potential.
    mask_rule : {"closed", "open", "half"}
        Which ends of σ's slope count as inside, (MASK).
    recompute : bool
        False: every population's mask is taken at the given rates. True: only the feedback sources' rates
        are given, the others follow from them through one sweep.

    Raises
    ------
    ValueError
        For arrays that do not fit.
    """
    _checks.kind("frozen", frozen, Frozen)
    a = frozen.check_state("a", a)
    drive = frozen.check_state("drive", drive, len(a))
    there = sweep(frozen, a, drive, forward=None if recompute else a, keep_caches=True)
    slopes = [neuron.slope(there.p[:, columns], mask_rule) for neuron, columns in frozen.network.stretches]
    slope = slopes[0] if len(slopes) == 1 else np.concatenate(slopes, axis=1)
    return Linearisation(frozen, there.maps, slope, there.a, a, Kept(there.caches, (there.maps, there.a, a)))


def contraction(frozen: Frozen) -> float:
    """γ of (COND), see :func:`ide_ref.certificates.contraction_bound`: its value, not the bound from above.

    (COND) ‖W^1‖ ‖F^N‖ … ‖F^2‖ ≤ γ V_th^N, γ < 1.

    Parameters
    ----------
    frozen : Frozen
        The network.
    """
    _checks.kind("frozen", frozen, Frozen)
    return certificates.contraction(frozen)


@dataclass(frozen=True)
class Equilibrium:
    """A solution of (FP).

    Attributes
    ----------
    network : Network
    a : (B, n) array
        a* of all populations in channels-last order.
    p : (B, n) array
        Pre-activations there; a = σ(p / V_th), on the feedback sources up to the residual.
    x_mean : (B, *input_shape) array
        x*.
    residual : (B,) array
        ‖f(a) − a‖₂ on the feedback sources, f as it is computed at this very a.
    iterations : int
    status : str
        One of :data:`ide_ref.solvers.STATUSES`; *converged* when every residual and its rounding are at most the
        tolerance.
    frozen : Frozen
        The network it belongs to.
    sigma : {"clip", "relu"}
    """

    network: Network
    a: NDArray
    p: NDArray
    x_mean: NDArray
    residual: NDArray
    iterations: int
    status: str
    frozen: Frozen
    sigma: Sigma = "clip"

    @property
    def converged(self) -> bool:
        """Whether the status is ``"converged"``."""
        return self.status == "converged"

    @cached_property
    def contraction(self) -> float:
        """γ of (COND), from operator norms."""
        return contraction(self.frozen)

    @cached_property
    def errors(self) -> NDArray:
        """(B, N) bounds of ‖a_l − a*_l‖₂ for each population, (CERT), rounding included."""
        return certificates.equilibrium_error(self.frozen, self.x_mean, self.a, self.sigma)

    @property
    def certificate(self) -> NDArray:
        """(B,) bound of ‖a − a*‖₂ on the feedback sources, (CERT), rounding included; infinite as ``why_not`` says."""
        return certificates.on_sources(self.frozen, self.errors)

    @property
    def why_not(self) -> str:
        """Why no error is certified; empty where one is."""
        return certificates.why_not(self.frozen)

    def of(self, population: str) -> NDArray:
        """(B, *shape) rates of one population."""
        return of_population(self.network, self.a, population)

    @property
    def branch(self) -> NDArray[np.int8]:
        """(B, n) which piece of σ each neuron is on: −1 below 0, 0 on the slope, 1 above V_th (clip alone)."""
        v_th = self.network.thresholds(self.p.dtype) if self.sigma == "clip" else np.inf
        return (self.p > v_th).astype(np.int8) - (self.p < 0).astype(np.int8)


@_threads.fitted
def find_equilibrium(
    frozen: Frozen,
    x: NDArray,
    *,
    method: Method = "iterate",
    sigma: Sigma = "clip",
    tol: float | None = None,
    max_iter: int = 2000,
    start: NDArray | None = None,
    allow_unconverged: bool = False,
) -> Equilibrium:
    """Solve a* = σ((W a* + F x* + b)/V_th), (FP).

    Parameters
    ----------
    frozen : Frozen
        The network.
    x : (B, *input_shape) array or (B, T, *input_shape)
        x*, or a spike train whose weighted average stands for it.
    method : {"iterate", "anderson", "newton"}
        The sweep itself, which converges when (COND) holds; the same accelerated; or Newton's method on the
        active set, which ends exactly once it has found the pieces of σ that the solution is on.
    sigma : {"clip", "relu"}
        Of discrete or of continuous time.
    tol : float, optional
        On ‖f(a) − a‖₂ of every sample, relative to 1 + ‖a‖₂ for clip and to 1 + ‖f(0)‖₂ for relu, whose rates have no
        upper end; by default that of the dtype, :data:`TOLERANCE`.
    max_iter : int
        Sweeps, or steps of Newton's method.
    start : (B, n) array, optional
        Where to begin; zero rates by default.
    allow_unconverged : bool
        Return the last iterate instead of raising.

    Raises
    ------
    ValueError
        For an unknown method or sigma, a tolerance that is not positive or below what the dtype can reach, no
        iterations, or an input or a start that does not fit.
    NotConverged
        When the tolerance is not met; the message says why.
    """
    if not _checks.is_one_of(method, ("iterate", "anderson", "newton")):
        raise ValueError(f"method is {method!r}; expected 'iterate', 'anderson' or 'newton'")
    if not _checks.is_one_of(sigma, ("clip", "relu")):
        raise ValueError(f"sigma is {sigma!r}; expected 'clip' or 'relu'")
    _checks.kind("frozen", frozen, Frozen)
    tol = _checks.tolerance(tol, frozen.dtype, TOLERANCE, must_reach=not allow_unconverged)
    max_iter = _checks.whole("max_iter", max_iter)
    net = frozen.network
    x_mean = frozen.mean_input(frozen.check_input(x))
    drive = frozen.drive(x_mean)
    start = np.zeros_like(drive) if start is None else frozen.check_state("start", start, len(drive))
    z = gather_sources(net, start)

    def f(z: NDArray) -> tuple[NDArray, Sweep]:
        now = sweep(frozen, spread_sources(net, z), drive, sigma=sigma)
        return gather_sources(net, now.a), now

    # A network that leaves the range of the floats on its way is told by its status, not by warnings.
    with np.errstate(over="ignore", invalid="ignore"):
        # ReLU's rates have no upper end, so a tolerance relative to them would let a divergence pass: what the drive
        # brings without feedback is the measure then.
        alone = None if sigma == "clip" else solvers.norms(f(np.zeros_like(z))[0])

        def scale(z: NDArray) -> NDArray:
            return 1.0 + (solvers.norms(z) if alone is None else alone)

        k = 0
        if method == "anderson":
            # The linear solver's method on f(z) = b + (f(z) − b), where b only has the size that tol is relative to.
            b = np.zeros_like(z)
            b[:, :1] = scale(b)[:, None]
            found = solvers.anderson(lambda z: f(z)[0] - b, b, tol=tol, max_iter=max_iter, x0=z)
            z, k = found.x, found.iterations
        elif method == "newton":
            z, k = _newton(frozen, f, z, sigma, lambda z: tol * scale(z), max_iter)
        # After the other methods one sweep is left, which judges them and brings the other populations.
        history: list[float] = []
        for _ in range(max_iter if method == "iterate" else 1):
            new, now = f(z)
            judged = z
            verdict = solvers.accept(z, new, np.zeros_like(z), tol * scale(z), history=history)
            worst = float(np.max(verdict.residual))
            history.append(worst)
            if verdict.status == "converged" or solvers.hopeless(worst, z.dtype):
                break
            z = new
    # The rates that were judged, not those one sweep further, and what the other populations make of them.
    a = now.a.copy()
    for _, columns, part in net.feedback_slices:
        a[:, columns] = judged[:, part]
    iterations = len(history) if method == "iterate" else k
    if verdict.status != "converged" and not allow_unconverged:
        steps = f"{iterations} sweeps" if method == "iterate" else f"{iterations} steps of {method}"
        why = solvers.explain(verdict.status, float(np.max(verdict.rounding)), drive.dtype, verdict.diverged_at)
        if verdict.status != "lost to rounding" and contraction(frozen) >= 1.0:
            why += f"; gamma is {contraction(frozen):.3f} and (COND) asks for less than 1"
        raise solvers.NotConverged(f"equilibrium: residual {worst:.2e} after {steps}, tolerance {tol:.0e}; {why}")
    return Equilibrium(net, a, now.p, x_mean, verdict.residual, iterations, verdict.status, frozen, sigma)


def _newton(
    frozen: Frozen, f: _Map, z: NDArray, sigma: Sigma, allowed: Callable[[NDArray], NDArray], max_iter: int
) -> tuple[NDArray, int]:
    """Semismooth Newton on f(z) − z = 0 over the feedback sources.

    f is affine where the active set stays the same, so a full step from the right set lands on the solution.
    A step that does not reduce the residual by a tenth of its length is halved; if no part of it does, a sweep
    takes its place, which reduces it by γ. Each sample has its own steps; those that have arrived stand still.
    """
    net = frozen.network
    v_th = net.thresholds(frozen.dtype)
    upper = v_th if sigma == "clip" else np.inf
    matrices = None
    if net.feedback_size <= DENSE_SIZE and not certificates.coupled(frozen.maps, net):
        matrices = [
            m.synapse.apply(m.folded_taps, np.eye(m.synapse.n_in, dtype=frozen.dtype)).T if source >= 0 else None
            for m, (source, _) in zip(frozen.maps, net.edges, strict=True)
        ]
    new, now = f(z)
    moving = np.ones(len(z), bool)
    for k in range(max_iter):
        r = new - z
        size = solvers.norms(r)
        moving &= (size > allowed(z)) & np.isfinite(size)
        if not moving.any():
            return z, k
        slope = ((now.p >= 0) & (now.p <= upper)).astype(frozen.dtype) / v_th
        if matrices is None:
            jacobian = Linearisation(frozen, now.maps, slope, now.a, spread_sources(net, z))
            left = np.where(moving[:, None], r, 0)
            step = solvers.gmres(jacobian.jvp, left, tol=float(np.sqrt(np.finfo(r.dtype).eps)), max_iter=400).x
        else:
            step = np.zeros_like(r)
            for sample in np.flatnonzero(moving):
                step[sample] = _solve_active(frozen, matrices, slope, int(sample), r[sample])
        swept = new
        length = moving.astype(frozen.dtype)
        for _ in range(6):
            trial = z + length[:, None] * step
            new, now = f(trial)
            worse = moving & ~(solvers.norms(new - trial) <= (1.0 - 0.1 * length) * size)
            if not worse.any():
                break
            length[worse] /= 2
        else:
            trial = np.where(worse[:, None], swept, trial)
            new, now = f(trial)
        z = trial
        # Below the tolerance that rounding allows nothing gets better.
        moving &= solvers.norms(new - z) < size
    return z, max_iter


def _solve_active(frozen: Frozen, matrices: list[NDArray | None], slope: NDArray, sample: int, r: NDArray) -> NDArray:
    """(I − J) step = r of one sample, by a dense solve on the feedback sources that are on σ's slope."""
    net = frozen.network
    given = {source: part for source, _, part in net.feedback_slices}
    reach: list[NDArray] = []
    for target in range(len(net.populations)):
        rows = np.zeros((net.populations[target].size, net.feedback_size), r.dtype)
        for i, source in net.into(target):
            matrix, keep = matrices[i], frozen.maps[i].keep
            if matrix is not None:
                W = matrix if keep is None else keep[sample][:, None] * matrix
                if source < target:
                    rows += W @ reach[source]
                else:
                    rows[:, given[source]] += W
        reach.append(slope[sample, net.slice_of(target)][:, None] * rows)
    J = np.concatenate([reach[source] for source in net.feedback_sources])
    active = np.any(J != 0, axis=1)
    J_A = J[active]
    step = r.copy()
    system = np.eye(len(J_A), dtype=r.dtype) - J_A[:, active]
    with suppress(np.linalg.LinAlgError):  # singular, possible for γ ≥ 1 alone: a sweep instead
        step[active] = np.linalg.solve(system, r[active] + J_A[:, ~active] @ r[~active])
    return step
