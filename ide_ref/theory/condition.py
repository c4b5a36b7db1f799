"""(COND) and what stands beside it: norms of the connections, the block matrices of a graph, spectral radii."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ide_ref import _checks, certificates
from ide_ref.certificates import inverse
from ide_ref.constraints import leading_singular_pair
from ide_ref.maps import AffineMap, Frozen
from ide_ref.network import Network
from ide_ref.norms import EXACT_SIZE, matrix_norm, raised


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
        Spectral radius of the same matrix built from |W_ij| instead of norms, one row per neuron. Neither
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
        return certificates.witness(self.propagation) is not None or self.by_weights

    @cached_property
    def resolvent(self) -> NDArray:
        """(I − L)⁻¹, (N, N), from above: how a disturbance of a population reaches the later ones in the same step."""
        return inverse(self.forward)

    @property
    def both(self) -> NDArray:
        """N = L + U, (N, N), from above: a connection is either forward or feedback, so nothing is rounded."""
        return self.forward + self.feedback

    @cached_property
    def propagation(self) -> NDArray:
        """G = (I − L)⁻¹ U, (N, N), from above."""
        return raised(self.resolvent @ self.feedback, len(self.forward) + 4)

    @cached_property
    def series(self) -> NDArray:
        """(I − G)⁻¹, (N, N), from above; infinite where the block condition is not verified."""
        return inverse(self.propagation)

    @cached_property
    def stacked_series(self) -> NDArray:
        """(I − N)⁻¹ with N = L + U, (N, N), from above; infinite where the block condition is not verified."""
        return inverse(self.both)

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
    frozen = of_rollout(frozen)
    net = frozen.network
    norms = tuple(operator_norm(m) for m, _ in inner(frozen))
    forward, feedback = certificates.population_norms(frozen)
    # The figures are of the norms as well as they are known; whether they suffice is asked of the bounds from above.
    L, U = np.zeros((2, *forward.shape))
    for norm, (_, (source, target)) in zip(norms, inner(frozen), strict=True):
        (L if source < target else U)[target, source] += norm.value / net.neurons[target].v_th
    G = np.linalg.solve(np.eye(len(L)) - L, U)
    paper = certificates.contraction(frozen)
    block = float(np.max(np.abs(np.linalg.eigvals(G))))
    elementwise, by_weights = None, False
    if net.state_size <= EXACT_SIZE:
        parts = np.abs(np.stack([block_matrix(frozen, part) for part in ("forward", "feedback")]))
        parts /= net.thresholds()[:, None]
        once = np.linalg.solve(np.eye(net.state_size) - parts[0], parts[1])
        elementwise = float(np.max(np.abs(np.linalg.eigvals(once))))
        # A weight is off by a few roundings at most; where there is none, nothing is lost.
        whole = parts[0] + parts[1]
        whole = raised(whole, 12) * (whole > 0)
        by_weights = certificates.witness(whole) is not None
    stacked = _stacked_norm(frozen, forward + feedback)
    return Conditions(norms, paper, block, elementwise, stacked, forward, feedback, by_weights)


def of_rollout(frozen: Frozen) -> Frozen:
    """The network as the rollout has it: the theorems are about what is simulated.

    ValueError where a connection couples the samples of a batch.
    """
    _checks.kind("frozen", frozen, Frozen)
    for m, (source, _) in zip(frozen.maps, frozen.network.edges, strict=True):
        if m.coupled and source >= 0:
            raise ValueError(
                f"connection {m.name!r} couples the samples of a batch; the theorems need affine connections"
            )
    return replace(frozen, maps=frozen.simulated)


def operator_norm(m: AffineMap) -> OperatorNorm:
    """‖scale ⊙ W‖₂ of a connection at its input size, times the largest factor of its mask: :mod:`ide_ref.norms`."""
    norm = m.norm_bound
    return OperatorNorm(m.name, norm.value, norm.upper - norm.value)


def block_matrix(frozen: Frozen, part: str = "all") -> NDArray:
    """The block matrix of the connections between populations, (n, n): row the receiving neuron.

    Parameters
    ----------
    part : {"all", "forward", "feedback"}
        Which connections. For small networks: n² numbers. Dropout masks count with their largest factor.

    Raises
    ------
    ValueError
        For another part, or a connection that couples the samples of a batch.
    """
    frozen = of_rollout(frozen)
    if not _checks.is_one_of(part, ("all", "forward", "feedback")):
        raise ValueError(f"part is {part!r}; expected 'all', 'forward' or 'feedback'")
    net = frozen.network
    B = np.zeros((net.state_size, net.state_size))
    for m, (source, target) in inner(frozen):
        if part == "all" or part == ("forward" if source < target else "feedback"):
            block = along(replace(m, keep=None), np.eye(m.synapse.n_in)[None])[0].T
            B[net.slice_of(target), net.slice_of(source)] += m.largest_factor * block
    return B


def _stacked_norm(frozen: Frozen, norms: NDArray) -> OperatorNorm:
    """‖B‖₂/V_th; of a large network from a search, and from above by the matrix of the connections' norms."""
    net = frozen.network
    n, v_th = net.state_size, net.neurons[0].v_th
    # Over the first V_th; rows of another are scaled, all others by exactly 1.
    rows = v_th / net.population_thresholds
    if n <= EXACT_SIZE:
        norm = matrix_norm(np.repeat(rows, np.diff(net.offsets))[:, None] * block_matrix(frozen))
        # Two more roundings of an entry change the norm by at most 2 √n of them, as in `matrix_norm`.
        upper = raised(norm.upper / v_th, 3 if np.all(rows == 1) else 3 + 2 * np.sqrt(n))
        return OperatorNorm("stacked", norm.value / v_th, upper - norm.value / v_th)
    parts = [(replace(m, keep=None), m.largest_factor * float(rows[ends[1]]), ends) for m, ends in inner(frozen)]

    def product(v: NDArray, transposed: bool) -> NDArray:
        out = np.zeros(n, v.dtype)
        for m, factor, (source, target) in parts:
            reads, writes = (target, source) if transposed else (source, target)
            part = v[None, net.slice_of(reads)]
            out[net.slice_of(writes)] += factor * (m.adjoint(part) if transposed else m.linear(part))[0]
        return out

    start = np.random.default_rng(0).standard_normal(n).astype(frozen.dtype)
    # The value's error is of the second order in it.
    tol = float(np.sqrt(np.finfo(frozen.dtype).eps))
    pair = leading_singular_pair(lambda v: product(v, False), lambda v: product(v, True), start, tol=tol)
    upper = matrix_norm(norms).upper
    value = min(pair.value / v_th, upper)
    return OperatorNorm("stacked", value, upper - value)


