"""(CERT) in floating point: bounds of the distance to a* and to β that no rounding can break.

A frozen network is a set of floating-point numbers: weights, biases, statistics, masks, V_th. (FP) and (BETA) of
exactly these numbers have exact solutions, and what is bounded here is the distance to those. With d_l the defect of
population l's equation at what a solver returned, and N the matrix of ‖W_lk‖₂/V_th,

    e ≤ N e + d,   hence   e ≤ (I − N)⁻¹ d   for a* (with Nᵀ for β),

entry by entry where N has a spectral radius below 1; for one population e ≤ d/(1 − γ), (CERT). Everything enters from
above: defects are evaluated in float64 beside a running bound of what that rounds off, norms are bounds themselves, and
the last line is verified, not believed. ``docs/derivations.md``, "In floating point", has the proofs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ide_ref.maps import AffineMap, Frozen
from ide_ref.network import Network
from ide_ref.norms import GRAIN as GRAIN
from ide_ref.norms import ROUNDOFF, lowered, raised
from ide_ref.synapses import to_channels_last

BEYOND = 1.01  # a block radius that no rounding, and no search that stopped early, makes of one below 1
_CHUNK = 2**21  # numbers of one array while samples are certified, some at a time


class Contraction(NamedTuple):
    """γ of (COND).

    Attributes
    ----------
    value : float
        As well as it is known.
    upper : float
        At least γ, rounding and the search for norms included.
    """

    value: float
    upper: float

    @property
    def why_not(self) -> str:
        """Why nothing is certified with this γ; empty where something is."""
        if self.upper < 1.0:
            return ""
        if self.value >= 1.0:
            return f"gamma is {self.value:.6g}, and (CERT) asks for less than 1"
        return (
            f"gamma is {self.value:.17g}, which its own error of {self.upper - self.value:.1e} does not tell from 1: "
            "(CERT) asks for less than 1"
        )


def contraction_bound(frozen: Frozen) -> Contraction:
    """γ of (COND): a bound of the sweep's Lipschitz constant from operator norms.

    (COND) ‖W^1‖ ‖F^N‖ … ‖F^2‖ ≤ γ V_th^N, γ < 1.

    For one layer ‖W‖/V_th; for (LAYERS) the product of the norms over V_th^N; for a graph the 2-norm of the
    non-negative matrix that carries norms from source to source through one sweep.
    """
    size, n_roundings = _carried(frozen, [c.norm_bound.upper for c in frozen.maps])
    return Contraction(contraction(frozen), raised(size, n_roundings))


def contraction(frozen: Frozen) -> float:
    """γ of (COND) as well as it is known, without a bound from above."""
    return _carried(frozen, [c.operator_norm for c in frozen.maps])[0]


def _carried(frozen: Frozen, norms: Sequence[float]) -> tuple[float, int]:
    """The 2-norm of what one sweep carries from source to source, given the norms; and roundings on the way."""
    net = frozen.network
    sources = list(net.feedback_sources)
    if not sources:
        return 0.0, 0
    reach = np.zeros((len(net.populations), len(sources)))
    unit = dict(zip(sources, np.eye(len(sources)), strict=True))
    for target in range(len(net.populations)):
        for i, source in net.into(target):
            if source >= 0:
                reach[target] += (
                    norms[i] / net.neurons[target].v_th * (reach[source] if source < target else unit[source])
                )
    carried = reach[sources]
    if len(sources) == 1:
        return float(carried[0, 0]), 3 * len(norms)
    return float(np.linalg.norm(carried, 2)), 3 * len(norms) + 16 * len(sources)


def population_norms(frozen: Frozen, *, bound: bool = True) -> tuple[NDArray, NDArray]:
    """L and U, (N, N) each: ‖W_lk‖₂/V_th of forward and of feedback connections, row the receiver, from above.

    Without ``bound`` as well as they are known, which for a large convolution takes a hundredth of the time.
    """
    net = frozen.network
    n = len(net.populations)
    forward, feedback = np.zeros((2, n, n))
    for m, (source, target) in zip(frozen.maps, net.edges, strict=True):
        if source >= 0:
            into = forward if source < target else feedback
            # Parallel connections: the norm of their sum is at most the sum of their norms.
            norm = m.norm_bound.upper if bound else m.operator_norm
            into[target, source] = raised(into[target, source] + norm / net.neurons[target].v_th, 3)
    return forward, feedback


def block_radius(frozen: Frozen) -> float:
    """The spectral radius of N, the norms between populations as well as they are known; (CERT) needs it below 1."""
    N = np.add(*population_norms(frozen, bound=False))
    return float(np.max(np.abs(np.linalg.eigvals(N)))) if np.all(np.isfinite(N)) else math.inf


def certified(residual: NDArray, gamma: float) -> NDArray:
    """The bound of (CERT), rounded upwards, (B,); infinite for γ ≥ 1.

    (CERT) ‖β − β*‖ ≤ ‖r‖/(1−γ), r the residual of (BETA); likewise ‖a − a*‖ ≤ ‖f(a) − a‖/(1 − γ).

    Parameters
    ----------
    residual : (B,) array
        Upper bounds of the residuals.
    gamma : float
        An upper bound of γ.
    """
    return resolved(np.array([[gamma]]), np.asarray(residual, np.float64)[:, None])[:, 0]


def from_below(N: NDArray, v: NDArray) -> NDArray:
    """(I − N) v from below, of v's shape, for rows v ≥ 0."""
    others = np.where(np.eye(len(N), dtype=bool), 0.0, N)
    # Roundings: of 1 − N_ll (none from 1/2 on, so that one population loses nothing at γ close to 1), of the products,
    # of the difference.
    return lowered((1.0 - np.diag(N)) * v, 4) - raised(v @ others.T, len(N) + 4)


