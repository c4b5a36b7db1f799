"""What a conformance pack is: its stages, cases, tolerances and files, and the refusal of what is no pack.

Source: ``docs/conformance.md``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ide_ref._files import open_regular, write_atomically
from ide_ref.network import Network
from ide_ref.neurons import Neuron
from ide_ref.structure import build
from ide_ref.verify.conformance._missed import MISSED

FORMAT = "ide_ref conformance pack"
VERSION = 1

SCHEMA_FILE = "pack.schema.json"
"""The manifest's JSON Schema: part of the package, and of every pack."""

_BEFORE = "ide_ref.conformance"
"""What manifests called their schema before they had a format, with versions 1 to 3."""

_SUMS = "SHA256SUMS"
_LONGEST_MANIFEST = 1 << 22
"""Bytes; that of all cases has 0.3 million. What JSON makes of more would outgrow its file many times over."""

_SAYS = {
    "weight": "the restricted weights, (NORM)",
    "x_mean": "the average input, (RATE)",
    "drive": "F x + b of the average input, normalised by (BN), with its dropout mask",
    "spikes": "s[1..T], (STEP)",
    "u": "potentials u[T], (STEP)",
    "rates": "average rates a[T], (RATE)",
    "logits": "(READ)",
    "d_logits": "gradient of the mean cross-entropy",
    "mask": "(MASK) at a[T], both ends inside",
    "g": "the loss gradient in the rates of each population",
    "beta": "(BETA)",
    "grad": "(HEBB), pulled back to the parameters",
    "new": "parameters and running statistics after one SGD step",
}

STAGES = tuple(_SAYS)
"""What a port computes, in order. ``weight``: after (NORM). ``new``: parameters and statistics after one step."""

DISCRETE = ("spikes", "mask")
"""Stages of 0 and 1 alone."""

RTOL = {"float64": 1e-9, "float32": 5e-4}
"""Of an array's largest value, or of a hundredth of its stage's largest where that is more."""

GROUPS = {
    "required": "every port passes them",
    "optional": "a port may leave them out, and what it answers has to be right",
    "acceptable": "a port may differ in the readings that the case names, in these alone",
}
"""What a port owes to a case."""

TAGS = {
    "reset": "another reset than the subtraction of V_th",
    "leak-order": "the leak after the reset, or not on all of it",
    "threshold": "> for ≥ at V_th",
    "population-order": "populations that read what is there before the step, or in another order",
    "delay": "feedback or input by a step late",
    "mask": "an end of (MASK) forgotten, or all of it",
    "transpose": "W for its transpose in (BETA)",
    "kernel-flip": "a convolution for a cross-correlation, forward or back",
    "batch-statistics": "the batch's statistics as constants, or unbiased",
    "zero-gradient": "β or gradients of zero, or no second equilibrium at all",
    "precision": "a lower precision than the case's",
}
"""What a case can catch."""

READINGS = {
    "lower-end-outside": "m = 1 where 0 < p ≤ V_th",
    "upper-end-outside": "m = 1 where 0 ≤ p < V_th",
    "both-ends-outside": "m = 1 where 0 < p < V_th",
    "single-precision": "a float64 case in float32, with the tolerance of float32",
}
"""In what a port may differ in the acceptable cases that name it; one reading for all of a case's stages."""

PICTURES = ("mnist", "fashion-mnist")
"""Data sets that a case of full size may take its images from."""

STRUCTURES = {
    "fashion-mnist-400": ("12 (F12)", (20,)),
    "mnist-64c5": ("3C5s (F3C5)", (1, 6, 6)),
    "nmnist-64c5": ("3C5s (F3C5)", (2, 6, 6)),
    "alexnet-f": ("2C3s-2C3-3C3s-3C3-2C3 (F2C3u)", (3, 8, 8)),
    "cifarnet-f": ("2C3s-2C3-2C3s-4C3-2C3 (F2C3u)", (3, 8, 8)),
}
"""Structure string and input shape: the presets', with few channels on a small picture.

With at most 96 neurons, and 32 at a feedback connection, LAPACK takes one thread: the same bits for any number.
"""


