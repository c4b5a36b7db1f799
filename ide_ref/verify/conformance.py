"""Conformance packs: small cases with the expected output of every stage, and the search for the first wrong number.

A pack is a folder with ``manifest.json`` and one safetensors file a case. Every array has the layout of the
field: batch first, then (time,) channels, rows, columns. A port reads ``input/*`` and ``param/*``, computes, and
returns or writes what the file has under ``expected/*``, as far as it goes. Margins and rounding bounds in the
pack make the tolerance a rule: inputs are drawn so that no rounding of a right port can flip a spike, so every
spike must agree, and then every later number to a fixed relative tolerance.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ide_ref import _checks
from ide_ref._files import write_atomically
from ide_ref.equilibrium import linearise, sweep
from ide_ref.implicit import backward
from ide_ref.maps import Frozen, freeze
from ide_ref.network import INPUT, Network, Params, of_population
from ide_ref.neurons import Neuron
from ide_ref.simulation import Rates, simulate
from ide_ref.structure import build
from ide_ref.synapses import Conv2d, ConvTranspose2d, from_cells, to_cells
from ide_ref.training.losses import cross_entropy
from ide_ref.training.sgd import SGD
from ide_ref.verify.compare import as_array
from ide_ref.verify.small import N_CLASSES, STRUCTURES

SCHEMA = "ide_ref.conformance"
VERSION = 1

STAGES = (
    "weight",
    "x_mean",
    "drive",
    "spikes",
    "u",
    "rates",
    "logits",
    "d_logits",
    "mask",
    "g",
    "beta",
    "grad",
    "new",
)
"""What a port computes, in order. ``weight``: after (NORM). ``new``: parameters and statistics after one step."""

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

_DISCRETE = ("spikes", "mask")

RTOL = {"float64": 1e-9, "float32": 5e-4}
"""Of an array's largest value, or a hundredth of its stage's largest where that is more."""

_N_BATCH, _N_STEPS = 3, 6
_GAP = 0.05
"""Least distance of ‖W̄‖₂ to the next singular value, relative."""

_SGD = {"rate": 0.05, "momentum": 0.9, "weight_decay": 5e-4}


class PackError(ValueError):
    """A folder that is no pack, or none this version reads; the message is one line."""


@dataclass(frozen=True)
class Case:
    """One case of a pack.

    Attributes
    ----------
    config : dict
        Structure, neuron, sizes, options: what a port needs besides arrays.
    arrays : dict of str to array
        ``input/x``, ``input/y``, ``input/keep/<connection>``, ``param/<name>``, ``expected/<stage>/<name>``, and
        ``margin/<population>``, v − V_th at every step.
    """

    config: dict[str, Any]
    arrays: dict[str, NDArray]

    @property
    def name(self) -> str:
        """The case's name in the pack."""
        return str(self.config["name"])

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
        """Dropout masks a connection, (B, *shape) of its target, scaled; empty for no dropout."""
        return self._under("input/keep/")

    @property
    def params(self) -> dict[str, NDArray]:
        """Parameters and running statistics."""
        return self._under("param/")

    @cached_property
    def expected(self) -> dict[str, NDArray]:
        """``<stage>/<name>`` to array, in the order of the stages."""
        found = self._under("expected/")
        return {name: found[name] for name in sorted(found, key=lambda n: (STAGES.index(_stage(n)), n))}


def _stage(name: str) -> str:
    return name.split("/", 1)[0]


# --- making ------------------------------------------------------------------------------------------


def _configs() -> Iterator[dict[str, Any]]:
    """Every case's configuration, in the pack's order."""
    combinations = [
        (name, neuron, kind, dtype, batch_norm, 0.0)
        for name in STRUCTURES
        for neuron in ("if", "lif")
        for kind in ("static", "spikes")
        for dtype in ("float64", "float32")
        for batch_norm in (True, False)
    ]
    combinations += [(name, "lif", "static", "float64", True, 0.25) for name in ("fashion-mnist-400", "alexnet-f")]
    for name, neuron, kind, dtype, batch_norm, dropout in combinations:
        parts = [name, neuron, kind, dtype, "bn" if batch_norm else "plain", *(["dropout"] if dropout else [])]
        structure, shape = STRUCTURES[name]
        yield {
            "name": "-".join(parts),
            "structure": structure,
            "input_shape": list(shape),
            "n_classes": N_CLASSES,
            "neuron": {"leak": 1.0 if neuron == "if" else 0.95, "v_th": 2.0},
            "input": kind,
            "dtype": dtype,
            "batch_norm": batch_norm,
            "dropout": dropout,
            "n_steps": _N_STEPS,
        }