def witness(N: NDArray) -> NDArray | None:
    """v > 0, (n,), with (I − N) v > 0, all roundings against it, for an (n, n) matrix N ≥ 0; None where none is found.

    It verifies a spectral radius below 1: (I − N)⁻¹ exists and is not negative (Collatz).
    """
    with np.errstate(over="ignore", invalid="ignore"):
        try:
            v = np.linalg.solve(np.eye(len(N)) - N, np.ones(len(N)))
        except np.linalg.LinAlgError:
            return None
        return v if np.min([v, from_below(N, v)]) > 0.0 else None


def resolved(N: NDArray, d: NDArray) -> NDArray:
    """(I − N)⁻¹ d from above, (B, N) for rows d ≥ 0; infinite where a spectral radius of N below 1 is not verified.

    Where it is, e is an upper bound as soon as (I − N) e ≥ d, which is checked with all roundings against it.
    """
    v = witness(N)
    if v is None:
        return np.full(d.shape, np.inf)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        # A bound of the size that is wanted, to be raised along v until it is one. Of what is 0 or not finite nothing
        # comes of it; that is told at the end.
        size = np.max(d, axis=1, keepdims=True)
        e = np.maximum(np.linalg.solve(np.eye(len(N)) - N, (d / size).T).T, 0.0)
        missing = np.maximum(raised(d / size, 1) - from_below(N, e), 0.0)
        along = raised(np.max(missing / from_below(N, v), axis=1, keepdims=True), 4)
        bound = raised((e + along * v) * size, 12)
        bound = np.where(np.all(d == 0, axis=1, keepdims=True), 0.0, bound)
        return np.where(np.isfinite(bound), bound, np.inf)


def inverse(A: NDArray) -> NDArray:
    """(I − A)⁻¹ from above, (N, N); infinite where a spectral radius below 1 is not verified."""
    return resolved(A, np.eye(len(A))).T


def why_not(frozen: Frozen) -> str:
    """Why nothing can be certified for a network; empty where something can."""
    if coupled(frozen.maps, frozen.network):
        return "the samples of a batch are coupled through its statistics, so none has a bound of its own"
    radius = block_radius(frozen)
    if radius < BEYOND and witness(np.add(*population_norms(frozen))) is not None:
        return ""
    if radius >= 1.0:
        return f"gamma, the block radius of the norms, is at least 1 ({radius:.6g}), and (CERT) asks for less"
    return f"1 - gamma is {1.0 - radius:.1e}, which the error of the norms does not tell from 0"


class Near(NamedTuple):
    """A float64 array and how far it may be from the exact one, entry by entry, both (B, n)."""

    value: NDArray
    error: NDArray

    @classmethod
    def exactly(cls, value: NDArray) -> Near:
        """A given array, of any shape."""
        value = np.asarray(value, np.float64)
        return cls(value, np.zeros_like(value))

    def plus(self, other: Near) -> Near:
        """The sum, with its rounding."""
        value = self.value + other.value
        return Near(value, raised(self.error + other.error + ROUNDOFF * np.abs(value), 4))

    def times(self, factor: NDArray | float) -> Near:
        """The product with a given factor, a number or an array of fitting shape, with its rounding."""
        value = self.value * factor
        return Near(value, raised(self.error * np.abs(factor) + ROUNDOFF * np.abs(value), 4))

    def over(self, divisor: float) -> Near:
        """The quotient by a given divisor, with its rounding."""
        value = self.value / divisor
        return Near(value, raised(self.error / abs(divisor) + ROUNDOFF * np.abs(value), 4))

    def norm(self) -> NDArray:
        """(B,) upper bounds of the exact rows' Euclidean norms; infinite where the range was left."""
        with np.errstate(over="ignore", invalid="ignore"):
            return norm_above(np.abs(self.value) + self.error)