class PackError(ValueError):
    """A folder that is no pack, or none this version reads; the message is one line."""


@dataclass(frozen=True)
class Case:
    """One case of a pack."""

    config: dict[str, Any]
    """Structure, neuron, sizes, options: what a port needs besides arrays."""
    arrays: dict[str, NDArray]
    """``input/x``, ``input/y``, ``input/keep/<connection>``, ``param/<name>``, ``expected/<stage>/<name>``,
    ``margin/<population>``, v − V_th at every step, and where a case names readings with other numbers,
    ``reading/<reading>/<stage>/<name>``. A case of full size has ``input/index`` of its images, and no margins."""
    lacking: str = ""
    """Why the case cannot be asked on this machine: the data set of its images is not there."""

    @property
    def name(self) -> str:
        """The case's name in the pack."""
        return str(self.config["name"])

    @property
    def group(self) -> str:
        """One of `GROUPS`."""
        return str(self.config["group"])

    @property
    def tags(self) -> tuple[str, ...]:
        """What it can catch, of `TAGS`."""
        return tuple(self.config["tags"])

    @property
    def given(self) -> dict[str, NDArray]:
        """What a port is given: ``input/<name>`` and ``param/<name>``."""
        return {name: value for name, value in self.arrays.items() if name.startswith(("input/", "param/"))}

    def read_as(self, reading: str) -> Case:
        """The same case with what one of its readings expects."""
        prefix = f"reading/{reading}/"
        arrays = self.arrays | {f"expected/{name}": value for name, value in self._under(prefix).items()}
        if reading != "single-precision":
            return Case(self.config, arrays)
        narrow = {n: v.astype(np.float32) if v.dtype == np.float64 else v for n, v in arrays.items()}
        return Case({**self.config, "dtype": "float32"}, narrow)

    def _under(self, prefix: str) -> dict[str, NDArray]:
        return {name[len(prefix) :]: value for name, value in self.arrays.items() if name.startswith(prefix)}

    @property
    def x(self) -> NDArray:
        """(B, *input_shape) static input, or (B, T, *input_shape) spike train."""
        return self.arrays["input/x"]

    @property
    def y(self) -> NDArray:
        """(B,) labels."""
        return self.arrays["input/y"]

    @property
    def keep(self) -> dict[str, NDArray]:
        """Dropout masks per connection, (B, *shape) of its target, scaled; empty for no dropout."""
        return self._under("input/keep/")

    @property
    def params(self) -> dict[str, NDArray]:
        """Parameters and running statistics."""
        return self._under("param/")

    @cached_property
    def expected(self) -> dict[str, NDArray]:
        """``<stage>/<name>`` to array, in the order of the stages."""
        found = self._under("expected/")
        return {name: found[name] for name in sorted(found, key=lambda n: (STAGES.index(stage_of(n)), n))}


def with_images(case: Case, *, data_dir: str | Path | None = None) -> Case:
    """A case of full size with its images and labels, from the data set that it names; lacking where that is missing.

    Images become x = (image/255 − mean)/std, flat; parameters, stored in float32, become float64.
    """
    from ide_ref import datasets

    about, index = case.config["images"], case.arrays["input/index"]
    try:
        data = datasets.load(about["dataset"], data_dir=data_dir)
    except datasets.DataError as error:
        return replace(case, lacking=f"its images are missing: {error}")
    n = len(data.y_test)
    if index.ndim != 1 or index.dtype.kind not in "iu" or not index.size or index.min() < 0 or index.max() >= n:
        raise PackError(
            f"case {case.name}: 'input/index' names no images of {about['dataset']}; expected some of 0 to {n - 1}"
        )
    images, labels = data.batch("test", index)
    x = datasets.normalise(images, about["mean"], about["std"], scale=data.scale, dtype="float64")
    wide = {n: v.astype(np.float64) for n, v in case.arrays.items() if n.startswith("param/")}
    return replace(case, arrays=case.arrays | wide | {"input/x": x.reshape(len(x), -1), "input/y": labels})


