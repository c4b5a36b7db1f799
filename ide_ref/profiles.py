"""Where training may differ from the paper's letter, one switch a difference.

The default does what the paper says. :func:`authors` reproduces the figures of the authors' program; a profile with
one switch on shows what that difference costs. Differences that are a matter of other options need no switch here:
the solvers (``solver="halved"``; ``solver="broyden", max_iter=30, allow_unconverged=True``) and the norm of the
restriction (``Restriction(norm="kernel")``).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """Switches, all off by default.

    Attributes
    ----------
    batch_statistics_in_beta : bool
        Hidden batch normalisation uses the batch's own statistics of the average rates in (BETA) and (HEBB),
        which couples the samples of a batch; simulation keeps the running ones.
    batch_statistics_in_gradient : bool
        The gradient of what a hidden batch normalisation follows passes through the batch's own statistics of the
        average rates; simulation and (BETA) keep the running ones. Not a switch of :func:`authors`, which have it
        in (BETA) too. Without either, nothing in the gradient knows that a larger weight will be scaled down
        again: deep networks with batch normalisation diverge.
    sweep_first : bool
        ∂f/∂θ with the feedback sources' rates as simulated and the other rates recomputed through f, and J one
        sweep further on, at f(a). Otherwise both at the simulated rates.
    unbiased_spike_statistics : bool
        For spike input, the statistics used while simulating have the unbiased variance and 1e-8 inside the
        root; those of (BETA) and (HEBB) the biased one and 1e-5.
    statistics_twice : bool
        A batch enters the running statistics of static input twice.
    one_power_step : bool
        The restriction's norm comes from one step of power iteration a call.
    clamp_alpha : bool
        α starts at the norm of W̄ and is clamped when used, with gradient 0 outside, instead of being
        projected after each step.
    long_average : bool
        The average of LIF spike input is too large by (1 − λ^{2T})/(1 − λ^{T+1}).
    """

    batch_statistics_in_beta: bool = False
    batch_statistics_in_gradient: bool = False
    sweep_first: bool = False
    unbiased_spike_statistics: bool = False
    statistics_twice: bool = False
    one_power_step: bool = False
    clamp_alpha: bool = False
    long_average: bool = False


PAPER = Profile()


def authors(n_populations: int) -> Profile:
    """All of the program's differences; it has another rule of linearisation for several populations."""
    return Profile(
        batch_statistics_in_beta=True,
        sweep_first=n_populations > 1,
        unbiased_spike_statistics=True,
        statistics_twice=True,
        one_power_step=True,
        clamp_alpha=True,
        long_average=True,
    )