def norm_above(size: NDArray) -> NDArray:
    """Euclidean norms along the last axis of an array ≥ 0, (..., n) to (...), rounded upwards; or infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        largest = size.max(axis=-1)
        total = np.sum(np.square(size / largest[..., None]), axis=-1)
        bound = raised(largest * np.sqrt(total), size.shape[-1] + 12)
        return np.where(largest == 0, 0.0, np.where(np.isfinite(bound), bound, np.inf))


class Map:
    """A frozen connection in float64, s ↦ keep ⊙ (scale ⊙ (W s + bias − mean) + shift), with its rounding."""

    def __init__(self, c: AffineMap, rows: slice) -> None:
        self.synapse = c.synapse
        self.taps = c.taps.astype(np.float64)
        n_taps, c_in, c_out = self.taps.shape
        self.fan_in = n_taps * c_in
        self.fan_out = n_taps * (1 if c.synapse.depthwise else c_out)
        self.keep = None if c.keep is None else c.keep[rows].astype(np.float64)
        self.bias = None if c.bias is None else self._spread(c.bias)
        self.norm: tuple[NDArray, ...] | None = None
        if c.norm is not None:
            self.norm = tuple(self._spread(values) for values in (-c.norm.mean, c.norm.scale, c.norm.bias))

    def _spread(self, values: NDArray) -> NDArray:
        """Values of the receiving channels, (1, n_to)."""
        return self.synapse.out_channels(values.astype(np.float64))[None]

    def absolute(self) -> Map:
        """The map of all sizes: its output and rounding at |s| are no smaller than this one's anywhere within."""
        made = copy.copy(self)
        made.taps = np.abs(self.taps)
        made.keep, made.bias = (None if value is None else np.abs(value) for value in (self.keep, self.bias))
        made.norm = None if self.norm is None else tuple(np.abs(values) for values in self.norm)
        return made

    def output(self, s: Near) -> Near:
        """The connection's output for given rates."""
        out = self._product(self.synapse.apply, self.fan_in, s)
        if self.bias is not None:
            out = out.plus(Near.exactly(self.bias))
        if self.norm is not None:
            minus_mean, scale, shift = self.norm
            out = out.plus(Near.exactly(minus_mean)).times(scale).plus(Near.exactly(shift))
        return out if self.keep is None else out.times(self.keep)

    def adjoint(self, v: Near) -> Near:
        """Transpose of the output's linear part."""
        v = v if self.keep is None else v.times(self.keep)
        v = v if self.norm is None else v.times(self.norm[1])
        return self._product(self.synapse.adjoint, self.fan_out, v)

    def _product(self, product: Callable[[NDArray, NDArray], NDArray], terms: int, s: Near) -> Near:
        """W s or Wᵀ s: sums of ``terms`` products, whatever their order, fused or not."""
        value = product(self.taps, np.ascontiguousarray(s.value))
        # A sum of K products is off by at most K u/(1 − K u) times the sum of their sizes; 2 more for safety in K.
        share = (terms + 2.0) * ROUNDOFF / (1.0 - (terms + 2.0) * ROUNDOFF)
        error = product(np.abs(self.taps), np.ascontiguousarray(s.error + share * np.abs(s.value)))
        return Near(value, raised(error, 2 * terms + 12))