def stage_of(name: str) -> str:
    """The stage of ``<stage>/<name>``."""
    return name.split("/", 1)[0]


def errors(
    stage: str, given: Mapping[str, NDArray], right: Mapping[str, NDArray], rtol: float
) -> dict[str, tuple[NDArray, float]]:
    """|given − right| of each array of a stage, and the largest that passes: of spikes and masks none, else `rtol`."""
    largest = {name: float(np.max(np.abs(value), initial=0.0)) for name, value in right.items()}
    least = 1e-2 * max(largest.values())
    found = {}
    for name, value in right.items():
        allowed = 0.0 if stage in DISCRETE else rtol * max(largest[name], least)
        found[name] = np.abs(given[name].astype(np.float64) - value.astype(np.float64)), allowed
    return found


def _tags(config: Mapping[str, Any]) -> list[str]:
    """What a case catches, in the vocabulary's order."""
    present = {
        "leak-order": config["neuron"]["leak"] != 1.0,
        "threshold": bool(config["exact"]),
        "population-order": "-" in config["structure"],
        "kernel-flip": "C" in config["structure"],
        "batch-statistics": config["batch_norm"],
        "precision": "single-precision" not in config["readings"],
    }
    return [tag for tag in TAGS if present.get(tag, True) and config["name"] not in MISSED.get(tag, ())]


def configs() -> Iterator[dict[str, Any]]:
    """Every case's configuration, in the pack's order."""
    options = ("if", "lif"), ("static", "spikes"), RTOL, (True, False), (0.0,)
    combinations = [*itertools.product(STRUCTURES, *options)]
    combinations += [(name, "lif", "static", "float64", True, 0.25) for name in ("fashion-mnist-400", "alexnet-f")]
    for name, neuron, kind, dtype, batch_norm, dropout in combinations:
        parts = [name, neuron, kind, dtype, "bn" if batch_norm else "plain", *(["dropout"] if dropout else [])]
        group = "required" if dtype == "float64" and not dropout else "optional"
        leak = 1.0 if neuron == "if" else 0.95
        yield _config("-".join(parts), name, leak, kind, dtype, batch_norm, dropout, group)
    # Neurons that reach V_th exactly, by drives that are sums of powers of two; in the last, the ends of the mask.
    dense, plain = "fashion-mnist-400", ("float64", False, 0.0)
    yield _config("threshold-if-static", dense, 1.0, "static", *plain, "required", exact={"0": 1.0, "1": 0.5})
    yield _config("threshold-lif-spikes", dense, 0.5, "spikes", *plain, "required", exact={"0": 2.0, "1": 2.0})
    ends = tuple(READINGS)[:3]
    exact = {"0": 0.0, "1": 2.0}
    yield _config("mask-ends", dense, 1.0, "static", *plain, "acceptable", exact=exact, readings=ends)
    single = ("single-precision",)
    yield _config("single-dense", dense, 0.95, "static", *plain, "acceptable", readings=single)
    yield _config("single-conv", "mnist-64c5", 1.0, "static", *plain, "acceptable", readings=single)


def _config(
    name: str,
    structure: str,
    leak: float,
    kind: str,
    dtype: str,
    batch_norm: bool,
    dropout: float,
    group: str,
    *,
    exact: Mapping[str, float] | None = None,
    readings: Iterable[str] = (),
) -> dict[str, Any]:
    text, shape = STRUCTURES[structure]
    graph = {"structure": text, "input_shape": list(shape), "n_classes": 5, "batch_norm": batch_norm}
    run = {"neuron": {"leak": leak, "v_th": 2.0}, "input": kind, "dtype": dtype, "dropout": dropout, "n_steps": 5}
    judged = {"group": group, "exact": dict(exact or {}), "readings": list(readings)}
    config = {"name": name, **graph, **run, **judged}
    return {**config, "tags": _tags(config)}


