"""A preset that trains in a tenth of a second, and its data."""

from __future__ import annotations

import json
from dataclasses import replace

from safetensors import safe_open
from safetensors.numpy import save as to_bytes

from ide_ref.datasets import load
from ide_ref.neurons import LIF
from ide_ref.presets import Preset, Recipe
from ide_ref.training import checkpoint

RECIPE = Recipe(
    dataset="digits",
    n_steps=3,
    mean=(0.305,),
    std=(0.376,),
    epochs=3,
    batch_size=16,
    lr=0.1,
    milestones=(2,),
    warmup_steps=6,  # into the second epoch
    crop=1,
    limit=50,
)
N_BATCHES = 4  # an epoch: three of 16 samples and one of 2


def preset(**changes):
    """The tiny preset, with changes to its recipe."""
    return Preset("tiny", "8 (F8)", (64,), 10, LIF(0.9), 0.2, replace(RECIPE, **changes))


def data(limit=50):
    return load("digits", limit=limit)


def same(first, second):
    """Whether two dicts of arrays agree in names, types and every bit."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and first[name].tobytes() == second[name].tobytes() for name in first
    )


def rewritten(path, change=lambda about: None, *, tensors=None, digest=True):
    """The checkpoint at `path` with other tensors, or with what a function makes of the words about them."""
    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(file.metadata()["ide_ref"])
    change(about)
    arrays, text = {**arrays, **(tensors or {})}, json.dumps(about)
    metadata = {"ide_ref": text, **({"sha256": checkpoint._digest(text, arrays)} if digest else {})}
    path.write_bytes(to_bytes(arrays, metadata))
