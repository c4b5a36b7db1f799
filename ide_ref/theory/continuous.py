"""(ERR) along a run in continuous time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ide_ref import _checks, certificates
from ide_ref.continuous import ContinuousRun, constant_drive, time_constant
from ide_ref.equilibrium import Equilibrium, find_equilibrium
from ide_ref.maps import Frozen
from ide_ref.norms import ROUNDOFF, raised
from ide_ref.theory.condition import Conditions, check_run, conditions, median_ratio, population_norms


@dataclass(frozen=True)
class ContinuousBound:
    """(ERR) in continuous time at the requested times of a run, a column per population.

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
        return median_ratio(self.error, self.one_step)

    def floor(self, tau: float) -> NDArray:
        """(N,) limit of the bound: (I − N)⁻¹ c √n/(τ_m V_th), 0 for IF (infinite τ_m, in the run's unit of time)."""
        tau = time_constant("tau", tau)
        net = self.equilibrium.network
        sizes = np.sqrt([p.size for p in net.populations])
        # Raised above 0, for the series is infinite beyond (COND).
        rest = raised(self.u_plus_sup * sizes / (tau * net.population_thresholds), 8)
        return raised(self.conditions.stacked_series @ rest, len(sizes) + 8) + self.certificate


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
    ValueError
        For a run of another network, or an x* that is not one finite sample.
    NotConverged
        When a* cannot be found.
    """
    frozen = check_run(frozen, "run", run, ContinuousRun)
    net = frozen.network
    v_th, v_th_of_neurons = net.population_thresholds, net.thresholds()
    star = _checks.reals("x_star", x_star)
    if star.shape != net.input_shape or not np.all(np.isfinite(star)):
        raise ValueError(f"x_star has shape {star.shape}; expected {net.input_shape}, finite, one sample")
    conditions_ = conditions(frozen)
    equilibrium = find_equilibrium(frozen, star[None], method="newton", sigma="relu")
    u_plus = run.u_plus / run.kernel_total[:, None]
    off = np.abs(v_th_of_neurons * run.a - (np.maximum(run.p, 0.0) - u_plus))
    # Rates and drives are sums over spikes and connections: relative to what they are made of.
    terms = run.spike_times.size + net.state_size + float(np.prod(net.input_shape)) + 32.0
    sizes = certificates.pre_activations(frozen, np.abs(star)[None], run.a + run.a_delayed, absolute=True)
    made_of = np.concatenate([p.value for p in sizes], axis=1) + np.abs(run.drive) + np.abs(u_plus)
    made_of += v_th_of_neurons * run.a
    drift, of_input = (1.0 - run.ratio)[:, None] * run.recurrent, run.drive - constant_drive(frozen, star[None])
    parts = (run.a - equilibrium.a, run.a_delayed - equilibrium.a, drift, of_input, u_plus)
    error, delayed, drift, of_input, potential = (population_norms(net, part) for part in parts)
    lost = population_norms(net, off + 4.0 * terms * ROUNDOFF * made_of)
    defect = certificates.defects(frozen, equilibrium.x_mean, equilibrium.a, "relu")
    certificate = certificates.resolved(conditions_.both, defect)[0]
    known = certificates.known_to(certificate)
    rounding = v_th * defect[0] + lost
    slack = 4 * (net.state_size + len(net.populations)) + 36
    r = raised((drift + of_input + potential + rounding) / v_th, slack)
    gamma = raised(conditions_.stacked.value + conditions_.stacked.error, 1)
    disturbances = np.linalg.norm([part / v_th for part in (drift, of_input, potential, rounding)], axis=2)
    whole = raised(disturbances.sum(axis=0), slack)
    if run.delay > 0:
        one_step = raised(delayed @ conditions_.both.T + r, slack)
        stacked = raised(gamma * np.linalg.norm(delayed, axis=1) + whole, slack)
    else:
        # Without delay the error stands on both sides. No r is 0, so an infinite series makes this infinite.
        one_step = raised(r @ conditions_.stacked_series.T, slack)
        stacked = certificates.certified(whole, gamma)
    c = np.maximum.reduceat(np.abs(run.u_plus).max(axis=0, initial=0.0), net.offsets[:-1])
    c = raised(c + (run.kernel_total[:, None] * lost).max(axis=0, initial=0.0), 12)
    return ContinuousBound(
        error, delayed, one_step + known, drift, of_input, potential, rounding, certificate,
        stacked + certificates.norm_above(known), c, equilibrium, conditions_,
    )  # fmt: skip


def continuous_envelope(
    conditions_: Conditions,
    v_th: float | NDArray,
    disturbance: NDArray,
    largest: NDArray,
    times: ArrayLike,
    delay: float,
) -> NDArray:
    """O(1/t) bound of E(t) for IF in continuous time, where r(t) ≤ R/t: N^m E_sup + (2/t) (I − N)⁻¹ R/V_th.

    m = ⌊t/(2Δ)⌋ steps back lead to no time before t/2, and r is at most 2R/t after that.

    Parameters
    ----------
    v_th : float or (N,) array
        V_th of all populations, or of each.
    disturbance, largest : (N,) arrays
        R, and a bound of E at all times.

    Returns
    -------
    (M, N) array, infinite where the block condition does not hold.
    """
    times = np.asarray(times, np.float64)
    N = conditions_.both
    if certificates.witness(N) is None:
        return np.full((times.size, len(N)), np.inf)
    sum_ = raised(conditions_.stacked_series @ (disturbance / v_th), len(N) + 8)
    if delay == 0:
        return raised(sum_ / times[:, None], 8)
    steps = np.floor(times / (2 * delay)).astype(int)
    # Each factor of a power has room for the roundings of its product, by squaring or not, of len(N) terms.
    N = raised(N, len(N))
    start = np.stack([np.linalg.matrix_power(N, m) @ largest for m in steps])
    return raised(start + 2.0 * sum_ / times[:, None], len(N) + 12)
