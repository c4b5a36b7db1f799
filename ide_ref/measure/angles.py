"""Angles between gradients: implicit, through time with each surrogate, and exact.

Source: ``docs/backpropagation-through-time.md``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ide_ref import _checks
from ide_ref._files import finite
from ide_ref.datasets import Dataset
from ide_ref.equilibrium import find_equilibrium
from ide_ref.implicit import backward
from ide_ref.maps import freeze, read_out
from ide_ref.network import Params
from ide_ref.presets import Preset
from ide_ref.simulation import simulate
from ide_ref.solvers import NotConverged
from ide_ref.stbp import Surrogate, backward_through_time
from ide_ref.training.checkpoint import Checkpoint
from ide_ref.training.evaluation import load_batch
from ide_ref.training.loop import begin, train
from ide_ref.training.losses import cross_entropy

EXACT, IMPLICIT = "exact", "ide"
ROUNDING = 1e-12
"""A part of a gradient that is smaller than this share of the whole is rounding."""


@dataclass(frozen=True)
class Angles:
    """Gradients of one batch compared two by two, all parameters together and each alone; in float64."""

    batches: int
    """Training batches before."""
    norms: dict[str, float]
    """Of each gradient: "exact", "ide" and "stbp NAME"."""
    degrees: dict[str, dict[str, float]]
    """Angle in degrees between the first and the second, both ways round, NaN where either is 0."""
    by_parameter: dict[str, dict[str, float]]
    """Of each gradient but the exact one, the angle with that (with "ide" where there is none) by parameter; NaN where
    one is 0 but for rounding."""
    problem: str = ""
    """Why there is no exact gradient; empty where there is one."""

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON, null for NaN."""
        return dict(finite(asdict(self)))


def _angle(u: Mapping[str, NDArray], v: Mapping[str, NDArray]) -> float:
    """Between two gradients, in degrees."""
    of_u, of_v = (np.sqrt(sum(float(np.vdot(a[n], a[n])) for n in u)) for a in (u, v))
    if not (of_u > 0 and of_v > 0):
        return float("nan")
    # The cosine is blind near 0 and 180 degrees; the unit vectors' difference and sum are not.
    apart, together = (
        np.sqrt(sum(float(np.sum((u[n] / of_u + sign * v[n] / of_v) ** 2)) for n in u)) for sign in (-1, 1)
    )
    return float(np.degrees(2 * np.arctan2(apart, together)))