def _network(config: Mapping[str, Any]) -> Network:
    return build(
        config["structure"],
        input_shape=tuple(config["input_shape"]),
        n_classes=config["n_classes"],
        neuron=Neuron(**config["neuron"]),
        dropout=config["dropout"],
        batch_norm=config["batch_norm"],
    )


def _describe(network: Network) -> dict[str, Any]:
    """The graph in plain words, for ports that read no structure strings."""
    connections = []
    for c in network.connections:
        s = c.synapse
        row: dict[str, Any] = {"name": c.name, "source": c.source, "target": c.target, "kind": "dense"}
        if isinstance(s, Conv2d | ConvTranspose2d):
            row |= {"kind": "conv", "kernel": s.kernel, "stride": s.stride, "padding": s.padding}
        if isinstance(s, ConvTranspose2d):
            row |= {"kind": "conv_transpose", "output_padding": s.output_padding}
        restriction = None if c.restriction is None else {"c": c.restriction.c, "norm": c.restriction.norm}
        connections.append({**row, "bias": c.bias, "batch_norm": c.batch_norm, "restriction": restriction})
    return {
        "populations": [{"name": p.name, "shape": list(p.shape)} for p in network.populations],
        "connections": connections,
        "readout": {"source": network.readout.source},
    }


def _draw(config: Mapping[str, Any], network: Network, seed: int) -> tuple[Params, NDArray, NDArray, Frozen]:
    """Parameters with nothing neutral, an input, labels, and the network frozen on them."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(config["dtype"])
    params = network.init(rng)
    for name, value in params.items():
        part = name.rsplit(".", 1)[1]
        if part in ("bias", "bn_bias", "running_mean"):
            params[name] = rng.normal(0.2, 0.3, value.shape)
        elif part in ("bn_weight", "running_var"):
            params[name] = rng.uniform(0.7, 1.5, value.shape)
    params = _with_singular_vectors(network, {name: np.asarray(value, dtype) for name, value in params.items()})
    size = (_N_BATCH, *network.input_shape)
    if config["input"] == "spikes":
        train = rng.random((_N_BATCH, config["n_steps"], *network.input_shape)) < 0.4
        x = train.astype(dtype)
    else:
        x = rng.normal(0.6, 1.2, size).astype(dtype)
    y = rng.integers(0, config["n_classes"], _N_BATCH)
    return params, x, y, freeze(network, params, x, training=True, rng=rng)


def _with_singular_vectors(network: Network, params: Params) -> Params:
    """Parameters with the vectors that the search for ‖W̄‖ starts from, found in float64.

    In single precision the search may stop at a pair close to the leading one; a pack must not depend on that.
    """
    dtype = params["readout.weight"].dtype
    rng = np.random.default_rng(0)
    wide = {name: np.asarray(value, np.float64) for name, value in params.items()}
    for name, shape in network.parameter_shapes.items():
        if name.endswith("singular_vector"):
            wide[name] = rng.standard_normal(shape)
    found = freeze(network, wide).statistics
    return {**params, **{name: value.astype(dtype) for name, value in found.items()}}


def _rounding(frozen: Frozen, rates: Rates) -> dict[str, float]:
    """What rounding can add to v of each population in one step: eps (n + 8) Σ|terms|, n the terms of the sum.

    The 8 stand for what a port may do differently in folding normalisation and threshold.
    """
    net = frozen.network
    eps = float(np.finfo(frozen.dtype).eps)
    found = {}
    for target, population in enumerate(net.populations):
        place = net.place(target)
        terms, size = 8, float(np.max(np.abs(rates.u[:, place]))) + net.neuron.v_th
        for c, (_, end) in zip(frozen.maps, net.ends, strict=True):
            if end == target:
                made = c.synapse.apply(np.abs(c.folded_taps), np.ones((1, c.synapse.n_in), frozen.dtype))
                keep = 1.0 if c.keep is None else float(c.keep.max())
                shift = 0.0 if c.shift is None else float(np.max(np.abs(c.shift)))
                size += keep * (float(made.max()) * 1.0 + shift)
                terms += c.synapse.n_multiplications // max(1, c.synapse.n_out) + 1
        found[population.name] = eps * terms * size
    return found


def _robust(frozen: Frozen, rates: Rates, margins: Mapping[str, NDArray], rounding: Mapping[str, float]) -> bool:
    """Whether no rounding can flip a spike, or a mask where the spikes are right."""
    net = frozen.network
    p = sweep(frozen, rates.a, frozen.drive(rates.x_mean), forward=rates.a).p
    for population in net.populations:
        unit = rounding[population.name]
        steps = np.arange(1, rates.n_steps + 1).reshape(1, -1, *[1] * len(population.shape))
        here = p[:, net.place(population.name)]
        # Exact zeros are neurons cut off by dropout: they stay exact.
        distance = np.minimum(np.abs(np.where(here == 0, 1, here)), np.abs(here - net.neuron.v_th))
        if np.any(np.abs(margins[population.name]) <= 2 * steps * unit) or distance.min() <= 4 * unit:
            return False
    return True


def _separated(frozen: Frozen) -> bool:
    """Whether the leading singular value of each restricted map stands clear of the next.

    The gradient of ‖W̄‖₂ moves by (error of the search)/(gap): with a narrow gap right ports would disagree.
    """
    for i, c in enumerate(frozen.maps):
        if frozen.network.connections[i].restriction is not None:
            values = np.linalg.svd(
                c.synapse.apply(c.taps, np.eye(c.synapse.n_in, dtype=frozen.dtype)), compute_uv=False
            )
            if values[0] - values[1] < _GAP * values[0]:
                return False
    return True


def _within(given: Mapping[str, NDArray], right: Mapping[str, NDArray], rtol: float) -> bool:
    """Whether two sets of stages agree by the comparison's own rule."""
    for stage in STAGES:
        names = [name for name in right if _stage(name) == stage]
        scale = max((float(np.max(np.abs(right[name]), initial=0.0)) for name in names), default=0.0)
        for name in names:
            error = np.abs(given[name].astype(np.float64) - right[name].astype(np.float64))
            if np.any(error > (0.0 if stage in _DISCRETE else _allowed(rtol, right[name], scale))):
                return False
    return True


