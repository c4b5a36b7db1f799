"""Implicit differentiation at the equilibrium: β and the Hebbian gradients.

Nothing of the forward rollout is needed but its average rates: (BETA) is one more equilibrium, reached along
the connections in reverse, and every gradient is an outer product of what arrives there with the rates that
were sent, (HEBB).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ide_ref import _checks, _threads, certificates, solvers
from ide_ref.equilibrium import Equilibrium, Linearisation, contraction, gather_sources, linearise
from ide_ref.maps import Frozen
from ide_ref.network import Params
from ide_ref.neurons import MaskRule
from ide_ref.simulation import Rates
from ide_ref.solvers import Image, Solution
from ide_ref.synapses import to_channels_last


@dataclass(frozen=True)
class Backward:
    """Gradients of one batch.

    Attributes
    ----------
    gradients : dict
        ∂L/∂ of every trainable parameter, in its shape.
    statistics : dict
        Running statistics after this batch, to merge into the parameters.
    beta : (B, n) array
        β of all populations, channels-last order.
    solution : Solution
        How (BETA) was solved on the feedback sources, with its residuals.
    frozen : Frozen
        The network it belongs to.
    asked : Asked
        What was differentiated, from which the certificate is computed when it is asked for.
    """

    gradients: Params
    statistics: Params
    beta: NDArray
    solution: Solution
    frozen: Frozen
    asked: Asked

    @cached_property
    def contraction(self) -> float:
        """γ of (COND), from operator norms; computed when asked for."""
        return contraction(self.frozen)

    @cached_property
    def errors(self) -> NDArray:
        """(B, N) bounds of ‖β_l − β*_l‖₂ for each population, (CERT), rounding included; computed when asked for."""
        asked = self.asked
        jacobian, at = linearisations(self.frozen, asked.state, asked.mask_rule, asked.recompute)
        if jacobian is not at:
            return np.full((len(self.beta), len(self.frozen.network.populations)), np.inf)
        g, _ = self.frozen.read_out_pull_back(asked.state, asked.d_logits)
        return certificates.beta_error(self.frozen, jacobian.maps, jacobian.slope, g, self.beta)

    @property
    def certificate(self) -> NDArray:
        """(B,) bound of ‖β − β*‖₂ on the feedback sources, (CERT), rounding included; infinite as ``why_not`` says."""
        return certificates.on_sources(self.frozen, self.errors)

    @property
    def why_not(self) -> str:
        """Why no error is certified; empty where one is."""
        if self.frozen.further_sweeps:
            return "beta is solved for at one linearisation and used at another"
        return certificates.why_not(self.frozen)


@dataclass(frozen=True)
class Asked:
    """The arguments of :func:`backward` that a certificate goes back to; ``d_logits`` is (B, n_classes)."""

    state: Rates | Equilibrium
    d_logits: NDArray
    mask_rule: MaskRule
    recompute: bool


def linearisations(
    frozen: Frozen, state: Rates | Equilibrium, mask_rule: MaskRule = "closed", recompute: bool = False
) -> tuple[Linearisation, Linearisation]:
    """Whose Jᵀ is inverted, and where the last sweep and the outer products are taken: the same by default."""
    drive = frozen.drive(state.x_mean)
    recompute = recompute or frozen.further_sweeps > 0
    at = jacobian = linearise(frozen, state.a, drive, mask_rule=mask_rule, recompute=recompute)
    for _ in range(frozen.further_sweeps):
        jacobian = linearise(frozen, jacobian.forward, drive, mask_rule=mask_rule, recompute=True)
    return jacobian, at


def right_hand_side(jacobian: Linearisation, g: NDArray) -> tuple[NDArray, NDArray | None]:
    """(BETA) on the feedback sources: g there with what a sweep brings them of g elsewhere, (B, m).

    And g elsewhere, (B, n), None where it is 0.
    """
    net = jacobian.frozen.network
    b = gather_sources(net, g)
    if not any(g[:, net.slice_of(i)].any() for i in range(len(net.populations)) if i not in net.feedback_sources):
        return b, None
    others = g.copy()
    for _, columns, _ in net.feedback_slices:
        others[:, columns] = 0
    return b + jacobian.sweep_back(np.zeros_like(b), others)[0], others


def solve_beta(
    jacobian: Linearisation,
    g: NDArray,
    *,
    at: Linearisation | None = None,
    solver: str = "fixed_point",
    tol: float | None = None,
    max_iter: int = 200,
    allow_unconverged: bool = False,
) -> tuple[NDArray, NDArray, Solution]:
    """Solve (BETA) for a loss gradient.

    Parameters
    ----------
    jacobian : Linearisation
        Whose Jᵀ is inverted.
    g : (B, n) array
        ∂L/∂a of all populations.
    at : Linearisation, optional
        Where the last sweep is taken, in place of ``jacobian``.
    solver, tol, max_iter : str, float, int
        As in :func:`ide_ref.solvers.solve`.
    allow_unconverged : bool
        Return the last iterate instead of raising.

    Returns
    -------
    beta, delta : (B, n) arrays
        β and (1/V_th) M β of all populations.
    solution : Solution
        On the feedback sources.

    Raises
    ------
    NotConverged
        Unless ``allow_unconverged``.
    """
    at = jacobian if at is None else at
    _checks.kind("jacobian", jacobian, Linearisation)
    _checks.kind("at", at, Linearisation)
    g = jacobian.frozen.check_state("g", g, len(jacobian.slope))
    tol = _checks.tolerance(tol, g.dtype, solvers.TOLERANCE, must_reach=not allow_unconverged)
    b, others = right_hand_side(jacobian, g)
    if not np.all(np.isfinite(b)):
        raise solvers.NotConverged(f"(BETA): its right-hand side has left the range of {b.dtype}")
    # Samples coupled through batch statistics have one Krylov space together.
    joined = _checks.is_one_of(solver, ("gmres",)) and certificates.coupled(jacobian.maps, jacobian.frozen.network)
    solution = solvers.solve(
        solver, lambda w: Image(*jacobian.sweep_back(w)), b, tol=tol, max_iter=max_iter, joined=joined
    )
    if not allow_unconverged:
        solvers.require(solution, "(BETA)")
    if at is jacobian and others is None and solution.aux is not None:
        return *solution.aux, solution
    return *at.spread_back(solution.x, others), solution


def hebbian(linearisation: Linearisation, delta: NDArray, x_mean: NDArray) -> tuple[Params, Params]:
    """(HEBB) for every connection, pulled back to the parameters; and the running statistics.

    Parameters
    ----------
    linearisation : Linearisation
    delta : (B, n) array
        (1/V_th) M β.
    x_mean : (B, *input_shape) array
    """
    frozen = linearisation.frozen
    net = frozen.network
    inputs = to_channels_last(x_mean, net.input_shape)
    grads: Params = {}
    statistics: Params = {}
    for i, (source, target) in enumerate(net.edges):
        sent = inputs
        if source >= 0:
            rates = linearisation.forward if source < target else linearisation.feedback
            sent = rates[:, net.slice_of(source)]
        found, updated = frozen.pullbacks[i].gradients(
            linearisation.maps[i], delta[:, net.slice_of(target)], sent, linearisation.caches[i]
        )
        grads.update(found)
        statistics.update(updated)
    return grads, statistics


@_threads.fitted
def backward(
    frozen: Frozen,
    state: Rates | Equilibrium,
    d_logits: NDArray,
    *,
    solver: str = "fixed_point",
    tol: float | None = None,
    max_iter: int = 200,
    mask_rule: MaskRule = "closed",
    recompute: bool = False,
    allow_unconverged: bool = False,
    lap: Callable[[str], None] = lambda stage: None,
) -> Backward:
    """Gradient of a loss by implicit differentiation.

    Parameters
    ----------
    frozen : Frozen
        As used for the forward pass.
    state : Rates or Equilibrium
        Where to differentiate: the simulated a[T], or a* itself.
    d_logits : (B, n_classes) array
        ∂L/∂o.
    solver : str
        One of :data:`ide_ref.solvers.SOLVERS`.
    tol : float, optional
        Relative, on the residual of (BETA), every sample; by default that of the dtype.
    max_iter : int
        Most products with Jᵀ.
    mask_rule, recompute : str, bool
        As in :func:`ide_ref.equilibrium.linearise`. By default all masks are taken at the simulated rates.
    allow_unconverged : bool
        Take β as it is when the solver stops early; ``solution.converged`` tells.
    lap : callable
        Called with the name of each stage as it ends: "readout", "linearise", "solve", "hebbian". For clocks.

    Raises
    ------
    ValueError
        When shapes do not fit, ``d_logits`` is not finite, or ``tol`` is below what the dtype can reach.
    NotConverged
        When (BETA) was not solved to ``tol``.
    """
    _checks.kind("frozen", frozen, Frozen)
    _checks.kind("state", state, Rates, Equilibrium)
    d_logits = frozen.check_d_logits(d_logits, state.a.shape[0])
    g, grads = frozen.read_out_pull_back(state, d_logits)
    lap("readout")
    jacobian, at = linearisations(frozen, state, mask_rule, recompute)
    lap("linearise")
    beta, delta, solution = solve_beta(
        jacobian, g, at=at, solver=solver, tol=tol, max_iter=max_iter, allow_unconverged=allow_unconverged
    )
    # A state is 80 MB in the larger networks: what is no longer needed goes before the outer products come.
    del g, jacobian
    lap("solve")
    found, statistics = hebbian(at, delta, state.x_mean)
    lap("hebbian")
    asked = Asked(state, d_logits, mask_rule, recompute)
    return Backward({**grads, **found}, {**frozen.statistics, **statistics}, beta, solution, frozen, asked)