def inner(frozen: Frozen) -> Iterator[tuple[AffineMap, tuple[int, int]]]:
    """Maps between populations with their ends."""
    return ((m, ends) for m, ends in zip(frozen.maps, frozen.network.edges, strict=True) if ends[0] >= 0)


def along(m: AffineMap, cells: NDArray) -> NDArray:
    """The linear part in float64: (B, k, n_from) to (B, k, n_to)."""
    out = m.synapse.apply(m.taps.astype(np.float64), cells.reshape(-1, cells.shape[2]))
    if m.norm is not None:
        out = out * m.synapse.out_channels(m.norm.scale.astype(np.float64))
    out = out.reshape(*cells.shape[:2], -1)
    return out if m.keep is None else m.keep[:, None] * out


def check_run(frozen: Frozen, name: str, run: Any, kind: type) -> Frozen:
    """The network as the rollout has it; ValueError for what is no run, or one of another network."""
    frozen = of_rollout(frozen)
    _checks.kind(name, run, kind)
    if run.network != frozen.network:
        raise ValueError(f"{name} is a run of another network than frozen; expected one of the same")
    return frozen


def population_norms(net: Network, state: NDArray) -> NDArray:
    """(..., n) to (..., N)."""
    parts = (state[..., net.slice_of(i)] for i in range(len(net.populations)))
    return np.stack([np.linalg.norm(part, axis=-1) for part in parts], axis=-1)


def median_ratio(error: NDArray, bound: NDArray) -> float:
    """Median of error over bound, two arrays of one shape, where the bound is not 0; 0 where it is 0 throughout."""
    ratios = error[bound > 0] / bound[bound > 0]
    return float(np.median(ratios)) if ratios.size else 0.0