def _make_case(config: dict[str, Any]) -> Case:
    network, n_steps = _network(config), config["n_steps"]
    tol = 1e-12 if config["dtype"] == "float64" else 2e-6
    key = int.from_bytes(hashlib.sha256(config["name"].encode()).digest()[:4], "little")
    for seed in range(key, key + 400):
        params, x, y, frozen = _draw(config, network, seed)
        rates = simulate(frozen, x, n_steps, record=True)
        margins = _margins(network, rates)
        rounding = _rounding(frozen, rates)
        if not _robust(frozen, rates, margins, rounding) or not _separated(frozen):
            continue
        keep = {c.name: from_cells(c.keep, c.synapse.out_shape) for c in frozen.maps if c.keep is not None}
        expected = _stages(frozen, params, rates, y, tol)
        if config["dtype"] == "float64":
            break
        # What single precision should give is what double precision gives, rounded: its own error is left to ports,
        # and the draw is taken where ours uses up no more than a quarter of the tolerance.
        wide = {name: value.astype(np.float64) for name, value in params.items()}
        frozen = _freeze(network, wide, x.astype(np.float64), keep)
        rates = simulate(frozen, x.astype(np.float64), n_steps, record=True)
        margins = _margins(network, rates)
        own, expected = expected, _stages(frozen, wide, rates, y, 1e-12)
        expected = {name: v.astype(np.float32) if v.dtype.kind == "f" else v for name, v in expected.items()}
        if _within(own, expected, RTOL["float32"] / 4):
            break
    else:
        raise RuntimeError(f"case {config['name']}: no draw in 400 keeps its spikes and its norm clear of rounding")
    arrays = {"input/x": x, "input/y": y}
    arrays |= {f"input/keep/{name}": v for name, v in keep.items()}
    arrays |= {f"param/{name}": v for name, v in params.items() if not name.endswith("singular_vector")}
    arrays |= {f"expected/{name}": v for name, v in expected.items()}
    arrays |= {f"margin/{name}": v.astype(np.float32) for name, v in margins.items()}
    smallest = np.min(
        [np.abs(v).reshape(_N_BATCH, rates.n_steps, -1).min(axis=(0, 2)) for v in margins.values()], axis=0
    )
    config = {
        **config,
        **_describe(network),
        "sgd": _SGD,
        "bn": {"epsilon": 1e-5, "momentum": 0.1},
        "solver_tol": tol,
        "rtol": RTOL[config["dtype"]],
        "smallest_margin": [float(f"{v:.6e}") for v in smallest],
        "rounding": {name: float(f"{v:.6e}") for name, v in rounding.items()},
    }
    return Case(config, {name: np.asarray(value, order="C") for name, value in arrays.items()})


def _margins(network: Network, rates: Rates) -> dict[str, NDArray]:
    """(B, T, *shape) v − V_th of each population: u[t + 1] where it did not spike, less V_th; u[t + 1] where it did."""
    if rates.spikes is None or rates.potentials is None:
        raise RuntimeError("the rollout was not recorded")
    excess = rates.potentials - network.neuron.v_th * (1 - rates.spikes)
    return _by_step(network, excess.astype(rates.a.dtype))


def _by_step(network: Network, recorded: NDArray) -> dict[str, NDArray]:
    n_batch, n_steps, n = recorded.shape
    flat = recorded.reshape(n_batch * n_steps, n)
    return {
        p.name: of_population(network, flat, p.name).reshape(n_batch, n_steps, *p.shape) for p in network.populations
    }


