"""One training step from top to bottom: what `train` repeats and ``ide-ref bench`` times.

Source: (FP), (READ), (BETA), (HEBB) in this order, and ``sgd_step`` of :mod:`ide_ref.equations`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ide_ref.implicit import Backward, backward
from ide_ref.maps import freeze, read_out
from ide_ref.network import Params
from ide_ref.parallel import Group, differentiate
from ide_ref.presets import Preset, Recipe
from ide_ref.simulation import Rates, simulate
from ide_ref.stbp import Surrogate, ThroughTime, backward_through_time
from ide_ref.training.losses import Loss, cross_entropy, evaluated
from ide_ref.training.sgd import SGD

STAGES = ("freeze", "rollout", "readout", "linearise", "solve", "hebbian", "update")
"""Of a step, in their order; those from ``readout`` to ``hebbian`` are the stages of `ide_ref.backward`. With
backpropagation through time they are ``readout``, ``through time`` and ``pull back``."""


class NotFinite(RuntimeError):
    """The loss or a parameter is not finite after a step."""


@dataclass(frozen=True)
class Step:
    """What one batch made of the parameters."""

    params: Params
    """With running statistics, after the step."""
    velocity: Params
    """The optimiser's, after the step."""
    loss: float
    """Of the batch, before the step."""
    n_correct: int
    """Samples whose largest logit was the label's."""
    rates: Rates
    """Of the rollout, in spikes per step."""
    backward: Backward | ThroughTime
    """As the recipe's method has it."""


def optimiser(recipe: Recipe) -> SGD:
    """SGD as the recipe says."""
    return SGD(recipe.momentum, recipe.weight_decay, recipe.nesterov, recipe.clip_norm)


def training_step(
    preset: Preset,
    params: Params,
    velocity: Mapping[str, NDArray[np.floating]],
    x: NDArray[np.floating],
    y: ArrayLike,
    *,
    rate: float,
    rng: np.random.Generator,
    lap: Callable[[str], None] = lambda stage: None,
    loss: Loss | None = None,
    group: Group | None = None,
) -> Step:
    """Freeze, simulate, read out, differentiate, update.

    Parameters
    ----------
    params, velocity : dict of arrays
        Not changed.
    x : (B, *input_shape) or (B, T, *input_shape) array
    y : (B,) integers
    rate : float
        Learning rate of this step; the readout's is `Recipe.readout_rate` times it.
    rng : Generator
        Draws the dropout masks.
    lap : callable
        Called with the name of each of `STAGES` as it ends.
    loss : callable, optional
        In place of the recipe's cross-entropy, see `ide_ref.training.losses.Loss`.
    group : Group, optional
        Ranks over which the batch is split; each calls this with the whole batch. ``lap`` is not called for stages.

    Raises
    ------
    ValueError
        `loss` returns something else than it should.
    NotFinite
        Naming the loss, or the first parameter that has left the range of its dtype.
    NotConverged
        (BETA) was not solved and the recipe does not allow that.
    """
    recipe, network = preset.recipe, preset.network

    def judged(logits: NDArray[np.floating]) -> tuple[float, NDArray[np.floating]]:
        if loss is None:
            found = cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
        else:
            found = evaluated(loss, logits, np.asarray(y))
        if not math.isfinite(found[0]):
            raise NotFinite(f"the loss is {found[0]}")
        return found

    back: Backward | ThroughTime
    if group is not None:
        logits, value, rates, back = differentiate(group, network, params, x, recipe, judged, rng=rng)
    else:
        logits, value, rates, back = _differentiated(preset, params, x, judged, rng, lap)
    share = {"readout.weight": recipe.readout_rate, "readout.bias": recipe.readout_rate}
    rates_of = {name: rate * share.get(name, 1.0) for name in velocity}
    new, velocity = optimiser(recipe).step({**params, **back.statistics}, velocity, back.gradients, rate=rates_of)
    new = network.project(new)
    for name, array in new.items():
        # The sum of squares, for the next step takes norms.
        if not math.isfinite(float(np.vdot(array, array))):
            raise NotFinite(f"{name} has left the range of {array.dtype}")
    lap("update")
    return Step(new, velocity, value, int(np.count_nonzero(logits.argmax(axis=1) == y)), rates, back)


def _differentiated(
    preset: Preset,
    params: Params,
    x: NDArray[np.floating],
    judged: Callable[[NDArray[np.floating]], tuple[float, NDArray[np.floating]]],
    rng: np.random.Generator,
    lap: Callable[[str], None],
) -> tuple[NDArray[np.floating], float, Rates, Backward | ThroughTime]:
    """Logits, loss, rates and gradients of a batch in this process."""
    recipe = preset.recipe
    frozen = freeze(preset.network, params, x, training=True, rng=rng)
    lap("freeze")
    implicit = recipe.method == "ide"
    rates = simulate(frozen, x, recipe.n_steps, record=not implicit)
    rates = replace(rates.without_potentials(), recording=rates.recording)
    lap("rollout")
    logits = read_out(frozen, rates)
    value, d_logits = judged(logits)
    back: Backward | ThroughTime
    if implicit:
        back = backward(
            frozen,
            rates,
            d_logits,
            solver=recipe.solver,
            tol=recipe.tol,
            max_iter=recipe.max_iter,
            allow_unconverged=recipe.allow_unconverged,
            lap=lap,
        )
    else:
        surrogate = Surrogate(recipe.surrogate, recipe.surrogate_width)
        back = backward_through_time(
            frozen, x, rates, d_logits, surrogate=surrogate, through_reset=recipe.through_reset, lap=lap
        )
        rates = rates.without_potentials()
    return logits, value, rates, back
