"""The fixed-point equation (FP) of a graph: its map, its Jacobian's products, its solution, its contraction.

The unknowns are the rates of the populations that send feedback. One *sweep* goes through the populations in
order, forward connections reading rates just computed and feedback connections the given ones; a single
layer, the layers of (LAYERS) and any other graph are the same sweep.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ide_ref import solvers
from ide_ref.network import Frozen, FrozenConnection, Network, of_population
from ide_ref.neurons import MaskRule


@dataclass(frozen=True)
class Sweep:
    """(FP) evaluated once.

    Attributes
    ----------
    a, p : (B, n) arrays
        Rates of all populations, and the pre-activations p with a = σ(p / V_th).
    connections : tuple of FrozenConnection
        As they are linearised here.
    """

    a: NDArray
    p: NDArray
    connections: tuple[FrozenConnection, ...]


def sweep(frozen: Frozen, feedback: NDArray, drive: NDArray, *, forward: NDArray | None = None) -> Sweep:
    """One pass of (FP) through the populations in order.

    Parameters
    ----------
    feedback : (B, n) array
        Rates that feedback connections read.
    drive : (B, n) array
        F x + b of the input connections.
    forward : (B, n) array, optional
        Rates that forward connections read, in place of those just computed.
    """
    net = frozen.network
    p = drive.copy()
    a = np.empty_like(p)
    connections = list(frozen.connections)
    for target in range(len(net.populations)):
        place = net.place(target)
        for i, (source, end) in enumerate(net.ends):
            if end == target and source >= 0:
                rates = feedback if source >= target else a if forward is None else forward
                out, connections[i] = frozen.connections[i].at(rates[:, net.place(source)])
                p[:, place] += out
        a[:, place] = net.neuron.sigma(p[:, place])
    return Sweep(a, p, tuple(connections))


def fixed_point_map(frozen: Frozen, x: NDArray, z: NDArray) -> NDArray:
    """f_θ of (FP): rates of the feedback sources after one sweep.

    Parameters
    ----------
    x : (B, *input_shape) array
        x*.
    z : (B, m) array
        Rates of the feedback sources, side by side.
    """
    x = frozen.check_input(x)
    return gather_sources(frozen.network, sweep(frozen, spread_sources(frozen.network, z), frozen.drive(x)).a)


def gather_sources(net: Network, state: NDArray) -> NDArray:
    """The feedback sources' part of a state: (B, n) to (B, m)."""
    if net.feedback_size == net.state_size:
        return state
    if not net.feedback_sources:
        return state[:, :0]
    return np.concatenate([state[:, place] for _, place, _ in net.feedback_places], axis=1)


def spread_sources(net: Network, z: NDArray) -> NDArray:
    """Transpose of ``gather_sources``: (B, m) to (B, n), zero elsewhere."""
    if net.feedback_size == net.state_size:
        return z
    state = np.zeros((z.shape[0], net.state_size), z.dtype)
    for _, place, part in net.feedback_places:
        state[:, place] = z[:, part]
    return state


@dataclass(frozen=True)
class Linearisation:
    """(FP) around given rates: masks, and products with J and Jᵀ.

    Attributes
    ----------
    frozen : Frozen
    connections : tuple of FrozenConnection
        As they are linearised there.
    slope : (B, n) array
        M / V_th, (MASK).
    forward, feedback : (B, n) arrays
        Rates that forward and feedback connections read there.
    """

    frozen: Frozen
    connections: tuple[FrozenConnection, ...]
    slope: NDArray
    forward: NDArray
    feedback: NDArray

    def jvp(self, v: NDArray) -> NDArray:
        """J v on the feedback sources: (B, m) to (B, m)."""
        net = self.frozen.network
        given = spread_sources(net, v)
        da = np.zeros_like(self.slope)
        for target in range(len(net.populations)):
            place = net.place(target)
            for c, (source, end) in zip(self.connections, net.ends, strict=True):
                if end == target and source >= 0:
                    rates = da if source < target else given
                    da[:, place] += c.linear(rates[:, net.place(source)])
            da[:, place] *= self.slope[:, place]
        return gather_sources(net, da)

    def sweep_back(self, w: NDArray, g: NDArray | None = None) -> tuple[NDArray, NDArray, NDArray]:
        """One backward pass of (BETA) through the populations in reverse.

        Parameters
        ----------
        w : (B, m) array
            What has arrived at the feedback sources from the loss and through feedback.
        g : (B, n) array, optional
            ∂L/∂a of the populations that send no feedback.

        Returns
        -------
        beta : (B, n) array
            β_l = (w or g)_l + Σ over forward connections l → k of (1/V_th) Wᵀ m_k β_k.
        delta : (B, n) array
            (1/V_th) M β, what enters (HEBB).
        y : (B, m) array
            What feedback connections return to their sources: Jᵀ w when g is None.
        """
        net = self.frozen.network
        beta = spread_sources(net, w)
        if g is not None:
            beta = beta + g
        elif len(net.populations) > 1:
            beta = beta.copy() if beta is w else beta
        delta = np.empty_like(self.slope)
        returned = np.zeros_like(self.slope)
        for target in range(len(net.populations) - 1, -1, -1):
            place = net.place(target)
            np.multiply(self.slope[:, place], beta[:, place], out=delta[:, place])
            for c, (source, end) in zip(self.connections, net.ends, strict=True):
                if end == target and source >= 0:
                    into = beta if source < target else returned
                    into[:, net.place(source)] += c.adjoint(delta[:, place])
        return beta, delta, gather_sources(net, returned)

    def vjp(self, w: NDArray) -> NDArray:
        """Jᵀ w on the feedback sources: (B, m) to (B, m), one backward sweep."""
        return self.sweep_back(w)[2]


