"""The state of a training in one safetensors file: arrays as tensors, all else as JSON in the header.

Source: https://github.com/huggingface/safetensors, the file's format; the header's fields are those of `Checkpoint`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ide_ref import _checks
from ide_ref._files import write_atomically
from ide_ref.presets import Preset
from ide_ref.theory import verdict

NAME = "checkpoint.safetensors"
"""Of the file in the folder of a training."""

FORMAT_VERSION = 2
"""Version 1 had no graphs; its files are read."""

CONTRACTION = "contraction_without_dropout"
"""Name of the trained network's γ in a line of the metrics."""

Arrays = dict[str, NDArray[np.floating]]


class CheckpointError(ValueError):
    """A file that cannot be used as a checkpoint, or not for this; the message is one line."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a training stands between two batches: all that the rest of it depends on."""

    preset: Preset
    """Network and recipe."""
    seed: int
    """All randomness is drawn from (seed, purpose, epoch, batch), so no generator has a state to keep."""
    params: Arrays
    """Parameters with running statistics."""
    velocity: Arrays
    """The optimiser's."""
    step: int
    """Batches finished in the epoch under way."""
    totals: dict[str, float]
    """What the epoch under way has summed up for its metrics."""
    history: tuple[dict[str, Any], ...]
    """The metrics of each finished epoch."""

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return len(self.history)

    @property
    def contraction(self) -> float | None:
        """γ of (COND) after the last epoch; None before any, or where it was not noted."""
        return self.history[-1].get(CONTRACTION) if self.history else None

    @property
    def condition(self) -> str | None:
        """(COND) after the last epoch in words; None as for `contraction`."""
        return None if self.contraction is None else verdict(self.contraction)


def save(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all; its header says in words whether (COND) holds.

    Raises
    ------
    OSError
        The folder cannot be written or the disk is full; a checkpoint that was there stays.
    """
    from safetensors.numpy import save as to_bytes

    _checks.kind("checkpoint", checkpoint, Checkpoint)
    path = _checks.path("path", path)
    # safetensors writes the memory as it lies, whatever the strides say.
    tensors = {
        f"{part}/{name}": np.asarray(array, order="C")
        for part, arrays in (("params", checkpoint.params), ("velocity", checkpoint.velocity))
        for name, array in arrays.items()
    }
    about = {
        "format_version": FORMAT_VERSION,
        "preset": checkpoint.preset.to_dict(),
        "seed": checkpoint.seed,
        "step": checkpoint.step,
        "totals": checkpoint.totals,
        "history": checkpoint.history,
        "condition": checkpoint.condition,
    }
    write_atomically(path, to_bytes(tensors, {"ide_ref": json.dumps(about)}))


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint, or that in the folder of a training, and check that its arrays fit its network.

    Raises
    ------
    CheckpointError
        No such file, not a safetensors file, truncated, not written by ide_ref, of a newer format, or with
        arrays that do not fit.
    """
    from safetensors import SafetensorError, safe_open

    path = _checks.path("path", path)
    if (path / NAME).is_file():
        path = path / NAME
    try:
        with open(path, "rb") as header:
            start = header.read(9)
        # The header's length in 8 bytes, then its brace.
        if start[8:] != b"{":
            raise CheckpointError(f"{path}: is no safetensors file; give a checkpoint of ide-ref train")
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if "ide_ref" not in metadata:
                told = "holds tensors but was not written by ide_ref"
                raise CheckpointError(f"{path}: {told}; give a checkpoint of ide-ref train")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); give a checkpoint file") from None
    except SafetensorError:
        raise CheckpointError(f"{path}: is truncated or damaged; restore it from a copy or train again") from None
    try:
        about = json.loads(metadata["ide_ref"])
        version = about["format_version"]
        if version > FORMAT_VERSION:
            told = f"has format {version}, this ide_ref reads up to {FORMAT_VERSION}"
            raise CheckpointError(f"{path}: {told}; install a newer ide_ref")
        preset, history = Preset.from_dict(about["preset"]), tuple(about["history"])
        params, velocity = (
            {name.removeprefix(part): array for name, array in tensors.items() if name.startswith(part)}
            for part in ("params/", "velocity/")
        )
        preset.network.check_params(params)
        expected = {name: params[name].shape for name in preset.network.trainable}
        if {name: array.shape for name, array in velocity.items()} != expected:
            raise ValueError("velocity does not fit the parameters")
        return Checkpoint(preset, about["seed"], params, velocity, about["step"], about["totals"], history)
    except CheckpointError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: content does not fit together ({error}); train again") from None


def require_same(checkpoint: Checkpoint, preset: Preset, seed: int, *, path: Path) -> None:
    """Refuse to go on with `preset` and `seed` from another training's checkpoint.

    The number of epochs may differ, down to those already finished, unless the learning rate depends on it.

    Raises
    ------
    CheckpointError
        Naming each difference, first the value in the checkpoint.
    """
    pairs = [("seed", checkpoint.seed, seed)]
    for there, here in ((checkpoint.preset, preset), (checkpoint.preset.recipe, preset.recipe)):
        free = ("recipe", "epochs") if checkpoint.preset.recipe.schedule == "steps" else ("recipe",)
        names = [f.name for f in fields(here) if f.name not in (*free, "graph")]
        pairs += [(name, getattr(there, name), getattr(here, name)) for name in names]
    parts = [f"{name} {old!r} there, {new!r} here" for name, old, new in pairs if old != new]
    # Graphs are too large to be shown.
    different = "; ".join([*parts, *(["another graph"] if checkpoint.preset.graph != preset.graph else [])])
    if different:
        remedy = "repeat its options, or choose another folder"
        raise CheckpointError(f"{path}: is of another training ({different}); {remedy}")
    if preset.recipe.epochs < checkpoint.epoch:
        told = f"has finished {checkpoint.epoch} epochs already, {preset.recipe.epochs} asked for"
        raise CheckpointError(f"{path}: {told}; raise epochs")
