"""Everything that reads what others wrote, each as one function of a file's bytes, and what it may do with them."""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import json
import os
import tempfile
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import tiny
from packs import seal
from safetensors import safe_open
from safetensors.numpy import load, save

from ide_ref import cli
from ide_ref.datasets import (
    DataError,
    bin_events,
    idx_shape,
    read_cifar10,
    read_cifar100,
    read_events,
    read_idx,
    read_own,
)
from ide_ref.neurons import LIF
from ide_ref.structure import build
from ide_ref.training import checkpoint
from ide_ref.training.loop import begin
from ide_ref.verify import conformance

CASE = "fashion-mnist-400-lif-static-float32-plain"


class Reader(NamedTuple):
    """What is called with a file, and what it may raise."""

    read: Callable[[Path], object]
    refusal: type[Exception]
    seeds: Callable[[], list[bytes]]
    """Files that are sound."""
    suffix: str = ""


def judge(reader: Reader, data: bytes) -> None:
    """Read these bytes; AssertionError unless they are read or refused in one line and within the memory promised."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{reader.suffix}"
        path.write_bytes(data)
        tracemalloc.start()
        try:
            reader.read(path)
        except reader.refusal as error:
            told = str(error)
            assert "\n" not in told.replace(repr(data), ""), told
            assert reader.refusal is ValueError or folder in told or CASE in told, told
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    assert peak <= 10 * len(data) + 50_000_000, f"{peak} bytes for a file of {len(data)}"


def _idx_seeds() -> list[bytes]:
    plain = bytes.fromhex("00000d02 00000002 00000003") + bytes(24)
    return [plain, gzip.compress(plain, mtime=0), bytes.fromhex("00000801 00000004 01020304")]


def _read_idx(path: Path) -> None:
    assert read_idx(path).shape == idx_shape(path)


def _read_cifar(path: Path) -> None:
    try:
        read_cifar10(path)
    except DataError:
        read_cifar100(path)


def _read_events(path: Path) -> None:
    bin_events(read_events(path), 3)


def _own_seeds() -> list[bytes]:
    items = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    arrays = {"x_train": items, "y_train": np.array([0, 1]), "x_test": items[:1], "y_test": np.array([0])}
    found = []
    for write in (np.savez, np.savez_compressed):
        with io.BytesIO() as file:
            write(file, **arrays, n_classes=2)
            found.append(file.getvalue())
    return found


@functools.cache
def _saved() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.safetensors"
        checkpoint.save(path, begin(tiny.preset(), 0))
        return path.read_bytes()


def _metadata_seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(_saved())
        with safe_open(path, framework="numpy") as file:
            about = json.loads(file.metadata()["ide_ref"])
    # Of a format without digest: what reads it must do without that.
    return [json.dumps({**about, "format_version": version}).encode() for version in (1, 2)]


def _read_metadata(path: Path) -> None:
    # safetensors takes Unicode alone.
    text = path.read_bytes().decode(errors="replace")
    path.write_bytes(save(load(_saved()), {"ide_ref": text}))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has no digest")
        checkpoint.load(path)


@functools.cache
def _pack() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        conformance.make(folder, names=[CASE])
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _read_part(name: str, path: Path) -> None:
    """A pack with this file in place of its own, and the digests that a forger would give it."""
    for part, content in _pack().items():
        (path.parent / part).write_bytes(content)
    path.rename(path.parent / name)
    if name != "SHA256SUMS":
        seal(path.parent)
    for case in conformance.load(path.parent):
        conformance.check(case, case.expected)


def _outputs_seeds() -> list[bytes]:
    arrays = load(_pack()[f"{CASE}.safetensors"])
    return [save({name.removeprefix("expected/"): value for name, value in arrays.items() if name[0] == "e"})]


def _read_outputs(path: Path) -> None:
    pack = path.parent / "pack"
    pack.mkdir()
    for part, content in _pack().items():
        (pack / part).write_bytes(content)
    path.rename(path.parent / f"{CASE}.safetensors")
    report = conformance.compare(pack, path.parent)
    json.dumps(report.to_dict(), allow_nan=False)
    report.table()


def _build(path: Path) -> None:
    text = path.read_bytes().decode(errors="surrogateescape")
    for shape in ((5,), (1, 6, 6)):
        with contextlib.suppress(ValueError):
            build(text, input_shape=shape, n_classes=2, neuron=LIF())


# Made once: that takes longer than most command lines.
_PARSER = functools.cache(cli.parser)


def _command(path: Path) -> None:
    """A command line, a word a line; those that compute or write are parsed alone."""
    words = path.read_bytes().replace(b"\0", b"").decode(errors="surrogateescape").split("\n")
    runs = words[0] in ("data", "evaluate", "conformance")
    # Abbreviations of --download too.
    quiet = not any(word == "make" or word.startswith("--do") for word in words)
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace")]
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with (
            contextlib.redirect_stdout(streams[0]),
            contextlib.redirect_stderr(streams[1]),
            mock.patch.object(cli, "parser", _PARSER),
        ):
            status = cli.main(words) if runs and quiet else _PARSER().parse_args(words) and 0
    except SystemExit as stop:
        status = stop.code
    finally:
        os.chdir(here)
    streams[1].flush()
    told = streams[1].buffer.getvalue()
    assert status in (0, 1, 2), status
    assert len(told.splitlines()) <= 1 or runs, told


_WORDS = [
    *("data", "--json", "--data-dir", "."),
    *("evaluate", "file", "--limit", "3", "--threads", "1"),
    *("conformance", "compare", "a", "b", "--stage", "u"),
    *("train", "digits", "--epochs", "2", "--lr", "0.1"),
    *("info", "digits", "--neuron", "if", "--n-steps", "3"),
]


def _command_seeds() -> list[bytes]:
    return ["\n".join(_WORDS[first:last]).encode() for first, last in ((0, 4), (4, 10), (10, 16), (16, 22), (22, 28))]


READERS = {
    "idx": Reader(_read_idx, DataError, _idx_seeds),
    "cifar": Reader(_read_cifar, DataError, lambda: [bytes(3073), bytes(2 * 3074)]),
    "events": Reader(_read_events, DataError, lambda: [bytes.fromhex("0102000005 00f0000000 0303810000")]),
    "own": Reader(lambda path: read_own(str(path)), DataError, _own_seeds, ".npz"),
    "checkpoint": Reader(checkpoint.load, checkpoint.CheckpointError, lambda: [_saved()]),
    "metadata": Reader(_read_metadata, checkpoint.CheckpointError, _metadata_seeds),
    "manifest": Reader(
        functools.partial(_read_part, "manifest.json"),
        conformance.PackError,
        lambda: [_pack()["manifest.json"]],
    ),
    "case": Reader(
        functools.partial(_read_part, f"{CASE}.safetensors"),
        conformance.PackError,
        lambda: [_pack()[f"{CASE}.safetensors"]],
    ),
    "sums": Reader(
        functools.partial(_read_part, "SHA256SUMS"),
        conformance.PackError,
        lambda: [_pack()["SHA256SUMS"]],
    ),
    "outputs": Reader(_read_outputs, conformance.PackError, _outputs_seeds),
    "structure": Reader(_build, ValueError, lambda: [b"4 (F4)", b"2C3s-2C3-3C3s-3C3-2C3 (F2C3u)"]),
    "command": Reader(_command, ValueError, _command_seeds),
}
