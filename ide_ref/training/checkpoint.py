"""The state of a training in one safetensors file: arrays as tensors, all else as JSON in the header.

The header also has a SHA-256 of everything. It is taken over the JSON text and then over each tensor, in the order of
their names: a line of JSON, ``[name, dtype, shape]``, and the bytes as they lie in the file, little-endian in C order.
Each of these pieces comes after its length in 8 bytes, little-endian.

Source: https://github.com/huggingface/safetensors, the file's format; the header's fields are those of `Checkpoint`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ide_ref import _checks
from ide_ref._files import open_regular, write_atomically
from ide_ref.presets import Preset
from ide_ref.theory import verdict

NAME = "checkpoint.safetensors"
"""Of the file in the folder of a training."""

PREVIOUS = "checkpoint.previous.safetensors"
"""Of the one after the epoch before."""

FORMAT_VERSION = 3
"""Version 1 had no graphs, version 2 no digest; their files are read, and the reader is told."""

CONTRACTION = "contraction_without_dropout"
"""Name of the trained network's γ in a line of the metrics."""

_ABOUT, _DIGEST = "ide_ref", "sha256"

_OF_EPOCH = ("lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds", "test_seconds")
"""Numbers that the metrics of each epoch have in every version."""

Arrays = dict[str, NDArray[np.floating]]


class CheckpointError(ValueError):
    """A file that cannot be used as a checkpoint, or not for this; the message is one line."""


class Damaged(CheckpointError):
    """A checkpoint whose content is not what was written, or does not fit together."""


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


