"""What a trained network does: its accuracy, its firing rates, its distance from equilibrium."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ide_ref import _checks
from ide_ref.datasets import Dataset, load, normalise, random_crop, random_flip
from ide_ref.equilibrium import find_equilibrium
from ide_ref.maps import freeze, read_out
from ide_ref.presets import Preset
from ide_ref.simulation import simulate
from ide_ref.solvers import norms
from ide_ref.training.losses import cross_entropy

Params = Mapping[str, NDArray[np.floating]]


@dataclass(frozen=True)
class Evaluation:
    """A network's performance on one split."""

    n_samples: int
    loss: float
    """Mean cross-entropy."""
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


def load_data(preset: Preset, *, data_dir: str | None = None, limit: int | None = None) -> Dataset:
    """The data set of a preset's recipe, spike trains with its number of steps; as `ide_ref.datasets.load`."""
    n_frames = preset.recipe.n_steps if preset.recipe.input == "spikes" else None
    return load(preset.recipe.dataset, data_dir=data_dir, limit=limit, n_frames=n_frames)


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
        The data set's images do not have the size of the network's input.
    """
    _checks.kind("preset", preset, Preset)
    _checks.kind("data", data, Dataset)
    if rng is not None:
        _checks.kind("rng", rng, np.random.Generator)
    recipe = preset.recipe
    x: NDArray[np.generic]
    x, y = data.batch(split, indices)
    if x[0].size != np.prod(preset.input_shape) * (data.n_frames or 1):
        given = f"data set {data.name!r} has images of shape {data.input_shape}"
        raise ValueError(f"{given}, preset {preset.name!r} expects {preset.input_shape}")
    if data.n_frames is not None:
        return x.astype(recipe.dtype), y
    if rng is not None and recipe.crop:
        x = random_crop(x, rng, padding=recipe.crop)
    if rng is not None and recipe.flip:
        x = random_flip(x, rng)
    values = normalise(x, recipe.mean, recipe.std, scale=data.scale, dtype=recipe.dtype)
    return values.reshape(len(y), *preset.input_shape), y


def evaluate(
    preset: Preset,
    params: Params,
    data: Dataset,
    *,
    split: str = "test",
    batch_size: int | None = None,
    between: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Simulate a whole split with running statistics and without dropout; changes nothing.

    Parameters
    ----------
    batch_size : int, optional
        Samples at a time; the predictions do not depend on it. By default as many as keep a state below 2²⁴
        neurons, at most 512.
    between : callable
        Called before each batch; what it raises ends the evaluation.
    """
    _checks.kind("preset", preset, Preset)
    _checks.kind("data", data, Dataset)
    _checks.kind("params", params, Mapping)
    network, n_steps = preset.network, preset.recipe.n_steps
    if batch_size is None:
        batch_size = max(1, min(512, 2**24 // network.state_size))
    batch_size = _checks.whole("batch_size", batch_size)
    frozen = freeze(network, params)
    if not _checks.is_one_of(split, ("train", "test")):
        raise ValueError(f"split is {split!r}; expected 'train' or 'test'")
    n_samples = len(data.y_train if split == "train" else data.y_test)
    loss, correct = 0.0, 0
    spikes = np.zeros(len(network.populations), np.int64)
    for first in range(0, n_samples, batch_size):
        between()
        x, y = load_batch(preset, data, split, np.arange(first, min(first + batch_size, n_samples)))
        rates = simulate(frozen, x, n_steps)
        logits = read_out(frozen, rates)
        loss += cross_entropy(logits, y)[0] * len(y)
        correct += int(np.count_nonzero(logits.argmax(axis=1) == y))
        spikes += rates.n_spikes.sum(axis=0)
    pairs = zip(network.populations, spikes, strict=True)
    firing_rates = {p.name: int(count) / (n_samples * p.size * n_steps) for p, count in pairs}
    return Evaluation(n_samples, loss / n_samples, correct / n_samples, firing_rates)


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