def selected(cases: Iterable[Case], include: Sequence[str] = (), exclude: Sequence[str] = ()) -> tuple[Case, ...]:
    """The cases that match any pattern of `include`, or all where there is none, and none of `exclude`.

    A pattern is a glob over a case's name, its tags and its group.

    Raises
    ------
    ValueError
        For a pattern that matches no case, or where none is left.
    """
    known = tuple(cases)

    def matches(case: Case, pattern: str) -> bool:
        return any(fnmatchcase(word, pattern) for word in (case.name, case.group, *case.tags))

    for pattern in (*include, *exclude):
        if not any(matches(case, pattern) for case in known):
            raise ValueError(f"no case has a name, tag or group like {pattern!r}; tags are {', '.join(TAGS)}")
    found = tuple(
        case
        for case in known
        if (not include or any(matches(case, pattern) for pattern in include))
        and not any(matches(case, pattern) for pattern in exclude)
    )
    if not found:
        raise ValueError(f"no case is left by include {list(include)} and exclude {list(exclude)}")
    return found


def network_of(config: Mapping[str, Any]) -> Network:
    """The network of a case."""
    return build(
        config["structure"],
        input_shape=tuple(config["input_shape"]),
        n_classes=config["n_classes"],
        neuron=Neuron(**config["neuron"]),
        dropout=config["dropout"],
        batch_norm=config["batch_norm"],
    )


