"""Differences of the authors' program, as edits of a network and its maps; no other module knows of them.

The default does what the paper says. A :class:`Profile` has one switch per difference: :func:`authors` has them all, to
reproduce the figures of the authors' program; one alone shows what it costs. Differences that are a matter of other
options need no switch here: the solvers (``solver="damped"``; ``solver="broyden", max_iter=30,
allow_unconverged=True``) and the norm of the restriction (``Restriction(norm="kernel")``).

Source: each difference as the authors' program computes it, named at its switch; their effects in
``notebooks/11-museum-of-mistakes.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ide_ref import _checks, constraints
from ide_ref.constraints import MOMENTUM, BatchNorm, SingularPair
from ide_ref.maps import AffineMap, Frozen
from ide_ref.network import INPUT, Connection, Network, Params, check_norm, restricted_map


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
        The restriction's norm comes from one step of power iteration per call.
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


def edited(network: Network, profile: Profile) -> Network:
    """A network that goes by a profile in all that is done with it: initialised, frozen, differentiated, projected."""
    _checks.kind("network", network, Network)
    _checks.kind("profile", profile, Profile)
    parts = {part.name: getattr(network, part.name) for part in fields(Network)}
    return Network(**parts) if profile == PAPER else EditedNetwork(**parts, profile=profile)


def profile_of(network: Network) -> Profile:
    """The profile that a network goes by."""
    return network.profile if isinstance(network, EditedNetwork) else PAPER


@dataclass(frozen=True)
class CoupledMap(AffineMap):
    """A map whose output is normalised with the statistics of the very rates that it is given; not in simulation."""

    @property
    def coupled(self) -> bool:
        return True

    @property
    def in_rollout(self) -> AffineMap:
        return as_kind(AffineMap, self)

    def apply_at(self, s: NDArray, out: NDArray) -> tuple[AffineMap, NDArray]:
        z = self.pre_activation(s)
        here = self.normalised_by(z)
        here.normalise(z, out)
        return here, z


@dataclass(frozen=True)
class UnbiasedMap(AffineMap):
    """A map that is normalised otherwise in simulation."""

    norm_in_rollout: BatchNorm | None = None

    @property
    def in_rollout(self) -> AffineMap:
        return replace(as_kind(AffineMap, self), norm=self.norm_in_rollout)


def as_kind(kind: type[AffineMap], m: AffineMap) -> Any:
    """The same map as one of another class."""
    return kind(**{part.name: getattr(m, part.name) for part in fields(AffineMap)})


@dataclass(frozen=True)
class EditedNetwork(Network):
    """A network under a profile, see :func:`edited`."""

    profile: Profile = PAPER

    def init(self, rng: np.random.Generator, *, dtype: DTypeLike = np.float64) -> Params:
        params = super().init(rng, dtype=dtype)
        for c in self.connections:
            if c.restriction and self.profile.clamp_alpha:
                weight, start = params[f"{c.name}.weight"], params[f"{c.name}.singular_vector"]
                norm = super().leading_pair(c, weight, start, constraints.singular_tolerance(weight.dtype)).value
                params[f"{c.name}.alpha"] = np.asarray(norm, weight.dtype)
        return params

    def project(self, params: Params) -> Params:
        return params if self.profile.clamp_alpha else super().project(params)

    def mean_input(self, x: NDArray) -> NDArray:
        mean = super().mean_input(x)
        if not (self.profile.long_average and self.is_spike_input(x) and self.input_neuron.leak < 1.0):
            return mean
        n_steps = x.shape[1]
        return mean * (self.input_neuron.total_weight(2 * n_steps) / self.input_neuron.total_weight(n_steps + 1))

    def leading_pair(self, c: Connection, weight: NDArray, start: NDArray, tol: float) -> SingularPair:
        if not self.profile.one_power_step:
            return super().leading_pair(c, weight, start, tol)
        pair = constraints.power_step(*restricted_map(c, weight), start)
        check_norm(c, pair, weight.dtype)
        return pair

    def edited(self, frozen: Frozen, x: NDArray | None) -> Frozen:
        """The maps as the profile has them, from the batch x, (B, *input_shape), or from none.

        ValueError for one sample where the profile's variance is unbiased.
        """
        profile = self.profile
        frozen = replace(frozen, further_sweeps=int(profile.sweep_first))
        if x is None:
            return frozen
        is_spike_input = self.is_spike_input(x)
        maps, pullbacks = list(frozen.maps), list(frozen.pullbacks)
        for i, (c, m) in enumerate(zip(self.connections, frozen.maps, strict=True)):
            if m.norm is None:
                continue
            if c.source != INPUT:
                if profile.batch_statistics_in_beta:
                    maps[i] = as_kind(CoupledMap, m)
                pullbacks[i] = replace(pullbacks[i], through_statistics=profile.batch_statistics_in_gradient)
            elif profile.statistics_twice and not is_spike_input:
                pullbacks[i] = replace(pullbacks[i], momentum=1.0 - (1.0 - MOMENTUM) ** 2)
            elif profile.unbiased_spike_statistics and is_spike_input and m.z is not None:
                n = m.z.size // m.norm.mean.size
                if n < 2:
                    raise ValueError("x has 1 sample; the profile's unbiased variance takes 2 values per channel")
                norm = replace(m.norm, variance=m.norm.variance * m.z.dtype.type(n / (n - 1)), epsilon=1e-8)
                maps[i] = replace(as_kind(UnbiasedMap, m), norm_in_rollout=norm)
        return replace(frozen, maps=tuple(maps), pullbacks=tuple(pullbacks))
