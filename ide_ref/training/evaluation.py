"""What a trained network does: its accuracy, its firing rates, its distance from equilibrium.

Source: accuracy of (READ); distance from (FP), ``docs/equilibrium.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ide_ref import _checks
from ide_ref.datasets import Dataset, is_function, load, normalise, random_crop, random_flip
from ide_ref.equilibrium import find_equilibrium
from ide_ref.maps import freeze, read_out
from ide_ref.parallel import Group
from ide_ref.presets import Preset, Recipe
from ide_ref.simulation import simulate
from ide_ref.solvers import norms
from ide_ref.training.losses import Loss, cross_entropy, evaluated

Params = Mapping[str, NDArray[np.floating]]


@dataclass(frozen=True)
class Evaluation:
    """A network's performance on one split."""

    n_samples: int
    loss: float
    """Mean over the samples, of the cross-entropy unless another loss was given."""
    accuracy: float
    """Share of samples whose largest logit is the label's, 0 to 1."""
    firing_rates: dict[str, float]
    """Spikes per neuron and step of each population."""


@dataclass(frozen=True)
class Distance:
    """How far the simulated rates are from the equilibrium, ‖a[T] - a*‖₂ over all neurons."""

    distance: NDArray[np.floating]
    """(B,): of each sample."""
    rms: float
    """Root of the mean square over samples and neurons: the typical error of one rate."""
    contraction: float
    """γ of (COND), in operator norms."""


def load_data(
    preset: Preset, *, data_dir: str | None = None, limit: int | None = None, source: str | None = None
) -> Dataset:
    """The data set of a preset's recipe, spike trains with its number of steps; as `ide_ref.datasets.load`.

    Parameters
    ----------
    source : str, optional
        Name or place of a data set to be read instead.

    Raises
    ------
    ValueError
        The recipe names a function, which is code: it may come from someone's checkpoint and runs only when ``source``
        asks for it.
    """
    named = preset.recipe.dataset
    if source is None and is_function(named):
        raise ValueError(
            f"the recipe takes its data from {named}, a function, and functions that a checkpoint names are not run "
            f"unasked; if you trust it, say so: --data {named} (in Python: source)"
        )
    n_frames = preset.recipe.n_steps if preset.recipe.input == "spikes" else None
    return load(source or named, data_dir=data_dir, limit=limit, n_frames=n_frames)