def _stages(frozen: Frozen, params: Params, rates: Rates, y: NDArray, tol: float) -> dict[str, NDArray]:
    """``<stage>/<name>`` to array: what the reference computes."""
    net = frozen.network
    drive = frozen.drive(rates.x_mean)
    logits = frozen.read_out(rates)
    _, d_logits = cross_entropy(logits, y)
    back = backward(frozen, rates, d_logits, solver="gmres", tol=tol, max_iter=2000)
    g, _ = frozen.read_out_pull_back(rates, d_logits)
    mask = linearise(frozen, rates.a, drive).slope != 0
    optimiser = SGD(_SGD["momentum"], _SGD["weight_decay"])
    start = optimiser.start(params, net.trainable)
    updated, _ = optimiser.step(params, start, back.gradients, rate=_SGD["rate"])
    updated = net.project({**updated, **back.statistics})

    found: dict[str, NDArray] = {"x_mean": rates.x_mean, "logits": logits, "d_logits": d_logits}
    for i, c in enumerate(frozen.maps):
        if frozen.network.connections[i].restriction is not None:
            found[f"weight/{c.name}"] = c.weight
    driven = {c.target for c in net.connections if c.source == INPUT}
    for p in net.populations:
        if p.name in driven:
            found[f"drive/{p.name}"] = of_population(net, drive, p.name)
        for stage, state in (("u", rates.u), ("rates", rates.a), ("g", g), ("beta", back.beta)):
            found[f"{stage}/{p.name}"] = of_population(net, state, p.name)
        found[f"mask/{p.name}"] = of_population(net, mask.astype(np.uint8), p.name)
    if rates.spikes is not None:
        found |= {f"spikes/{name}": v for name, v in _by_step(net, rates.spikes).items()}
    found |= {f"grad/{name}": np.asarray(v) for name, v in back.gradients.items()}
    found |= {f"new/{name}": v for name, v in updated.items() if not name.endswith("singular_vector")}
    return found


def cases(names: Iterable[str] | None = None) -> Iterator[Case]:
    """The cases of a pack, made on the spot.

    Parameters
    ----------
    names : iterable of str, optional
        Only these; all by default.
    """
    wanted = None if names is None else set(names)
    configs = list(_configs())
    unknown = (wanted or set()) - {config["name"] for config in configs}
    if unknown:
        raise ValueError(f"names has {min(unknown)!r}; expected cases such as {configs[0]['name']!r}")
    for config in configs:
        if wanted is None or config["name"] in wanted:
            yield _make_case(config)


def make(directory: str | Path, *, names: Iterable[str] | None = None) -> Path:
    """Write a pack: ``manifest.json``, and a safetensors file a case.

    Parameters
    ----------
    directory : path
        Made where it does not exist. Made twice, a pack is the same byte for byte.
    names : iterable of str, optional
        Only these cases.

    Returns
    -------
    Path
        Of the manifest.
    """
    from safetensors.numpy import save

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    rows = []
    for case in cases(names):
        data = save(case.arrays)
        write_atomically(directory / f"{case.name}.safetensors", data)
        rows.append({**case.config, "sha256": hashlib.sha256(data).hexdigest()})
    manifest = {
        "schema": SCHEMA,
        "version": VERSION,
        "stages": [{"name": stage, "says": _SAYS[stage]} for stage in STAGES],
        "cases": rows,
    }
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    write_atomically(directory / "manifest.json", text.encode())
    return directory / "manifest.json"


