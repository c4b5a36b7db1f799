"""The structures of the presets in small: checks that take seconds and need no data set.

Source: the tables of https://arxiv.org/abs/2109.14247, in small.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ide_ref.network import Params
from ide_ref.presets import Preset

STRUCTURES = {
    "fashion-mnist-400": ("12 (F12)", (20,)),
    "mnist-64c5": ("4C5s (F4C5)", (1, 8, 8)),
    "nmnist-64c5": ("4C5s (F4C5)", (2, 8, 8)),
    "alexnet-f": ("4C3s-6C3-8C3s-8C3-6C3 (F4C3u)", (3, 8, 8)),
    "cifarnet-f": ("4C3s-6C3-8C3s-10C3-8C3 (F4C3u)", (3, 8, 8)),
}
"""Structure string and input shape; kernels, strides and connections are the preset's, channels and picture are not."""

N_CLASSES = 5

_FAMILY = {"digits": "fashion-mnist-400"}
_FAMILY |= {f"cifar{n}-{name}": name for n in (10, 100) for name in ("alexnet-f", "cifarnet-f")}


def shrink(preset: Preset) -> Preset:
    """A preset with its structure in small; neuron, dropout, norm and recipe stay.

    Raises
    ------
    ValueError
        For a preset whose small structure is not known.
    """
    family = _FAMILY.get(preset.name, preset.name)
    if family not in STRUCTURES:
        known = ", ".join([*STRUCTURES, *_FAMILY])
        raise ValueError(f"preset {preset.name!r} has no small structure; expected one of {known}")
    structure, shape = STRUCTURES[family]
    return replace(preset, name=f"{preset.name} in small", structure=structure, input_shape=shape, n_classes=N_CLASSES)


def draw(preset: Preset, n_samples: int, *, seed: int = 0) -> tuple[Params, NDArray, NDArray]:
    """Float64 parameters with nothing at its neutral value, where a mistake might not show, and a batch.

    Its inputs are (B, *input_shape) normal numbers, or (B, T, *input_shape) spikes; its labels (B,).
    """
    network = preset.network
    rng = np.random.default_rng(seed)
    params = network.init(rng)
    for name, value in params.items():
        if name.endswith(("bias", "bn_weight", "running_mean")):
            params[name] = value + rng.normal(0, 0.2, value.shape)
        elif name.endswith("running_var"):
            params[name] = value * rng.uniform(0.5, 1.5, value.shape)
        elif name.endswith("alpha"):
            params[name] = 0.9 * value
    if preset.recipe.input == "spikes":
        x = (rng.random((n_samples, preset.recipe.n_steps, *network.input_shape)) < 0.3).astype(np.float64)
    else:
        x = rng.normal(0.3, 1.0, (n_samples, *network.input_shape))
    return params, x, rng.integers(0, network.n_classes, n_samples)