def linearise(
    frozen: Frozen, a: NDArray, drive: NDArray, *, mask_rule: MaskRule = "closed", recompute: bool = False
) -> Linearisation:
    """Linearise (FP) at given rates.

    Parameters
    ----------
    a : (B, n) array
        Rates of all populations, a rollout's or an equilibrium's.
    drive : (B, n) array
        F x + b of the input connections.
    mask_rule : {"closed", "open", "half"}
        Which ends of σ's slope count as inside, (MASK).
    recompute : bool
        False: every population's mask is taken at the given rates. True: only the feedback sources' rates
        are given, the others follow from them through one sweep.
    """
    neuron = frozen.network.neuron
    there = sweep(frozen, a, drive, forward=None if recompute else a)
    slope = neuron.mask(there.p, mask_rule).astype(frozen.dtype)
    slope /= frozen.dtype.type(neuron.v_th)
    return Linearisation(frozen, there.connections, slope, there.a if recompute else a, a)


def contraction(frozen: Frozen) -> float:
    """γ of (COND): a bound of the sweep's Lipschitz constant from operator norms.

    For one layer ‖W‖/V_th; for (LAYERS) the product of the norms over V_th^N; for a graph the 2-norm of the
    non-negative matrix that carries norms from source to source through one sweep.
    """
    net = frozen.network
    if not net.feedback_sources:
        return 0.0
    m = len(net.feedback_sources)
    reach = np.zeros((len(net.populations), m))
    unit = {source: np.eye(m)[i] for i, source in enumerate(net.feedback_sources)}
    for target in range(len(net.populations)):
        for c, (source, end) in zip(frozen.connections, net.ends, strict=True):
            if end == target and source >= 0:
                given = reach[source] if source < target else unit[source]
                reach[target] += c.operator_norm / net.neuron.v_th * given
    return float(np.linalg.norm(reach[list(net.feedback_sources)], 2))


def certified(residual: NDArray, gamma: float) -> NDArray:
    """(CERT): bound of the distance to the solution, residual/(1 − γ); infinite for γ ≥ 1."""
    return residual / (1.0 - gamma) if gamma < 1.0 else np.full_like(residual, np.inf)


@dataclass(frozen=True)
class Equilibrium:
    """A solution of (FP).

    Attributes
    ----------
    network : Network
    a : (B, n) array
        a* of all populations in cell order.
    p : (B, n) array
        Pre-activations there; a = σ(p / V_th).
    x_mean : (B, *input_shape) array
        x*.
    residual : (B,) array
        ‖f(a) − a‖₂ on the feedback sources.
    iterations : int
    converged : bool
        Every residual is at most the tolerance.
    contraction : float
        γ of (COND), from operator norms.
    """

    network: Network
    a: NDArray
    p: NDArray
    x_mean: NDArray
    residual: NDArray
    iterations: int
    converged: bool
    frozen: Frozen

    @cached_property
    def contraction(self) -> float:
        """γ of (COND), from operator norms."""
        return contraction(self.frozen)

    @cached_property
    def certificate(self) -> NDArray:
        """(B,) bound of ‖a − a*‖₂ on the feedback sources, (CERT); infinite where γ ≥ 1."""
        return certified(self.residual, self.contraction)

    def of(self, population: str) -> NDArray:
        """(B, *shape) rates of one population."""
        return of_population(self.network, self.a, population)

    @property
    def pieces(self) -> NDArray[np.int8]:
        """(B, n) which piece of σ each neuron is on: −1 below 0, 0 on the slope, 1 above V_th."""
        v_th = self.network.neuron.v_th
        return (self.p > v_th).astype(np.int8) - (self.p < 0).astype(np.int8)


def find_equilibrium(
    frozen: Frozen,
    x: NDArray,
    *,
    tol: float = 1e-13,
    max_iter: int = 2000,
    start: NDArray | None = None,
    allow_unconverged: bool = False,
) -> Equilibrium:
    """Solve a* = σ((W a* + F x* + b)/V_th), (FP), by iterating the sweep.

    Parameters
    ----------
    x : (B, *input_shape) array or (B, T, *input_shape)
        x*, or a spike train whose weighted average stands for it.
    tol : float
        On ‖f(a) − a‖₂ of every sample, relative to 1 + ‖a‖₂.
    max_iter : int
    start : (B, n) array, optional
        Where to begin; zero rates by default.
    allow_unconverged : bool
        Return the last iterate instead of raising.

    Raises
    ------
    NotConverged
        When the tolerance is not met; γ ≥ 1 is the usual reason.
    """
    net = frozen.network
    x = frozen.check_input(x)
    x_mean = frozen.mean_input(x)
    drive = frozen.drive(x_mean)
    a = np.zeros_like(drive) if start is None else start
    p = drive
    residual = np.full(x.shape[0], np.inf, drive.dtype)
    converged = False
    k = 0
    while k < max_iter and not converged:
        after = sweep(frozen, a, drive)
        new = gather_sources(net, after.a)
        residual = solvers.norms(new - gather_sources(net, a))
        converged = bool(np.all(residual <= tol * (1.0 + solvers.norms(new))))
        a, p = after.a, after.p
        k += 1
    if not converged and not allow_unconverged:
        raise solvers.NotConverged(
            f"equilibrium: residual {float(np.max(residual)):.2e} after {k} sweeps, tolerance {tol:.0e}; "
            f"gamma is {contraction(frozen):.3f} and (COND) asks for less than 1"
        )
    return Equilibrium(net, a, p, x_mean, residual, k, converged, frozen)