def save(
    path: str | os.PathLike[str], checkpoint: Checkpoint, *, previous: str | os.PathLike[str] | None = None
) -> None:
    """Write a checkpoint, whole or not at all; its header says in words whether (COND) holds.

    What was at `path` goes to `previous` where that is given.

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
    text = json.dumps(about)
    write_atomically(path, to_bytes(tensors, {_ABOUT: text, _DIGEST: _digest(text, tensors)}), previous=previous)


def _digest(text: str, tensors: Mapping[str, NDArray]) -> str:
    """Of the file's whole content, as the module says."""
    digest = hashlib.sha256()

    def update(piece: bytes) -> None:
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)

    update(text.encode())
    for name, array in sorted(tensors.items()):
        update(json.dumps([name, array.dtype.name, array.shape]).encode())
        update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint, or that in the folder of a training, and check all of it before anything is used.

    A RuntimeWarning says so where the file is of a version that wrote no digest.

    Raises
    ------
    CheckpointError
        No such file, not a safetensors file, not written by ide_ref, or of an unknown format.
    Damaged
        Truncated, another digest than its own, or fields or arrays that do not fit the network and recipe.
    """
    path = _checks.path("path", path)
    try:
        if (path / NAME).is_file():
            path = path / NAME
        text, digest, tensors = _read(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); give a checkpoint file") from None
    # Whatever the format: a bit of its number may be what is wrong.
    if digest is not None and digest != _digest(text, tensors):
        raise _damaged(path, "is damaged (its SHA-256 is not that of its content)")
    try:
        about = json.loads(text)
        version = about["format_version"]
        if not _checks.is_whole(version) or version > FORMAT_VERSION:
            told = f"has format {textwrap.shorten(repr(version), 50)}, this ide_ref reads 1 to {FORMAT_VERSION}"
            if _checks.is_whole(version):
                raise CheckpointError(f"{path}: {told}; install a newer ide_ref")
            raise _damaged(path, told)
        if version == FORMAT_VERSION and digest is None:
            raise ValueError("the digest is missing")
        checkpoint = _checked(about, tensors)
    except CheckpointError:
        raise
    except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        told = textwrap.shorten(str(error), 300)
        raise _damaged(path, f"content does not fit together ({told})") from None
    if digest is None:
        _checks.warn(f"{path}: has format {version}, which has no digest: bits that changed would not be seen")
    return checkpoint


def _damaged(path: Path, told: str) -> Damaged:
    there = path.name == NAME and path.with_name(PREVIOUS).is_file()
    remedy = f"{PREVIOUS} beside it is of the epoch before" if there else "restore it from a copy or train again"
    return Damaged(f"{path}: {told}; {remedy}")


def _read(path: Path) -> tuple[str, str | None, dict[str, NDArray]]:
    """JSON text, digest and tensors of a file."""
    from safetensors import SafetensorError, safe_open

    with open_regular(path) as header:
        start = header.read(9)
    # The header's length in 8 bytes, then its brace.
    if start[8:] != b"{":
        raise CheckpointError(f"{path}: is no safetensors file; give a checkpoint of ide-ref train")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if _ABOUT not in metadata:
                told = "holds tensors but was not written by ide_ref"
                raise CheckpointError(f"{path}: {told}; give a checkpoint of ide-ref train")
            for name in file.keys():  # noqa: SIM118
                dtype = file.get_slice(name).get_dtype()
                if dtype not in ("F32", "F64"):
                    told = f"tensor {textwrap.shorten(name, 50)} has dtype {dtype}, expected F32 or F64"
                    raise _damaged(path, f"content does not fit together ({told})")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError:
        raise _damaged(path, "is truncated or damaged") from None
    return metadata[_ABOUT], metadata.get(_DIGEST), tensors


def _checked(about: dict[str, Any], tensors: Mapping[str, NDArray]) -> Checkpoint:
    """The checkpoint of these fields and arrays; an error of whatever kind where they do not fit together."""
    preset = Preset.from_dict(about["preset"])
    params, velocity = (
        {name.removeprefix(part): array for name, array in tensors.items() if name.startswith(part)}
        for part in ("params/", "velocity/")
    )
    if len(params) + len(velocity) != len(tensors):
        raise ValueError("there are tensors of neither params nor velocity")
    preset.network.check_params(params)
    dtype = np.dtype(preset.recipe.dtype)
    if any(array.dtype != dtype for array in params.values()):
        raise ValueError(f"parameters are not of the recipe's dtype, {dtype}")
    expected = {name: (params[name].shape, dtype) for name in preset.network.trainable}
    if {name: (array.shape, array.dtype) for name, array in velocity.items()} != expected:
        raise ValueError("velocity does not fit the parameters")
    for name, array in velocity.items():
        if not np.isfinite(array).all():
            raise ValueError(f"velocity {name!r} has values that are NaN or infinite")
    seed, step = _checks.whole("seed", about["seed"], 0), _checks.whole("step", about["step"], 0)
    totals, history = about["totals"], about["history"]
    _check_totals(totals, step, preset.recipe.batch_size)
    _check_history(history, preset.recipe.epochs)
    return Checkpoint(preset, seed, params, velocity, step, totals, tuple(history))


def _is_number(value: object) -> bool:
    """Of JSON, or NaN or infinite; no integer beyond the floats."""
    return isinstance(value, float) or _checks.is_real(value)


def _check_totals(totals: Any, step: int, batch_size: int) -> None:
    if not isinstance(totals, dict) or not all(map(_is_number, totals.values())):
        raise ValueError(f"totals is {totals!r}; expected an object of numbers")
    n_samples, *_ = (
        _checks.whole(f"{name} of totals", totals.get(name, 0 if step == 0 else None), 0)
        for name in ("samples", "correct", "spikes")
    )
    if math.ceil(n_samples / batch_size) != step or (step and not _is_number(totals.get("loss"))):
        raise ValueError(f"step is {step}, but totals are of {n_samples} samples in batches of {batch_size}")


def _check_history(history: Any, epochs: int) -> None:
    if not isinstance(history, list) or len(history) > epochs:
        raise ValueError(f"history is not a list of at most {epochs} epochs")
    for epoch, line in enumerate(history, 1):
        if not (
            isinstance(line, dict)
            and line.get("epoch") == epoch
            and all(_is_number(line.get(name)) for name in _OF_EPOCH)
            and all(value is None or isinstance(value, bool) or _is_number(value) for value in line.values())
        ):
            raise ValueError(f"line {epoch} of history is not that of epoch {epoch}")


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