def chunks(frozen: Frozen, n_batch: int) -> list[slice]:
    """Samples by as many as fit in a moderate memory."""
    step = max(1, _CHUNK // (frozen.network.state_size + math.prod(frozen.network.input_shape)))
    return [slice(lo, min(lo + step, n_batch)) for lo in range(0, n_batch, step)]


def coupled(maps: Sequence[AffineMap], net: Network) -> bool:
    """Whether a connection between populations couples the samples of a batch: then none has a bound of its own."""
    return any(m.coupled and source >= 0 for m, (source, _) in zip(maps, net.edges, strict=True))


def pre_activations(
    frozen: Frozen, x_mean: NDArray, a: NDArray, rows: slice = slice(None), *, absolute: bool = False
) -> list[Near]:
    """p_l = Σ W_lk a_k + F_l x + b_l of every population at given rates, for some samples.

    Parameters
    ----------
    x_mean, a : (B, *input_shape) and (B, n) arrays
        x, and the rates that all connections read.
    rows : slice
        Of samples.
    absolute : bool
        Whether to sum the sizes of all terms, for x and a that are not negative.
    """
    net = frozen.network
    x = to_channels_last(x_mean[rows], net.input_shape)
    found = [Near.exactly(np.zeros((len(a[rows]), population.size))) for population in net.populations]
    for m, (source, target) in zip(frozen.maps, net.edges, strict=True):
        sent = Near.exactly(x if source < 0 else a[rows, net.slice_of(source)])
        map_ = Map(m, rows).absolute() if absolute else Map(m, rows)
        found[target] = found[target].plus(map_.output(sent))
    return found


def equilibrium_error(frozen: Frozen, x_mean: NDArray, a: NDArray, sigma: str = "clip") -> NDArray:
    """(B, N) upper bounds of ‖a_l − a*_l‖₂ for any rates; infinite where nothing is certified.

    Parameters
    ----------
    x_mean : (B, *input_shape) array
    a : (B, n) array
    sigma : {"clip", "relu"}
    """
    if block_radius(frozen) >= BEYOND:
        return np.full((len(a), len(frozen.network.populations)), np.inf)
    return resolved(np.add(*population_norms(frozen)), defects(frozen, x_mean, a, sigma))


def defects(frozen: Frozen, x_mean: NDArray, a: NDArray, sigma: str = "clip") -> NDArray:
    """(B, N) upper bounds of ‖σ(p_l/V_th) − a_l‖₂ at given rates: how far each population is from (FP).

    Infinite where samples are coupled through batch statistics, or numbers leave the range of float64.
    """
    net = frozen.network
    bounds = np.full((len(a), len(net.populations)), np.inf)
    if coupled(frozen.maps, net):
        return bounds
    upper = 1.0 if sigma == "clip" else np.inf
    for rows in chunks(frozen, len(a)):
        with np.errstate(over="ignore", invalid="ignore"):
            for i, p in enumerate(pre_activations(frozen, x_mean, a, rows)):
                quotient = p.over(net.neurons[i].v_th)
                rates = Near(np.clip(quotient.value, 0.0, upper), quotient.error)
                bounds[rows, i] = rates.plus(Near.exactly(-a[rows, net.slice_of(i)])).norm()
    return bounds


def beta_error(frozen: Frozen, maps: Sequence[AffineMap], slope: NDArray, g: NDArray, beta: NDArray) -> NDArray:
    """(B, N) upper bounds of ‖β_l − β*_l‖₂, from the defects of β_l = g_l + Σ_{l→k} (1/V_th) W_klᵀ m_k β_k.

    M/V_th is exact where the slope is not 0. Infinite where samples are coupled through batch statistics, or numbers
    leave the range of float64.

    Parameters
    ----------
    maps : sequence of AffineMap
        As they are linearised.
    slope, g, beta : (B, n) arrays
        M/V_th, ∂L/∂a, and the β to judge, of all populations.
    """
    net = frozen.network
    bounds = np.full((len(beta), len(net.populations)), np.inf)
    if coupled(maps, net) or block_radius(frozen) >= BEYOND:
        return bounds
    for rows in chunks(frozen, len(beta)):
        with np.errstate(over="ignore", invalid="ignore"):
            places = [net.slice_of(i) for i in range(len(net.populations))]
            left = [Near.exactly(g[rows, place]).plus(Near.exactly(-beta[rows, place])) for place in places]
            for m, (source, target) in zip(maps, net.edges, strict=True):
                if source < 0:
                    continue
                sent = np.where(slope[rows, places[target]] != 0, beta[rows, places[target]], 0.0)
                delta = Near.exactly(sent).over(net.neurons[target].v_th)
                left[source] = left[source].plus(Map(m, rows).adjoint(delta))
            for i, part in enumerate(left):
                bounds[rows, i] = part.norm()
    return resolved(np.add(*population_norms(frozen)).T, bounds)


def known_to(certificate: NDArray) -> NDArray:
    """Of a certificate (B, N) what is finite, else 0: where a* is known that well, bounds speak of the exact one."""
    return np.where(np.isfinite(certificate), certificate, 0.0)


def on_sources(frozen: Frozen, bounds: NDArray) -> NDArray:
    """(B,) bound over the feedback sources together, from those of the populations (B, N)."""
    sources = list(frozen.network.feedback_sources)
    return norm_above(bounds[:, sources]) if sources else np.zeros(len(bounds))