def statistics(recipe: Recipe, data: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel with which items are normalised: the recipe's, or the data set's own."""
    if recipe.mean is not None and recipe.std is not None:
        return recipe.mean, recipe.std
    mean, std = data.statistics
    return recipe.mean or mean, recipe.std or std


def check_fit(preset: Preset, data: Dataset) -> None:
    """Refuse a data set that a preset cannot be trained on or evaluated with.

    Raises
    ------
    ValueError
        Its items have another shape than the network's input, it has other classes, spike trains meet a recipe for
        constant inputs or the other way round, or the recipe shifts or mirrors what are no pictures.
    """
    _checks.kind("preset", preset, Preset)
    _checks.kind("data", data, Dataset)
    recipe, shape = preset.recipe, data.input_shape
    if preset.input_shape not in (shape, (math.prod(shape),)):
        given = f"data set {data.name!r} has images of shape {shape}"
        raise ValueError(f"{given}, preset {preset.name!r} expects {preset.input_shape}")
    if data.n_classes != preset.n_classes:
        raise ValueError(f"data set {data.name!r} has {data.n_classes} classes, the network {preset.n_classes}")
    held = "spikes" if data.spikes else "static"
    if held != recipe.input:
        raise ValueError(f"data set {data.name!r} is of input {held!r}, the recipe's input is {recipe.input!r}")
    if data.n_frames not in (None, recipe.n_steps):
        raise ValueError(f"data set {data.name!r} has trains of {data.n_frames} steps, n_steps is {recipe.n_steps}")
    if (recipe.crop or recipe.flip) and (data.spikes or len(shape) != 3):
        given = f"crop is {recipe.crop} and flip {recipe.flip}"
        raise ValueError(f"{given}, but data set {data.name!r} holds no pictures to shift or mirror; leave them out")


def load_batch(
    preset: Preset, data: Dataset, split: str, indices: ArrayLike, *, rng: np.random.Generator | None = None
) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    """Some samples of a data set as the network takes them, and their labels.

    Parameters
    ----------
    split : {"train", "test"}
    indices : (B,) integers
    rng : Generator, optional
        Augments the images where the recipe says so.

    Returns
    -------
    x : (B, *input_shape) or (B, T, *input_shape) array of the recipe's dtype
        Images normalised and, for a dense input, laid out flat.
    y : (B,) integers

    Raises
    ------
    ValueError
        The data set does not fit, see `check_fit`.
    """
    check_fit(preset, data)
    if rng is not None:
        _checks.kind("rng", rng, np.random.Generator)
    recipe = preset.recipe
    x, y = data.batch(split, indices)
    if data.spikes:
        return x.astype(recipe.dtype).reshape(*x.shape[:2], *preset.input_shape), y
    if rng is not None and recipe.crop:
        x = random_crop(x, rng, padding=recipe.crop)
    if rng is not None and recipe.flip:
        x = random_flip(x, rng)
    # Flat items are pictures of one row and one channel.
    pictures = x if x.ndim == 4 else x[:, None, None]
    values = normalise(pictures, *statistics(recipe, data), scale=data.scale, dtype=recipe.dtype)
    return values.reshape(len(y), *preset.input_shape), y


def evaluate(
    preset: Preset,
    params: Params,
    data: Dataset,
    *,
    split: str = "test",
    batch_size: int | None = None,
    between: Callable[[], None] = lambda: None,
    loss: Loss = cross_entropy,
    group: Group | None = None,
) -> Evaluation:
    """Simulate a whole split with running statistics and without dropout; changes nothing.

    ValueError for data that do not fit the preset, or another split.

    Parameters
    ----------
    batch_size : int, optional
        Samples at a time; the predictions do not depend on it. By default as many as keep a state below 2²⁴
        neurons, at most 512.
    between : callable
        Called before each batch; what it raises ends the evaluation.
    loss : callable
        In place of the cross-entropy, see `ide_ref.training.losses.Loss`.
    group : Group, optional
        Ranks over which the batches are dealt; each calls this and gets the same numbers as one process alone.
    """
    _checks.kind("preset", preset, Preset)
    _checks.kind("data", data, Dataset)
    network, n_steps = preset.network, preset.recipe.n_steps
    if batch_size is None:
        batch_size = max(1, min(512, 2**24 // network.state_size))
    batch_size = _checks.whole("batch_size", batch_size)
    frozen = freeze(network, params)
    _checks.one_of("split", split, ("train", "test"))
    n_samples = len(data.y_train if split == "train" else data.y_test)

    def tested(first: int) -> tuple[float, int, NDArray[np.int64]]:
        x, y = load_batch(preset, data, split, np.arange(first, min(first + batch_size, n_samples)))
        rates = simulate(frozen, x, n_steps)
        logits = read_out(frozen, rates)
        right = int(np.count_nonzero(logits.argmax(axis=1) == y))
        return evaluated(loss, logits, y)[0] * len(y), right, rates.n_spikes.sum(axis=0)

    rank, size = (0, 1) if group is None else (group.rank, group.size)
    firsts = range(0, n_samples, batch_size)

    def share(turn: int) -> list[tuple[float, int, NDArray[np.int64]]]:
        return [tested(first) for first in firsts[turn : turn + size][rank : rank + 1]]

    total, correct = 0.0, 0
    spikes = np.zeros(len(network.populations), np.int64)
    for turn in range(0, len(firsts), size):
        between()
        for of_batches in [share(turn)] if group is None else group.allgather(partial(share, turn)):
            for of_loss, right, n_spikes in of_batches:
                total += of_loss
                correct += right
                spikes += n_spikes
    pairs = zip(network.populations, spikes, strict=True)
    firing_rates = {p.name: int(count) / (n_samples * p.size * n_steps) for p, count in pairs}
    return Evaluation(n_samples, total / n_samples, correct / n_samples, firing_rates)


def equilibrium_distance(preset: Preset, params: Params, x: NDArray[np.floating]) -> Distance:
    """Simulated rates against the exact solution of (FP), both in float64.

    The samples are (B, *input_shape) or (B, T, *input_shape). Beyond (COND) there may be several solutions; it is the
    one that Newton's method finds from the rates.

    Raises
    ------
    NotConverged
        The equilibrium was not found; γ ≥ 1 is the usual reason.
    """
    _checks.kind("preset", preset, Preset)
    preset.network.check_params(params)
    exact = {name: array.astype(np.float64) for name, array in params.items()}
    frozen = freeze(preset.network, exact)
    rates = simulate(frozen, x, preset.recipe.n_steps)
    # The sweep is cheaper where (COND) holds, but need not end beyond it; the rates are near an a* then, too.
    equilibrium = find_equilibrium(frozen, x, method="newton", max_iter=30, start=rates.a)
    error = rates.a - equilibrium.a
    return Distance(norms(error), float(np.sqrt(np.mean(np.square(error)))), equilibrium.contraction)