def load(directory: str | Path) -> tuple[Case, ...]:
    """Read a pack.

    Raises
    ------
    PackError
        For a missing or damaged file, or a pack of a newer schema.
    """
    directory = Path(directory)
    path = directory / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise PackError(
            f"{directory} has no manifest.json; make a pack with: ide-ref conformance make {directory}"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PackError(f"{path}: no JSON ({error}); make the pack again") from None
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise PackError(f"{path}: no manifest of a conformance pack; expected schema {SCHEMA!r}")
    version = manifest.get("version")
    if not isinstance(version, int) or not _checks.is_whole(version):
        raise PackError(f"{path}: schema version {version!r}; expected a whole number, make the pack again")
    if version > VERSION:
        raise PackError(f"{path}: schema version {version!r}; this ide_ref reads up to {VERSION}, update it")
    rows = manifest.get("cases")
    if not isinstance(rows, list) or not rows:
        raise PackError(f"{path}: no list of cases under 'cases'; make the pack again")
    found = []
    for number, row in enumerate(rows):
        _check_row(path, number, row)
        arrays = _read(directory / f"{row['name']}.safetensors", f"case {row['name']}", row["sha256"])
        case = Case({key: value for key, value in row.items() if key != "sha256"}, arrays)
        needed = ["input/x", "input/y", *(f"margin/{p['name']}" for p in row["populations"])]
        lacking = [name for name in needed if name not in arrays]
        unknown = [name for name in arrays if name.startswith("expected/") and name.split("/")[1] not in STAGES]
        if lacking or unknown:
            told = f"array {lacking[0]!r} is missing" if lacking else f"{unknown[0]!r} belongs to no known stage"
            raise PackError(f"case {case.name}: {told}; make the pack again")
        found.append(case)
    return tuple(found)


_ROW = {
    "name": str,
    "sha256": str,
    "dtype": str,
    "input": str,
    "n_steps": int,
    "n_classes": int,
    "input_shape": list,
    "neuron": dict,
    "populations": list,
    "connections": list,
    "sgd": dict,
    "bn": dict,
    "rounding": dict,
    "rtol": float,
    "solver_tol": float,
}
"""What a case's configuration must have to be read and compared."""


def _check_row(path: Path, number: int, row: Any) -> None:
    """Refuse a case of the manifest that cannot be read, naming the field."""
    name = row.get("name") if isinstance(row, dict) else None
    what = f"{path}: case {name}" if isinstance(name, str) else f"{path}: case number {number}"
    if not isinstance(row, dict):
        raise PackError(f"{what} is {row!r}; expected an object, make the pack again")
    for field, kind in _ROW.items():
        if not isinstance(row.get(field), kind):
            given = f"is {row[field]!r}" if field in row else "is missing"
            raise PackError(f"{what}: {field!r} {given}; expected a {kind.__name__}, make the pack again")
    if Path(row["name"]).name != row["name"]:
        raise PackError(f"{what}: 'name' is no file name; make the pack again")
    if row["dtype"] not in RTOL:
        raise PackError(f"{what}: 'dtype' is {row['dtype']!r}; expected one of {', '.join(RTOL)}")
    for p in row["populations"]:
        if not isinstance(p, dict) or not isinstance(p.get("name"), str) or p["name"] not in row["rounding"]:
            raise PackError(f"{what}: population {p!r} has no name or no rounding; make the pack again")


def _read(path: Path, what: str, sha256: str | None = None) -> dict[str, NDArray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load as parse

    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise PackError(f"{what}: {path} is missing") from None
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise PackError(f"{what}: {path} is not what the manifest says (SHA-256 differs); make the pack again")
    try:
        return parse(data)
    except (SafetensorError, KeyError) as error:
        raise PackError(f"{what}: {path} is no safetensors file ({error})") from None


# --- comparing ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Divergence:
    """The first wrong number of a case, or what kept it from being compared.

    Attributes
    ----------
    case, stage, array : str
        ``array`` is the population, connection or parameter; empty for stages with a single array. ``stage`` is empty
        where the case itself is unknown.
    kind : {"value", "missing", "shape", "dtype", "not finite", "error", "unknown"}
    step : int or None
        1 to T, for spikes.
    index : tuple of int
        (sample, neuron...) in the array, without the step.
    expected, got : float
    error, allowed : float
    rounding : bool or None
        Whether rounding can explain it; None where that is no question.
    detail : str
    """

    case: str
    stage: str
    array: str
    kind: str
    step: int | None = None
    index: tuple[int, ...] = ()
    expected: float = float("nan")
    got: float = float("nan")
    error: float = float("nan")
    allowed: float = float("nan")
    rounding: bool | None = None
    detail: str = ""

    def __str__(self) -> str:
        where = ", ".join([f"case {self.case}", *([f"stage {self.stage}"] if self.stage else [])])
        where += f", {self.array}" if self.array else ""
        if self.kind != "value":
            return f"{where}: {self.detail}"
        if self.step is not None:
            where += f", step {self.step}"
        if self.index:
            first = "sample" if self.stage not in ("weight", "grad", "new") else "index"
            rest = f" {self.index}" if first == "index" else f" {self.index[0]}, neuron {self.index[1:]}"
            where += f", {first}{rest}"
        explained = "rounding can explain it" if self.rounding else "rounding cannot explain it"
        tail = f"; {self.detail}" if self.detail else ""
        return (
            f"{where}: expected {self.expected:.9g}, got {self.got:.9g} (error {self.error:.1e}, allowed "
            f"{self.allowed:.1e}): {explained}{tail}"
        )


@dataclass(frozen=True)
class CaseResult:
    """How one case went.

    Attributes
    ----------
    case : str
    divergence : Divergence or None
    compared : tuple of str
        Stages that agree.
    complete : bool
        Whether the port's output reaches the last stage.
    """

    case: str
    divergence: Divergence | None
    compared: tuple[str, ...]
    complete: bool

    @property
    def passed(self) -> bool:
        """Whether all that is there agrees, and something is there."""
        return self.divergence is None and bool(self.compared)


@dataclass(frozen=True)
class ConformanceReport:
    """Result of :func:`compare` and :func:`run_port`.

    Attributes
    ----------
    results : tuple of CaseResult
    absent : tuple of str
        Cases of the pack without any output; they are not counted against the port.
    """

    results: tuple[CaseResult, ...]
    absent: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every case agrees as far as it goes."""
        return bool(self.results) and all(result.passed for result in self.results)

    @property
    def first(self) -> Divergence | None:
        """The first divergence: of the earliest stage, in the order of the cases."""
        found = [result.divergence for result in self.results if result.divergence is not None]
        return min(found, key=lambda d: STAGES.index(d.stage) if d.stage in STAGES else -1) if found else None

    def table(self) -> str:
        """The report as text."""
        lines = []
        partial: dict[tuple[str, ...], list[str]] = {}
        for result in self.results:
            if result.divergence is not None:
                lines.append(f"FAILED  {result.divergence}")
            elif not result.compared:
                lines.append(f"FAILED  case {result.case}: nothing to compare")
            elif not result.complete:
                partial.setdefault(result.compared, []).append(result.case)
        for stages, names in partial.items():
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            lines.append(f"agrees  case {names[0]}{others}, as far as it goes: {', '.join(stages)}")
        good = sum(result.passed for result in self.results)
        whole = sum(result.passed and result.complete for result in self.results)
        lines.append(f"{good} of {len(self.results)} cases agree, {whole} of them through every stage")
        if self.absent:
            others = f" and {len(self.absent) - 1} more" if len(self.absent) > 1 else ""
            lines.append(f"no output of {self.absent[0]}{others}: not compared")
        if self.first is not None:
            lines.append(f"look first at: {self.first}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values; numbers that are not finite become null."""

        def plain(value: Any) -> Any:
            return None if isinstance(value, float) and not np.isfinite(value) else value

        def row(d: Divergence | None) -> dict[str, Any] | None:
            return None if d is None else {**{k: plain(v) for k, v in vars(d).items()}, "text": str(d)}

        return {
            "passed": self.passed,
            "first": row(self.first),
            "absent": list(self.absent),
            "cases": [
                {
                    "case": r.case,
                    "passed": r.passed,
                    "complete": r.complete,
                    "compared": list(r.compared),
                    "divergence": row(r.divergence),
                }
                for r in self.results
            ],
        }


_OUTPUTS = "of '<stage>/<name>' to arrays"


def check(case: Case, outputs: Mapping[str, Any], *, stages: Sequence[str] | None = None) -> CaseResult:
    """Compare one case's outputs, stage by stage, up to the first divergence.

    Parameters
    ----------
    case : Case
    outputs : mapping of str to array
        ``<stage>/<name>`` to NumPy arrays, or anything with ``__array__`` or DLPack. Stages after the last that is
        there are not asked for; one that is left out before it is reported.
    stages : sequence of str, optional
        Compare these alone.
    """
    wanted = STAGES if stages is None else tuple(stages)
    unknown = [stage for stage in wanted if stage not in STAGES]
    if unknown:
        raise ValueError(f"stages has {unknown[0]!r}; expected names of {', '.join(STAGES)}")
    if not isinstance(outputs, Mapping):
        raise ValueError(f"outputs of case {case.name} is a {type(outputs).__name__}; expected a mapping {_OUTPUTS}")
    strangers = [str(name) for name in outputs if name not in case.expected]
    present = {_stage(str(name)) for name in outputs}
    last = max((i for i, stage in enumerate(STAGES) if stage in present), default=-1)
    compared: list[str] = []
    complete = bool(present) and all(stage in present for stage in STAGES)
    for stage in STAGES[: last + 1]:
        expected = {name: value for name, value in case.expected.items() if _stage(name) == stage}
        if stage not in wanted or not expected:
            continue
        divergence = _check_stage(case, stage, expected, outputs)
        if divergence is not None:
            if divergence.kind == "missing" and strangers:
                # Most likely the same array under another name.
                more = f"{divergence.detail}; there is {strangers[0]!r}, which is no array of this case"
                divergence = replace(divergence, detail=more)
            return CaseResult(case.name, divergence, tuple(compared), False)
        compared.append(stage)
    if strangers:
        name = strangers[0]
        detail = f"output {name!r} is no array of this case; expected names such as {next(iter(case.expected))!r}"
        return CaseResult(
            case.name, Divergence(case.name, _stage(name), "", "missing", detail=detail), tuple(compared), False
        )
    return CaseResult(case.name, None, tuple(compared), complete)


def _check_stage(
    case: Case, stage: str, expected: Mapping[str, NDArray], outputs: Mapping[str, Any]
) -> Divergence | None:
    theirs: dict[str, NDArray] = {}
    for name, right in expected.items():
        array = name.split("/", 1)[1] if "/" in name else ""

        def bad(kind: str, detail: str, array: str = array) -> Divergence:
            return Divergence(case.name, stage, array, kind, detail=detail)

        if name not in outputs:
            return bad("missing", f"{name!r} is missing, though later stages or arrays of this stage are there")
        try:
            given = as_array(name, outputs[name])
        except ValueError as error:
            return bad("dtype", str(error))
        if given.shape != right.shape:
            return bad("shape", f"{name!r} has shape {given.shape}; expected {right.shape}")
        if stage in _DISCRETE:
            other = np.argwhere((given != 0) & (given != 1))
            if len(other):
                where = tuple(int(i) for i in other[0])
                kind = "dtype" if np.isfinite(given[where]) else "not finite"
                return bad(kind, f"{name!r} holds {given[where]} at {where}; expected 0 and 1 alone")
        elif given.dtype != right.dtype:
            return bad("dtype", f"{name!r} has dtype {given.dtype}; expected {right.dtype}")
        if given.dtype.kind == "f" and not np.all(np.isfinite(given)):
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(given))[0])
            return bad("not finite", f"{name!r} holds {given[where]} at {where}")
        theirs[name] = given
    if stage == "spikes":
        return _first_spike(case, expected, theirs)
    scale = max((float(np.max(np.abs(right), initial=0.0)) for right in expected.values()), default=0.0)
    for name in _in_order(case, stage, expected):
        found = _first_value(case, stage, name, expected[name], theirs[name], scale)
        if found is not None:
            return found
    return None