def measure_angles(
    preset: Preset,
    params: Mapping[str, NDArray[np.floating]],
    x: NDArray,
    y: ArrayLike,
    *,
    surrogates: Sequence[Surrogate] = (Surrogate(),),
    through_reset: bool = True,
    seed: int = 0,
    batches: int = 0,
) -> Angles:
    """Angles between the gradients of a batch in training mode.

    Exact is the gradient of the loss at the equilibrium a* that Newton's method finds from the rates, (BETA) solved to
    rounding. The implicit one is taken at a[T], solved as the recipe says. All go through the same maps: the same
    statistics, the same dropout masks, which ``seed`` draws.

    Parameters
    ----------
    x : (B, *input_shape) or (B, T, *input_shape) array
    y : (B,) integers
    surrogates : sequence of Surrogate
        Of backpropagation through time, a gradient each.
    batches : int
        For the record.

    Raises
    ------
    ValueError
        For arguments that do not fit.
    """
    _checks.kind("preset", preset, Preset)
    for surrogate in surrogates:
        _checks.kind("surrogate", surrogate, Surrogate)
    recipe, network = preset.recipe, preset.network
    network.check_params(params)
    theta = {name: value.astype(np.float64) for name, value in params.items()}
    x = network.check_input(x, np.float64)
    frozen = freeze(network, theta, x, training=True, rng=np.random.default_rng(seed))
    rates = simulate(frozen, x, recipe.n_steps, record=True)
    _, d_logits = cross_entropy(read_out(frozen, rates), y, label_smoothing=recipe.label_smoothing)
    found: dict[str, Params] = {}
    problem = ""
    try:
        state = find_equilibrium(frozen, x, method="newton", max_iter=60, start=rates.a)
        _, there = cross_entropy(read_out(frozen, state), y, label_smoothing=recipe.label_smoothing)
        found[EXACT] = backward(frozen, state, there, solver="gmres", tol=1e-12, max_iter=5000).gradients
    except NotConverged as error:
        problem = str(error)
    implicit = backward(
        frozen, rates, d_logits, solver=recipe.solver, tol=recipe.tol, max_iter=recipe.max_iter, allow_unconverged=True
    )
    found[IMPLICIT] = implicit.gradients
    for surrogate in surrogates:
        back = backward_through_time(frozen, x, rates, d_logits, surrogate=surrogate, through_reset=through_reset)
        found[f"stbp {surrogate.name}"] = back.gradients
    names = list(found)
    degrees = {a: {b: _angle(found[a], found[b]) for b in names if b != a} for a in names}
    norms = {name: float(np.sqrt(sum(np.vdot(g, g) for g in gradient.values()))) for name, gradient in found.items()}
    by_parameter = {
        name: {
            # A bias before a normalisation by the batch has no gradient but rounding.
            part: float("nan")
            if any(np.linalg.norm(found[n][part]) < ROUNDING * norms[n] for n in (name, names[0]))
            else _angle({part: found[name][part]}, {part: found[names[0]][part]})
            for part in network.trainable
        }
        for name in names[1:]
    }
    return Angles(batches, norms, degrees, by_parameter, problem)


def angles_over_training(
    preset: Preset,
    data: Dataset,
    after: Sequence[int],
    *,
    n_samples: int = 32,
    surrogates: Sequence[Surrogate] = (Surrogate(),),
    through_reset: bool = True,
    seed: int = 0,
) -> tuple[Angles, ...]:
    """Angles after so many batches of a training, on its first samples: the training is that of ``ide-ref train``.

    Raises
    ------
    ValueError
        For numbers of batches that are negative or beyond the recipe's epochs.
    """
    wanted = {_checks.whole("after", count, 0) for count in after}
    n_batches = -(-len(data.y_train) // preset.recipe.batch_size)
    if not wanted or max(wanted) > n_batches * preset.recipe.epochs:
        raise ValueError(f"after is {tuple(after)}; expected numbers of at most {n_batches * preset.recipe.epochs}")
    x, y = load_batch(preset, data, "train", np.arange(min(n_samples, len(data.y_train))))
    found: list[Angles] = []

    def look(state: Checkpoint, event: Literal["step", "epoch"] = "step") -> bool:
        done = state.epoch * n_batches + state.step
        if event == "step" and done in wanted:
            options: dict[str, Any] = {"surrogates": surrogates, "through_reset": through_reset, "seed": seed}
            found.append(measure_angles(preset, state.params, x, y, batches=done, **options))
        return done >= max(wanted)

    if not look(begin(preset, seed)):
        with tempfile.TemporaryDirectory() as folder:
            train(preset, data, out=folder, seed=seed, callback=look)
    return tuple(found)


def table(found: Sequence[Angles]) -> str:
    """As text: for each number of batches, the angles with the exact gradient and with the implicit one."""
    lines = []
    for one in found:
        lines.append(f"after {one.batches} batches: degrees to exact, to ide; norm")
        for name, norm in one.norms.items():
            cells = [
                "" if name == other else format(one.degrees.get(other, {}).get(name, float("nan")), ".2f")
                for other in (EXACT, IMPLICIT)
            ]
            lines.append(f"  {name:<16}{cells[0]:>8}{cells[1]:>8}{norm:>11.3e}")
        lines += [f"  {one.problem}"] if one.problem else []
    return "\n".join(lines)
