"""Computing a pack: every number in it is given by :mod:`ide_ref.equations`, in float64.

Source: ``docs/conformance.md``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ide_ref import equations
from ide_ref.network import Network, Params
from ide_ref.synapses import Conv2d, ConvTranspose2d, Shape, from_channels_last, to_channels_last
from ide_ref.verify.conformance.pack import DISCRETE, RTOL, Case, configs, network_of, stage_of, write
from ide_ref.verify.specification import Specified, specify

_N_BATCH, _N_DRAWS = 3, 400
_SGD = {"rate": 0.05, "momentum": 0.9, "weight_decay": 5e-4}


def describe(network: Network) -> dict[str, Any]:
    """The graph in plain words, for ports that read no structure strings."""
    connections = []
    for c in network.connections:
        kind = {Conv2d: "conv", ConvTranspose2d: "conv_transpose"}.get(type(c.synapse), "dense")
        row: dict[str, Any] = {"name": c.name, "source": c.source, "target": c.target, "kind": kind}
        geometry = ("kernel", "stride", "padding", "output_padding")
        row |= {part: getattr(c.synapse, part) for part in geometry if hasattr(c.synapse, part)}
        restriction = None if c.restriction is None else {"c": c.restriction.c, "norm": c.restriction.norm}
        connections.append({**row, "bias": c.bias, "batch_norm": c.batch_norm, "restriction": restriction})
    return {
        "populations": [{"name": p.name, "shape": list(p.shape)} for p in network.populations],
        "connections": connections,
        "readout": {"source": network.readout.source},
    }


def _draw(config: Mapping[str, Any], network: Network, seed: int) -> tuple[Params, dict[str, NDArray]]:
    """Parameters with nothing neutral, and ``input/*``: an input, labels, dropout masks."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(config["dtype"])
    params = network.init(rng)
    for name, value in params.items():
        part = name.rsplit(".", 1)[1]
        if part in ("bias", "bn_bias", "running_mean"):
            params[name] = rng.normal(0.2, 0.3, value.shape)
        elif part in ("bn_weight", "running_var"):
            params[name] = rng.uniform(0.7, 1.5, value.shape)
    if config["input"] == "spikes":
        x = 1.0 * (rng.random((_N_BATCH, config["n_steps"], *network.input_shape)) < 0.4)
    else:
        x = rng.normal(0.6, 1.2, (_N_BATCH, *network.input_shape))
    inputs = {"input/x": x.astype(dtype), "input/y": rng.integers(0, config["n_classes"], _N_BATCH)}
    for c in network.connections:
        if c.dropout:
            draws = rng.random((_N_BATCH, *c.synapse.out_shape))
            inputs[f"input/keep/{c.name}"] = equations.dropout(draws, c.dropout).astype(dtype)
    for neuron, drive in config["exact"].items():
        # It takes no feedback, and one power of two, or its sums, from its bias or from one input.
        j, of_spikes = int(neuron), config["input"] == "spikes"
        params["input.weight"][j] = params["feedback.weight"][j] = 0.0
        params["input.bias"][j] = 0.0 if of_spikes else drive
        params["input.weight"][j, j] = drive * of_spikes
    return {n: v.astype(dtype) for n, v in params.items() if not n.endswith("singular_vector")}, inputs


def specify_case(case: Case) -> Specified:
    """A case's network and input by the equations."""
    masks = {name: to_channels_last(keep, keep.shape[1:]) for name, keep in case.keep.items()}
    return specify(network_of(case.config), case.params, case.x, case.config["n_steps"], masks=masks, training=True)


def rollout(spec: Specified) -> tuple[list[NDArray], list[NDArray]]:
    """u[1..T] and s[1..T] of each population, (B, T, n_l)."""
    net = spec.net
    u = s = [np.zeros((len(spec.x), n)) for n in net.sizes]
    steps = []
    for t in range(spec.x.shape[1]):
        u, s = equations.step(net, u, s, spec.x[:, t])
        steps.append([*u, *s])
    states = [np.stack(state, axis=1) for state in zip(*steps, strict=True)]
    return states[: len(net.sizes)], states[len(net.sizes) :]


def shaped(cells: NDArray, shape: Shape) -> NDArray:
    """(..., n) in channels-last order as (..., *shape)."""
    return from_channels_last(cells.reshape(-1, cells.shape[-1]), shape).reshape(*cells.shape[:-1], *shape)


def restricted(spec: Specified) -> dict[str, NDArray]:
    """``weight/<connection>``, W after (NORM), of the parameter's shape."""
    return {
        f"weight/{name}": equations.restrict(p["weight"], float(p["alpha"]), equations.norm(c, p["weight"])[0])
        for c, p, name in zip(spec.connections, spec.params, spec.names, strict=True)
        if c.restriction is not None
    }


def stages(case: Case, spec: Specified) -> dict[str, NDArray]:
    """Every stage of a case as the equations give it, ``<stage>/<name>`` to array in the case's dtype."""
    network, net = network_of(case.config), spec.net
    leak = equations.own(net.leak, 0)  # a case has one neuron
    x_mean = equations.average(spec.x, leak)
    u, spikes = rollout(spec)
    a = [equations.average(s, leak) for s in spikes]
    source, W_o, b_o = spec.readout
    logits = equations.read_out(W_o, b_o, a[source])
    _, d_logits = equations.loss(logits, case.y)
    g = [np.zeros_like(rates) for rates in a]
    g[source] = d_logits @ W_o
    mask = equations.mask(net, a, x_mean)
    _, _, joined, gradients, statistics = spec.gradient(case.y)
    beta = np.split(joined, np.cumsum(net.sizes)[:-1], axis=1)

    found = {"x_mean": shaped(x_mean, network.input_shape), "logits": logits, "d_logits": d_logits}
    found |= restricted(spec)
    for i, population in enumerate(network.populations):
        states = {"u": u[i][:, -1], "spikes": spikes[i], "rates": a[i], "mask": mask[i], "g": g[i], "beta": beta[i]}
        driving = [m for m in net.maps if m.source < 0 and m.target == i]
        if driving:
            states["drive"] = np.asarray(sum(equations.output(m, x_mean) for m in driving))
        found |= {f"{stage}/{population.name}": shaped(v, population.shape) for stage, v in states.items()}
    found |= {f"grad/{name}": value for name, value in gradients.items()}
    found |= {f"new/{name}": value for name, value in statistics.items()}
    limits = {f"{c.name}.alpha": c.restriction.c for c in network.connections if c.restriction is not None}
    for name, d_theta in gradients.items():
        theta = case.params[name].astype(np.float64)
        theta, _ = equations.sgd_step(theta, np.zeros_like(theta), d_theta, *_SGD.values())
        # α ∈ [−c, c] of (NORM)
        found[f"new/{name}"] = np.clip(theta, -limits.get(name, np.inf), limits.get(name, np.inf))
    return {n: np.asarray(v, np.uint8 if stage_of(n) in DISCRETE else case.config["dtype"]) for n, v in found.items()}


def rounding_of(spec: Specified, u: list[NDArray], eps: float) -> list[float]:
    """What rounding can add to v of each population in one step, u (B, T, n_l) each: eps (n + 8) Σ|terms|.

    n is the number of terms of a sum; the 8 stand for what a port may do differently in folding normalisation and
    threshold.
    """
    found = []
    for i, potentials in enumerate(u):
        terms, size = 8, float(np.abs(potentials).max()) + equations.own(spec.net.v_th, i)
        for m in spec.net.maps:
            if m.target == i:
                scale = 1.0 if m.norm is None else m.norm[0] / np.sqrt(m.norm[3] + equations.EPSILON)
                shift = equations.output(m._replace(keep=np.ones(1)), np.zeros((1, m.W.shape[1])))
                sent = np.abs(spec.x).max(axis=(0, 1)) if m.source < 0 else np.ones(m.W.shape[1])
                size += float(m.keep.max()) * float((np.abs(scale) * (np.abs(m.W) @ sent) + np.abs(shift)).max())
                terms += int(np.count_nonzero(m.W, axis=1).max()) + 1
        found.append(eps * terms * size)
    return found


def _robust(
    spec: Specified,
    margins: list[NDArray],
    spikes: list[NDArray],
    rounding: list[float],
    exact: Sequence[int] = (),
    ends: Sequence[int] = (),
) -> bool:
    """Whether no rounding can flip a spike, or a mask where the spikes are right.

    ``exact`` neurons of the first population, which no rounding touches, may be at the threshold, ``ends`` at an end
    of the mask.
    """
    net = spec.net
    # A case has one neuron.
    leak, v_th = equations.own(net.leak, 0), equations.own(net.v_th, 0)
    a, x_mean = [equations.average(s, leak) for s in spikes], equations.average(spec.x, leak)
    for i, unit in enumerate(rounding):
        steps = np.arange(1, margins[i].shape[1] + 1)[:, None]
        margin = margins[i].copy()
        if i == 0:
            margin[..., exact] = np.where(margin[..., exact] == 0, np.inf, margin[..., exact])
        p = equations.arriving(net, i, x_mean, a, a)
        # Exact zeros are neurons cut off by dropout: they stay exact.
        distance = np.minimum(np.abs(np.where(p == 0, 1, p)), np.abs(p - v_th))
        if i == 0:
            distance[:, ends] = np.inf
        if np.any(np.abs(margin) <= 2 * steps * unit) or distance.min() <= 4 * unit:
            return False
    return True


def _steady(spec: Specified, expected: Mapping[str, NDArray]) -> bool:
    """Whether ∂L/∂W̄ moves no more than W̄ does, relatively, where ∂‖W̄‖/∂W̄ is taken slightly beside it.

    That moves by (error of the search for ‖W̄‖)/(distance to the next singular value): with a narrow gap right ports
    would disagree.
    """
    rng, beside = np.random.default_rng(0), 1e-6
    for c, p, name in zip(spec.connections, spec.params, spec.names, strict=True):
        if c.restriction is not None:
            w, (norm, d_norm) = p["weight"], equations.norm(c, p["weight"])
            _, moved = equations.norm(c, w * (1 + beside * rng.uniform(-1, 1, w.shape)))
            error = p["alpha"] / norm * expected[f"grad/{name}.alpha"] * (moved - d_norm)
            if np.abs(error).max() > beside * np.abs(expected[f"grad/{name}.weight"]).max():
                return False
    return True


def _outside(case: Case, reading: str) -> dict[str, NDArray]:
    """What a reading of (MASK) gives from the mask on: with drives at an end of it moved outside, by less than counts.

    No spike changes by that, and no gradient but through the mask.
    """
    ends = {"lower-end-outside": "0", "upper-end-outside": "1", "both-ends-outside": "01"}.get(reading, "")
    bias = case.params["input.bias"].copy()
    for (neuron, drive), end in zip(case.config["exact"].items(), "01", strict=False):
        bias[int(neuron)] += (end in ends) * (2.0**-40 if drive else -(2.0**-40))
    moved = Case(case.config, {**case.arrays, "param/input.bias": bias})
    found = stages(moved, specify_case(moved)) if ends else {}
    return {name: value for name, value in found.items() if stage_of(name) in ("mask", "beta", "grad", "new")}


def _make_case(config: dict[str, Any]) -> Case:
    network = network_of(config)
    # Clear of the rounding of every precision in which it may be computed.
    narrow = "single-precision" in config["readings"]
    eps = float(np.finfo("float32" if narrow else config["dtype"]).eps)
    exact = [int(neuron) for neuron in config["exact"]]
    ends = exact if config["group"] == "acceptable" else []
    key = int.from_bytes(hashlib.sha256(config["name"].encode()).digest()[:4], "little")
    for seed in range(key, key + _N_DRAWS):
        params, inputs = _draw(config, network, seed)
        case = Case(config, inputs | {f"param/{name}": value for name, value in params.items()})
        spec = specify_case(case)
        u, spikes = rollout(spec)
        margins = [potentials - network.neuron.v_th * (1 - s) for potentials, s in zip(u, spikes, strict=True)]
        rounding = rounding_of(spec, u, eps)
        reached = all(np.any(margins[0][..., j] == 0) for j in exact if config["exact"][str(j)])
        if reached and _robust(spec, margins, spikes, rounding, exact, ends):
            expected = stages(case, spec)
            if _steady(spec, expected):
                break
    else:
        told = f"no draw in {_N_DRAWS} keeps its spikes and its norm clear of rounding"
        raise RuntimeError(f"case {config['name']}: {told}")
    smallest = np.min([np.abs(margin).min(axis=(0, 2)) for margin in margins], axis=0)
    config = {
        **config,
        **describe(network),
        "sgd": _SGD,
        "bn": {"epsilon": equations.EPSILON, "momentum": equations.MOMENTUM},
        "solver_tol": 1e-12 if config["dtype"] == "float64" else 2e-6,
        "rtol": RTOL[config["dtype"]],
        "smallest_margin": [float(f"{v:.6e}") for v in smallest],
        "rounding": {p.name: float(f"{v:.6e}") for p, v in zip(network.populations, rounding, strict=True)},
    }
    arrays = case.arrays | {f"expected/{name}": value for name, value in expected.items()}
    for reading in config["readings"]:
        for name, value in _outside(case, reading).items():
            if not np.array_equal(value, expected[name]):
                arrays[f"reading/{reading}/{name}"] = value
    for population, margin in zip(network.populations, margins, strict=True):
        arrays[f"margin/{population.name}"] = shaped(margin, population.shape).astype(np.float32)
    return Case(config, {name: np.asarray(value, order="C") for name, value in arrays.items()})


def chosen(known: Mapping[str, Any], names: Iterable[str] | None) -> set[str]:
    """The names asked for, or all; ValueError for one that is not known."""
    wanted = set(known if names is None else names)
    if wanted - set(known):
        raise ValueError(f"names has {min(wanted - set(known))!r}; expected cases such as {next(iter(known))!r}")
    return wanted


def cases(names: Iterable[str] | None = None) -> Iterator[Case]:
    """The cases of a pack, or those of some names, made on the spot."""
    known = {config["name"]: config for config in configs()}
    wanted = chosen(known, names)
    for name, config in known.items():
        if name in wanted:
            yield _make_case(config)


def make(directory: str | Path, *, names: Iterable[str] | None = None) -> Path:
    """Write a pack of all cases, or those of some names, into a folder; returns the path of its manifest.

    The folder is made where it does not exist. Made twice, a pack is the same byte for byte.
    """
    return write(Path(directory), cases(names))