def _in_order(case: Case, stage: str, expected: Mapping[str, NDArray]) -> list[str]:
    """Names in the order in which they are computed: populations forward, or backward for β and gradients."""
    order = [p["name"] for p in case.config["populations"]]
    if stage == "beta":
        order.reverse()
    ranked = {name: i for i, name in enumerate(order)}
    return sorted(expected, key=lambda name: ranked.get(name.split("/", 1)[-1], 0))


def _first_spike(case: Case, expected: Mapping[str, NDArray], theirs: Mapping[str, NDArray]) -> Divergence | None:
    order = [p["name"] for p in case.config["populations"]]
    first: tuple[int, int] | None = None
    for rank, population in enumerate(order):
        name = f"spikes/{population}"
        steps = np.argwhere(np.any(theirs[name] != expected[name], axis=_others(expected[name])))
        if steps.size and (first is None or (int(steps[0, 0]), rank) < first):
            first = (int(steps[0, 0]), rank)
    if first is None:
        return None
    step, rank = first
    name = f"spikes/{order[rank]}"
    index = tuple(int(i) for i in np.argwhere(theirs[name][:, step] != expected[name][:, step])[0])
    at = (index[0], step, *index[1:])
    margin = abs(float(case.arrays[f"margin/{order[rank]}"][at]))
    allowed = (step + 1) * float(case.config["rounding"][order[rank]])
    return Divergence(
        case.name,
        "spikes",
        order[rank],
        "value",
        step + 1,
        index,
        float(expected[name][at]),
        float(theirs[name][at]),
        margin,
        allowed,
        margin <= allowed,
        f"v was {margin:.2e} from V_th, and rounding moves it by at most {allowed:.1e}",
    )