def write(directory: Path, cases: Iterable[Case]) -> Path:
    """Write a pack and return its manifest; the same cases give the same bytes."""
    from safetensors.numpy import save

    directory.mkdir(parents=True, exist_ok=True)
    rows, sums = [], {}

    def put(name: str, data: bytes) -> None:
        write_atomically(directory / name, data)
        sums[name] = hashlib.sha256(data).hexdigest()

    for case in cases:
        put(f"{case.name}.safetensors", save(case.arrays))
        rows.append(case.config)
    put(SCHEMA_FILE, (files("ide_ref.verify.conformance") / SCHEMA_FILE).read_bytes())
    about = {"stages": _SAYS, "groups": GROUPS, "tags": TAGS, "readings": READINGS}
    told = {what: [{"name": name, "says": says} for name, says in words.items()] for what, words in about.items()}
    manifest = {"$schema": f"./{SCHEMA_FILE}", "format": FORMAT, "version": VERSION, **told, "cases": rows}
    put("manifest.json", (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())
    # In the form of `sha256sum --check`.
    write_atomically(directory / _SUMS, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode())
    return directory / "manifest.json"


def load(directory: str | Path) -> tuple[Case, ...]:
    """Read a pack; every byte of it is held against its digests before any case is given out.

    Raises
    ------
    PackError
        For a missing or damaged file, or a pack of another schema version.
    """
    directory = Path(directory)
    path = directory / "manifest.json"
    command = f"ide-ref conformance make {directory}"
    if not path.exists():
        raise PackError(f"{directory} has no manifest.json; make a pack with: {command}")
    data = _read(path, path.name, _LONGEST_MANIFEST)
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PackError(f"{path}: no JSON ({error}); make the pack again") from None
    version = manifest.get("version") if isinstance(manifest, dict) else None
    told = f"this ide_ref reads version {VERSION} of the format {FORMAT!r}, make a new pack with: {command}"
    if isinstance(manifest, dict) and manifest.get("schema") == _BEFORE:
        raise PackError(f"{path}: schema {_BEFORE!r} version {version!r}, of before the format; {told}")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise PackError(f"{path}: no manifest of a conformance pack; expected format {FORMAT!r}")
    if type(version) is not int or version != VERSION:
        raise PackError(f"{path}: version {version!r}; {told}")
    sums = _read_sums(directory)
    _check_sum(path, path.name, data, sums.pop(path.name, None))
    schema = directory / SCHEMA_FILE
    _check_sum(schema, schema.name, _read(schema, schema.name, _LONGEST_MANIFEST), sums.pop(schema.name, None))
    rows = manifest.get("cases")
    if not isinstance(rows, list) or not rows:
        raise PackError(f"{path}: no list of cases under 'cases'; make the pack again")
    found = []
    for number, row in enumerate(rows):
        _check_row(path, number, row)
        file = directory / f"{row['name']}.safetensors"
        case = Case(row, read_arrays(file, f"case {row['name']}", sums.pop(file.name, "")))
        _check_arrays(case)
        found.append(with_images(case) if "images" in row else case)
    if sums:
        raise PackError(f"{directory / _SUMS}: {min(sums)!r} is no file of the manifest's cases; make the pack again")
    return tuple(found)


def _read_sums(directory: Path) -> dict[str, str]:
    """The digest of every file of a pack."""
    path = directory / _SUMS
    lines = _read(path, _SUMS, _LONGEST_MANIFEST).decode(errors="replace").splitlines(keepends=True)
    found = [re.fullmatch(r"([0-9a-f]{64})  ([^/\\\n]+)\n", line) for line in lines]
    if None in found:
        told = "expected 64 hexadecimal digits, two spaces and a file's name"
        raise PackError(f"{path}: line {found.index(None) + 1}: {told}; make the pack again")
    return {match[2]: match[1] for match in found if match}


def _check_sum(path: Path, what: str, data: bytes, sha256: str | None) -> None:
    if hashlib.sha256(data).hexdigest() != sha256:
        raise PackError(f"{what}: {path} is not what {_SUMS} says (SHA-256 differs); make the pack again")


_ROW: dict[type, tuple[str, ...]] = {
    str: ("name", "dtype", "input", "group"),
    int: ("n_steps", "n_classes"),
    list: ("input_shape", "populations", "connections", "tags", "readings"),
    dict: ("neuron", "sgd", "bn", "rounding", "exact"),
    float: ("rtol", "solver_tol"),
}
"""What a case's configuration must have to be read and compared."""


def _check_row(path: Path, number: int, row: Any) -> None:
    """Refuse a case of the manifest that cannot be read, naming the field."""
    name = row.get("name") if isinstance(row, dict) else None
    what = f"{path}: case {name}" if isinstance(name, str) else f"{path}: case number {number}"
    if not isinstance(row, dict):
        raise PackError(f"{what} is {row!r}; expected an object, make the pack again")
    for kind, field in ((kind, field) for kind, fields in _ROW.items() for field in fields):
        if type(row.get(field)) is not kind:
            given = f"is {row[field]!r}" if field in row else "is missing"
            raise PackError(f"{what}: {field!r} {given}; expected a {kind.__name__}, make the pack again")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", row["name"]):
        raise PackError(f"{what}: 'name' is no file name; make the pack again")
    if row["dtype"] not in RTOL:
        raise PackError(f"{what}: 'dtype' is {row['dtype']!r}; expected one of {', '.join(RTOL)}")
    dtype, rtol = row["dtype"], row["rtol"]
    if rtol != RTOL[dtype]:
        raise PackError(f"{what}: 'rtol' is {rtol!r}; expected {RTOL[dtype]} for {dtype}, make the pack again")
    if row["group"] not in GROUPS:
        raise PackError(f"{what}: 'group' is {row['group']!r}; expected one of {', '.join(GROUPS)}")
    for field, known in (("tags", TAGS), ("readings", READINGS)):
        strangers = [word for word in row[field] if not isinstance(word, str) or word not in known]
        if strangers:
            raise PackError(f"{what}: {field!r} has {strangers[0]!r}; expected some of {', '.join(known)}")
    if bool(row["readings"]) != (row["group"] == "acceptable"):
        raise PackError(
            f"{what}: 'readings' is {row['readings']!r} in group {row['group']}; only acceptable cases have some"
        )
    if "images" in row:
        if row["group"] != "optional":
            raise PackError(
                f"{what}: 'images' in group {row['group']}; a case of full size, with few stages, is optional"
            )
        _check_images(what, row["images"])
    for p in row["populations"]:
        if (
            not isinstance(p, dict)
            or not isinstance(p.get("name"), str)
            or type(row["rounding"].get(p["name"])) is not float
        ):
            raise PackError(f"{what}: population {p!r} has no name or no rounding; make the pack again")


def _check_images(what: str, images: Any) -> None:
    if not isinstance(images, dict) or images.get("dataset") not in PICTURES or images.get("part") != "test":
        raise PackError(f"{what}: 'images' is {images!r}; expected the part test of a dataset of {', '.join(PICTURES)}")
    numbers = images.get("mean"), images.get("std")
    for n in numbers:
        if not isinstance(n, list) or len(n) != 1 or type(n[0]) is not float or not np.isfinite(n[0]):
            raise PackError(f"{what}: 'images' has mean and std {numbers!r}; expected a list of one number each")


def _check_arrays(case: Case) -> None:
    """Refuse a case with an array too few, or one that would let a wrong number pass."""
    arrays = case.arrays
    spikes = {f"expected/spikes/{p['name']}": f"margin/{p['name']}" for p in case.config["populations"]}
    stages = {name.split("/")[1]: name for name in arrays if name.startswith("expected/")}
    unknown = [name for stage, name in stages.items() if stage not in STAGES]
    unknown += [name for name in arrays if name.startswith("expected/spikes/") and name not in spikes]
    read = [name.split("/", 2) for name in arrays if name.startswith("reading/")]
    unknown += ["/".join(parts) for parts in read if len(parts) < 3 or f"expected/{parts[2]}" not in arrays]
    unknown += ["/".join(parts) for parts in read if parts[1] not in case.config["readings"]]
    if "images" in case.config:
        spikes = {}
        lacking = [name for name in ("input/index", "expected/logits") if name not in arrays]
    else:
        lacking = [name for name in ("input/x", "input/y", *spikes.values(), *spikes) if name not in arrays]
        lacking += [f"expected/{stage}" for stage in STAGES if stage not in stages]
    told = ""
    if lacking or unknown:
        told = f"array {lacking[0]!r} is missing" if lacking else f"{unknown[0]!r} belongs to no known stage"
    for name, value in arrays.items() if not told else ():
        standard = "/".join(["expected", *name.split("/")[2:]]) if name.startswith("reading/") else name
        stage = standard.split("/")[1] if standard.startswith("expected/") else ""
        dtype = "uint8" if stage in DISCRETE else case.config["dtype"]
        if (stage or name == "input/x") and value.dtype != dtype:
            told = f"{name!r} is {value.dtype}; expected {dtype}"
        elif value.dtype.kind == "f" and not np.isfinite(value).all():
            told = f"{name!r} is not finite"
        elif standard != name and value.shape != arrays[standard].shape:
            told = f"{name!r} has shape {value.shape}, {standard!r} {arrays[standard].shape}"
        elif name in spikes and (value.ndim < 2 or value.shape != arrays[spikes[name]].shape):
            told = f"{name!r} has shape {value.shape}, {spikes[name]!r} {arrays[spikes[name]].shape}"
    if told:
        raise PackError(f"case {case.name}: {told}; make the pack again")


def _read(path: Path, what: str, most: int | None = None) -> bytes:
    """Content of a file of at most so many bytes; a PackError calls it `what`."""
    try:
        with open_regular(path) as file:
            data = file.read() if most is None else file.read(most + 1)
    except FileNotFoundError:
        raise PackError(f"{what}: {path} is missing") from None
    except OSError as error:
        raise PackError(f"{what}: {path} cannot be read ({error.strerror}); check its permissions") from None
    if most is not None and len(data) > most:
        raise PackError(f"{what}: {path} has more than {most} bytes; make the pack again")
    return data


def read_arrays(path: Path, what: str, sha256: str | None = None) -> dict[str, NDArray]:
    """The arrays of a safetensors file, with the digest asked for; a PackError calls it `what`."""
    from safetensors import SafetensorError
    from safetensors.numpy import load as parse

    data = _read(path, what)
    if sha256 is not None:
        _check_sum(path, what, data, sha256)
    try:
        return parse(data)
    # A dtype that NumPy lacks is a KeyError or a TypeError, by version.
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise PackError(f"{what}: {path} is no safetensors file ({error})") from None