def _others(array: NDArray) -> tuple[int, ...]:
    return tuple(i for i in range(array.ndim) if i != 1)


def _allowed(rtol: float, right: NDArray, stage_scale: float) -> float:
    """The error that passes, see :data:`RTOL`."""
    return rtol * max(float(np.max(np.abs(right), initial=0.0)), 1e-2 * stage_scale)


def _first_value(
    case: Case, stage: str, name: str, right: NDArray, given: NDArray, stage_scale: float
) -> Divergence | None:
    array = name.split("/", 1)[1] if "/" in name else ""
    error = np.abs(given.astype(np.float64) - right.astype(np.float64))
    allowed = 0.0 if stage in _DISCRETE else _allowed(float(case.config["rtol"]), right, stage_scale)
    if not np.any(error > allowed):
        return None
    # The first for a mask, the worst for a number: one wrong term touches many, and shows most where it is large.
    flat = int(np.argmax(error > allowed)) if stage in _DISCRETE else int(np.argmax(error))
    index = tuple(int(i) for i in np.unravel_index(flat, right.shape))
    worst = float(error[index])
    detail = f"{int(np.sum(error > allowed))} of {error.size} numbers are off"
    lower = {"float64": ("single", 1e-5), "float32": ("half precision or TF32", 2e-2)}[case.config["dtype"]]
    if stage not in _DISCRETE and worst <= lower[1] * float(np.max(np.abs(right))):
        detail += f"; as small as {lower[0]} would make it" if lower[0] != "single" else "; as single precision would"
    return Divergence(
        case.name,
        stage,
        array,
        "value",
        None,
        index,
        float(right[index]),
        float(given[index]),
        worst,
        allowed,
        False,
        detail,
    )


def compare(
    directory: str | Path,
    outputs: str | Path | Mapping[str, Mapping[str, Any]],
    *,
    stages: Sequence[str] | None = None,
) -> ConformanceReport:
    """Compare what a port wrote with a pack.

    Parameters
    ----------
    directory : path
        The pack.
    outputs : path, or mapping of case name to mapping of arrays
        A folder with ``<case>.safetensors`` for some or all cases, arrays named ``<stage>/<name>``.
    stages : sequence of str, optional
        Compare these alone.

    Raises
    ------
    PackError
        For a pack that cannot be read, or a folder without any output of its cases.

    Notes
    -----
    An output that is called like no case at all is reported as a divergence; one of another pack's case is left out.
    """
    pack = load(directory)
    results, absent = [], []
    if isinstance(outputs, str | Path):
        if Path(outputs).is_file():
            raise PackError(f"{outputs} is a file; expected a folder with files such as {pack[0].name}.safetensors")
        given = sorted(path.stem for path in Path(outputs).glob("*.safetensors"))
    else:
        given = list(outputs)
    known = [case.name for case in pack]
    elsewhere = {config["name"] for config in _configs()}
    for name in given:
        if name not in known and name not in elsewhere:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected cases such as {known[0]!r}"
            results.append(
                CaseResult(
                    str(name), Divergence(str(name), "", "", "unknown", detail=f"no such case; {hint}"), (), False
                )
            )
    for case in pack:
        if isinstance(outputs, str | Path):
            path = Path(outputs) / f"{case.name}.safetensors"
            arrays: Mapping[str, Any] | None = _read(path, f"output of case {case.name}") if path.exists() else None
        else:
            arrays = outputs.get(case.name)
        if arrays is None:
            absent.append(case.name)
            continue
        results.append(check(case, arrays, stages=stages))
    if not results:
        where = str(outputs) if isinstance(outputs, str | Path) else "outputs"
        raise PackError(f"{where} has no output of any case; expected files such as {pack[0].name}.safetensors")
    return ConformanceReport(tuple(results), tuple(absent))


def run_port(
    port: Callable[[Case], Mapping[str, Any]],
    *,
    directory: str | Path | None = None,
    names: Iterable[str] | None = None,
    stages: Sequence[str] | None = None,
) -> ConformanceReport:
    """Run a port on every case, in process, and compare.

    Parameters
    ----------
    port : callable
        From a case to its outputs, ``<stage>/<name>`` to array.
    directory : path, optional
        A pack; by default the cases are made on the spot.
    names : iterable of str, optional
        Only these cases.
    stages : sequence of str, optional
        Compare these alone.

    Returns
    -------
    ConformanceReport
        An exception in the port is reported as that case's divergence.
    """
    found: Iterable[Case]
    if directory is None:
        found = cases(names)
    else:
        pack = load(directory)
        wanted = {case.name for case in pack} if names is None else set(names)
        unknown = wanted - {case.name for case in pack}
        if unknown:
            raise ValueError(f"names has {min(unknown)!r}; expected cases such as {pack[0].name!r}")
        found = [case for case in pack if case.name in wanted]
    results = []
    for case in found:
        try:
            outputs = port(case)
            if not isinstance(outputs, Mapping):
                raise TypeError(f"it returned a {type(outputs).__name__}; expected a mapping {_OUTPUTS}")
        except Exception as error:
            detail = f"the port raised {type(error).__name__}: {error}"
            results.append(CaseResult(case.name, Divergence(case.name, "port", "", "error", detail=detail), (), False))
            continue
        results.append(check(case, outputs, stages=stages))
    return ConformanceReport(tuple(results))


def reference(case: Case) -> dict[str, NDArray]:
    """The reference as a port: computes every stage of a case anew from its inputs and parameters."""
    network = _network(case.config)
    params = _with_singular_vectors(network, case.params)
    frozen = _freeze(network, params, case.x, case.keep)
    rates = simulate(frozen, case.x, case.config["n_steps"], record=True)
    return _stages(frozen, params, rates, case.y, float(case.config["solver_tol"]))


def _freeze(network: Network, params: Params, x: NDArray, keep: Mapping[str, NDArray]) -> Frozen:
    """The network frozen on a batch as in training, with given dropout masks in place of drawn ones."""
    frozen = freeze(network, params, x, training=True, rng=np.random.default_rng(0))
    connections = []
    for c in frozen.maps:
        mask = keep.get(c.name)
        connections.append(c if mask is None else replace(c, keep=to_cells(mask.astype(frozen.dtype), mask.shape[1:])))
    return replace(frozen, maps=tuple(connections))
