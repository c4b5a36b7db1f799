"""Networks to and from NIR, the neuromorphic intermediate representation.

NIR is a graph of neurons in continuous time and of linear maps; (STEP) is discrete. What NIR has no words for is
written as metadata, and a graph without that is read only by a :class:`Reading`, which says how.

The map. NIR's LIF is τ dv/dt = v_leak − v + r I, its IF dv/dt = r I. With v_leak = 0 and a current that is constant
over a step dt, Euler's step is v ← (1 − dt/τ) v + (r dt/τ) I and the exact one v ← e^(−dt/τ) v + r (1 − e^(−dt/τ)) I;
for IF both are v ← v + r dt I. So λ = 1 − dt/τ or e^(−dt/τ), and the input arrives times a gain g. Divided by g,
v = g u, the step is that of (STEP), with V_th = v_threshold/g and every weight as it stands. Written are τ = dt/(1 − λ)
and r = 1/(1 − λ), for IF r = 1/dt: by Euler's step λ, g = 1 and v_threshold = V_th.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ide_ref import _checks
from ide_ref.maps import freeze
from ide_ref.network import INPUT, Connection, Network, Params, Population, Readout, finite
from ide_ref.neurons import Neuron
from ide_ref.synapses import AvgPool2d, Conv2d, Dense, Shape, Synapse

SAID = {
    "time": "discrete steps: u <- leak u + input, with tau and r for Euler's step of the dt written here",
    "reset": "by subtraction of v_threshold, in the step of the spike, before the next leak; v_reset is not used",
    "threshold": "a spike where v >= v_threshold, equality included",
    "order": "of the populations, as written here: an edge from an earlier one carries this step's spikes, any "
    "other edge those of the step before",
    "bias": "added in full at every step to the drive, not a current times r",
    "input": "a static value held for all steps, or spikes, one frame a step; from rest, u = 0 and no spikes",
    "output": "the readout of average rates; over time, the average of its outputs weighted by leak^(T-1-t)",
    "batch norm": "folded into weights and biases with the running statistics, restrictions of norms too",
    "dropout": "none",
    "padding": "zeros, which count in the mean of AvgPool2d",
}
"""What NIR cannot say of a network, as it is written into the metadata of a graph."""


@dataclass(frozen=True)
class Reading:
    """How a NIR graph without this package's metadata is taken as (STEP).

    To give one is to agree to the rest of :data:`SAID`: reset by subtraction, a spike at equality, and so on, whatever
    the simulator that wrote the graph does.

    Parameters
    ----------
    dt : float
        The step, in the unit of τ.
    decay : str
        λ = 1 − dt/τ (``"euler"``) or e^(−dt/τ) (``"exponential"``).
    gain : str
        g, by which input arrives: ``"r"`` as NIR has it, r dt/τ or r (1 − λ), r dt for IF; ``"damped"``, 1 − λ and 1
        for IF; ``"one"``. The last two do not look at r.
    order : tuple of str
        Names of the populations' nodes in the order of (LAYERS); needed where cycles join several.
    """

    dt: float
    decay: Literal["euler", "exponential"] = "euler"
    gain: Literal["r", "damped", "one"] = "r"
    order: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _checks.positive("dt", self.dt)
        _checks.one_of("decay", self.decay, ("euler", "exponential"))
        _checks.one_of("gain", self.gain, ("r", "damped", "one"))
        _checks.kind("order", self.order, tuple)


READINGS = {
    "snntorch": Reading(1e-4, gain="one"),
    "spikingjelly": Reading(1e-4),
    # norse writes its step of 1 ms times τ as τ, and no resistance.
    "norse": Reading(1e-6, gain="damped"),
    # sinabs writes τ in steps, and leaves it to r = 1 that its input is not damped.
    "sinabs": Reading(1.0, "exponential", "one"),
}
"""The readings of what other simulators write with their defaults."""

_KEY = "ide_ref"
# Names of a graph's nodes: they cannot meet, for each kind has its own beginning.
_POPULATION, _CONNECTION, _FLATTEN, _AFTER = "population_", "connection_", "flatten_", "after_"


def _nir() -> ModuleType:
    try:
        import nir
    except ModuleNotFoundError:
        raise ModuleNotFoundError("NIR graphs need the package nir: pip install nir") from None
    return nir


# --- writing --------------------------------------------------------------------------------------------


def to_nir(network: Network, params: Mapping[str, NDArray], *, dt: float = 1e-4) -> Any:
    """A network as a graph of NIR, for evaluation, with what NIR cannot say in its metadata.

    Parameters
    ----------
    network : Network
    params : dict
        As ``network.init`` returns them; the arrays of the graph have their dtype.
    dt : float
        The step that τ and r are written for, in seconds. The default is that of most simulators.

    Returns
    -------
    nir.NIRGraph
        Of the nodes ``input``, ``population_NAME``, ``connection_NAME``, ``flatten_NAME`` where a dense connection
        reads a picture, ``after_NAME`` for bias and normalisation of a pooling, ``readout`` and ``output``.
        ``nir.write`` or :func:`save` writes it.

    Raises
    ------
    ValueError
        For parameters that do not fit; or a connection that has no node in NIR, by name: a transposed convolution, or a
        dense map into a picture.
    ModuleNotFoundError
        Without the package ``nir``.
    """
    nir = _nir()
    dt = _checks.positive("dt", dt)
    frozen = freeze(network, params)
    nodes: dict[str, Any] = {"input": nir.Input(np.array(network.input_shape))}
    edges: list[tuple[str, str]] = []
    for p, neuron in zip(network.populations, network.neurons, strict=True):
        nodes[_POPULATION + _sayable(p.name)] = _neuron_node(nir, p, neuron, dt, frozen.dtype)

    def place(population: str) -> str:
        return "input" if population == INPUT else _POPULATION + population

    for c, m in zip(network.connections, frozen.maps, strict=True):
        name = _CONNECTION + _sayable(c.name)
        chain = [place(c.source), name, place(c.target)]
        # scale ⊙ W; without any scale the weights themselves.
        weight = m.synapse.from_taps(m.folded_taps)
        if isinstance(c.synapse, Dense) and len(c.synapse.out_shape) == 1:
            nodes[name] = _dense_node(nir, weight, m.shift)
            _flatten(nir, nodes, chain, c.name, c.synapse.in_shape)
        elif type(c.synapse) is Conv2d:
            nodes[name] = _conv_node(nir, c.synapse, weight, m.shift)
        elif type(c.synapse) is AvgPool2d:
            kernel, stride, padding = ([n, n] for n in (c.synapse.kernel, c.synapse.stride, c.synapse.padding))
            nodes[name] = nir.AvgPool2d(np.array(kernel), np.array(stride), np.array(padding))
            nodes[name].input_type = {"input": np.array(c.synapse.in_shape)}
            nodes[name].output_type = {"output": np.array(c.synapse.out_shape)}
            if m.shift is not None:
                ones = np.ones(c.synapse.out_shape[0], frozen.dtype)
                scale = ones if m.norm is None else m.norm.scale
                same = Conv2d(c.synapse.out_shape, c.synapse.out_shape, 1, 1, 0)
                nodes[_AFTER + c.name] = _conv_node(nir, same, np.diag(scale)[:, :, None, None], m.shift)
                chain.insert(2, _AFTER + c.name)
        else:
            into = "" if not isinstance(c.synapse, Dense) else f" into a picture, {c.synapse.out_shape}"
            raise ValueError(
                f"connection {c.name!r} is a {type(c.synapse).__name__}{into}, for which NIR has no node; expected "
                "Conv2d, AvgPool2d, or Dense into a flat population"
            )
        # What the node does not hold as it is stands beside it.
        if not c.synapse.weight_shape or c.batch_norm or c.restriction is not None:
            own = [part for part in network.parameter_shapes if part.rsplit(".", 1)[0] == c.name]
            nodes[name].metadata = {part.rsplit(".", 1)[1]: np.atleast_1d(frozen.params[part]) for part in own}
        edges += itertools.pairwise(chain)
    nodes["readout"] = _dense_node(nir, params["readout.weight"], params["readout.bias"])
    nodes["output"] = nir.Output(np.array([network.n_classes]))
    chain = [place(network.readout.source), "readout", "output"]
    _flatten(nir, nodes, chain, "readout", network.readout.synapse.in_shape)
    edges += itertools.pairwise(chain)
    written = json.dumps({"format": 1, "dt": dt, "network": network.to_dict()})
    order = ", ".join(_POPULATION + p.name for p in network.populations)
    metadata = {_KEY: written, **SAID, "populations": order, "dt": repr(dt)}
    # The network has checked all shapes; NIR's own check would add nodes.
    return nir.NIRGraph(nodes, edges, metadata, type_check=False)


def save(path: str | os.PathLike[str], network: Network, params: Mapping[str, NDArray], *, dt: float = 1e-4) -> None:
    """Write :func:`to_nir`'s graph to a file, with its errors."""
    _nir().write(_checks.path("path", path), to_nir(network, params, dt=dt))


def _sayable(name: str) -> str:
    if not name or "/" in name or "\0" in name:
        raise ValueError(f"name {name!r} cannot name a node in a NIR file; expected some characters, none of them '/'")
    return name


def _neuron_node(nir: ModuleType, p: Population, neuron: Neuron, dt: float, dtype: np.dtype) -> Any:
    def full(value: float) -> NDArray:
        return np.full(p.shape, _checks.converted(f"neuron of population {p.name!r}", np.float64(value), dtype))

    v_threshold, zero = full(neuron.v_th), full(0.0)
    if neuron.leak == 1.0:
        return nir.IF(r=full(1.0 / dt), v_threshold=v_threshold, v_reset=zero)
    rest = 1.0 - neuron.leak
    return nir.LIF(tau=full(dt / rest), r=full(1.0 / rest), v_leak=zero, v_threshold=v_threshold, v_reset=zero)


def _dense_node(nir: ModuleType, weight: NDArray, bias: NDArray | None) -> Any:
    return nir.Linear(np.array(weight)) if bias is None else nir.Affine(np.array(weight), np.array(bias))


def _conv_node(nir: ModuleType, synapse: Conv2d, weight: NDArray, bias: NDArray | None) -> Any:
    bias = np.zeros(len(weight), weight.dtype) if bias is None else np.array(bias)
    stride, padding = (synapse.stride,) * 2, (synapse.padding,) * 2
    return nir.Conv2d(synapse.in_shape[1:], np.array(weight), stride, padding, (1, 1), 1, bias)


def _flatten(nir: ModuleType, nodes: dict[str, Any], chain: list[str], name: str, shape: Shape) -> None:
    """A node that flattens a picture of that shape before a dense one, second in the chain."""
    if len(shape) > 1:
        nodes[_FLATTEN + name] = nir.Flatten({"input": np.array(shape)}, 0, -1)
        chain.insert(1, _FLATTEN + name)


# --- reading --------------------------------------------------------------------------------------------


def from_nir(graph: Any, *, reading: Reading | str | None = None) -> tuple[Network, Params]:
    """A graph of NIR as a network and its parameters.

    Parameters
    ----------
    graph : nir.NIRGraph
        One that :func:`to_nir` made is read by its metadata: graph and parameters as they were, bit for bit, batch
        normalisation, restrictions and dropout included.
    reading : Reading or str, optional
        How the nodes are taken, and a name of :data:`READINGS` that of what that simulator writes by default. Needed
        for any other graph; given, metadata are not looked at.

    Returns
    -------
    network, params

    Raises
    ------
    ValueError
        For a graph without metadata and without a reading; nodes changed since they were exported; and, by the node's
        name, for nodes that this package has not (only Input, Output, Affine, Linear, Conv2d, AvgPool2d, Flatten, IF,
        LIF and graphs of these), cycles without a neuron, several inputs or outputs, shapes that do not fit, dilation,
        groups, kernels that are not square, neurons that differ within a node, a v_leak or v_reset other than 0, and
        numbers that are not finite or of another dtype than float32 or float64.
    ModuleNotFoundError
        Without the package ``nir``.
    """
    nir = _nir()
    _checks.kind("graph", graph, nir.NIRGraph)
    if isinstance(reading, str):
        _checks.one_of("reading", reading, tuple(READINGS))
        reading = READINGS[reading]
    _checks.kind("reading", reading, Reading, type(None))
    nodes, edges = _inlined(nir, graph)
    for name, node in nodes.items():
        if type(node).__name__ not in _KNOWN:
            raise ValueError(f"node {name!r} is a {type(node).__name__}; expected {', '.join(sorted(_KNOWN))}")
    if reading is not None:
        return _Reader(nir, nodes, edges, reading).read()
    if _KEY not in graph.metadata:
        unsaid = "; ".join(f"{key}: {SAID[key]}" for key in ("reset", "threshold", "order", "bias"))
        raise ValueError(
            "the graph has no metadata of ide_ref, and NIR leaves open what (STEP) needs; give reading=Reading(dt, "
            f"...) or one of {', '.join(READINGS)} to have it read as: {unsaid}"
        )
    return _as_exported(nir, graph, nodes, edges)


def load(path: str | os.PathLike[str], *, reading: Reading | str | None = None) -> tuple[Network, Params]:
    """:func:`from_nir` of a file, with its errors; ValueError, naming the file, where it is none of NIR."""
    nir = _nir()
    import h5py  # nir's own way to its files

    path = _checks.path("path", path)
    try:
        with h5py.File(path, "r") as file:
            known = {*_KNOWN, "NIRGraph"}
            for name, node in file["node/nodes"].items():
                kind = node["type"][()].decode()
                if kind not in known:
                    raise ValueError(f"node {name!r} is a {kind}; expected {', '.join(sorted(known))}")
        graph = nir.read(path, type_check=False)
    # Files are taken apart by h5py and nir, which check little themselves.
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as a NIR graph ({type(error).__name__}: {error})") from None
    return from_nir(graph, reading=reading)


def _as_exported(nir: ModuleType, graph: Any, nodes: Mapping[str, Any], edges: set[tuple[str, str]]) -> Any:
    """Network and parameters from the metadata, which the nodes must bear out."""
    try:
        said = json.loads(graph.metadata[_KEY])
        if said["format"] != 1:
            raise ValueError(f"format is {said['format']!r}; expected 1")
        dt, network = _checks.positive("dt", said["dt"]), Network.from_dict(said["network"])
        # Nothing is allocated for neurons that are not there.
        for p in network.populations:
            if np.shape(nodes[_POPULATION + p.name].v_threshold) != p.shape:
                raise ValueError(f"population {p.name!r} has shape {p.shape}, but its node another")
        params: Params = {}
        for name, shape in network.parameter_shapes.items():
            owner, part = name.rsplit(".", 1)
            node = nodes["readout" if owner == "readout" else _CONNECTION + owner]
            value = node.metadata[part] if part in node.metadata else getattr(node, part)
            params[name] = np.array(value).reshape(shape)
        again, its_edges = _inlined(nir, to_nir(network, params, dt=dt))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        told = f"the graph and its metadata {_KEY!r} do not fit ({error!r})"
        raise ValueError(f"{told}; give a reading to go without these") from None
    # NIR's own check puts an input before, or an output behind, neurons that have none.
    added = {name for name in nodes.keys() - again.keys() if isinstance(nodes[name], (nir.Input, nir.Output))}
    edges = {edge for edge in edges if added.isdisjoint(edge)}
    for name in sorted(again.keys() | nodes.keys() - added):
        if name not in again or name not in nodes or not _same(again[name], nodes[name]):
            raise ValueError(
                f"node {name!r} is not what the metadata of the graph say; it was changed since its export: give a "
                "reading to take the nodes as they stand"
            )
    if edges != its_edges:
        (source, target), *_ = sorted(edges ^ its_edges)
        raise ValueError(f"edge {source!r} to {target!r} is not what the metadata say: give a reading")
    return network, params


def _same(a: Any, b: Any) -> bool:
    """Whether two nodes agree but for the rounding of another machine."""
    if type(a) is not type(b):
        return False
    first, second = a.to_dict(), b.to_dict()
    for key in (first.keys() | second.keys()) - {"type", "metadata"}:
        x, y = np.asarray(first.get(key)), np.asarray(second.get(key))
        if x.dtype.kind != y.dtype.kind or x.shape != y.shape or not finite(x.astype(np.float64)):
            return False
        if x.dtype.kind == "f":
            tol = math.sqrt(np.finfo(x.dtype).eps)
            if x.dtype != y.dtype or not np.allclose(x, y, rtol=tol, atol=tol * np.abs(x).max(initial=0.0)):
                return False
        elif not np.array_equal(x, y):
            return False
    return True


_LINEAR = ("Affine", "Linear", "Conv2d", "AvgPool2d")
_NEURONS = ("IF", "LIF")
_KNOWN = frozenset((*_LINEAR, *_NEURONS, "Flatten", "Input", "Output"))


def _inlined(nir: ModuleType, graph: Any) -> tuple[dict[str, Any], set[tuple[str, str]]]:
    """Nodes and edges with those of inner graphs in their place; the inner inputs and outputs become Flatten nodes."""
    nodes, edges = dict(graph.nodes), [(str(a), str(b)) for a, b in graph.edges]
    while inner := [name for name, node in nodes.items() if isinstance(node, nir.NIRGraph)]:
        name = inner[0]
        part = nodes.pop(name)
        ends = {}
        for kind in (nir.Input, nir.Output):
            found = [key for key, node in part.nodes.items() if isinstance(node, kind)]
            if len(found) != 1:
                raise ValueError(f"graph {name!r} has {len(found)} nodes {kind.__name__}; expected one")
            ends[kind] = found[0]
        for key, node in part.nodes.items():
            passes = key in ends.values()
            nodes[f"{name}.{key}"] = nir.Flatten(None, 0, -1) if passes else node
        edges = [
            (f"{name}.{ends[nir.Output]}" if a == name else a, f"{name}.{ends[nir.Input]}" if b == name else b)
            for a, b in edges
        ]
        edges += [(f"{name}.{a}", f"{name}.{b}") for a, b in part.edges]
    for edge in edges:
        for end in edge:
            if end not in nodes:
                raise ValueError(f"edge {edge[0]!r} to {edge[1]!r} has an end {end!r} that is no node")
    if twice := [edge for edge, n in Counter(edges).items() if n > 1]:
        raise ValueError(f"edge {twice[0][0]!r} to {twice[0][1]!r} stands twice; expected each once")
    return nodes, set(edges)


class _Reader:
    """A graph's nodes taken as (STEP) by a reading."""

    def __init__(self, nir: ModuleType, nodes: dict[str, Any], edges: Iterable[tuple[str, str]], reading: Reading):
        self.nir, self.nodes, self.reading = nir, nodes, reading
        self.before: dict[str, list[str]] = {name: [] for name in nodes}
        self.after: dict[str, list[str]] = {name: [] for name in nodes}
        for source, target in sorted(edges):
            self.before[target].append(source)
            self.after[source].append(target)
        self.dtype: np.dtype | None = None

    def of_kind(self, *kinds: str) -> list[str]:
        return [name for name, node in self.nodes.items() if type(node).__name__ in kinds]

    def only(self, kind: str) -> str:
        found = self.of_kind(kind)
        if len(found) != 1:
            raise ValueError(f"the graph has {len(found)} nodes {kind} ({', '.join(found)}); expected one")
        return found[0]

    def read(self) -> tuple[Network, Params]:
        entry, exit = self.only("Input"), self.only("Output")
        neurons = self.of_kind(*_NEURONS)
        self.refuse_cycles(neurons)
        ends = {name: self.ends(name) for name in self.of_kind(*_LINEAR)}
        for name in neurons:
            for source in self.before[name]:
                if self.origin(source) not in ends:
                    raise ValueError(f"node {name!r} is reached from {source!r} without weights; expected some")
        shapes = self.shapes(entry, neurons, ends)
        known = {name: self.neuron(name) for name in neurons}
        order = self.order(neurons, {(s, t) for s, t in ends.values() if s in neurons and t in neurons})
        common = known[order[0]] if order else Neuron(1.0)
        populations = tuple(
            Population(name, shapes[name], None if known[name] == common else known[name]) for name in order
        )
        params: Params = {}
        connections = []
        for name, (source, target) in ends.items():
            if target == exit:
                continue
            node = self.nodes[name]
            bias = getattr(node, "bias", None)
            if type(node).__name__ != "AvgPool2d":
                params[f"{name}.weight"] = self.array(name, "weight")
            if bias is not None:
                params[f"{name}.bias"] = self.array(name, "bias")
            synapse = self.synapse(name, shapes[source])
            at = INPUT if source == entry else source
            connections.append(Connection(name, at, target, synapse, bias is not None))
        readout = self.readout(exit, ends, shapes, params)
        network = Network(shapes[entry], populations, tuple(connections), readout, common)
        network.check_params(params)
        return network, params

    def refuse_cycles(self, neurons: Iterable[str]) -> None:
        """ValueError for a cycle in which no neuron keeps what passes for a step."""
        try:
            TopologicalSorter({name: self.before[name] for name in self.nodes.keys() - set(neurons)}).prepare()
        except CycleError as error:
            path = " to ".join(map(repr, reversed(error.args[1])))
            raise ValueError(f"nodes {path} form a cycle without delay; expected a neuron in every cycle") from None

    def origin(self, name: str) -> str:
        """What a node gets through nodes that only pass on."""
        while type(self.nodes[name]).__name__ == "Flatten":
            if len(self.before[name]) != 1:
                raise ValueError(f"node {name!r} has {len(self.before[name])} edges into it; expected one")
            name = self.before[name][0]
        return name

    def ends(self, name: str) -> tuple[str, str]:
        """Where a linear node gets its input and where its output goes."""
        found = []
        for step in (self.before, self.after):
            end = name
            while end == name or type(self.nodes[end]).__name__ == "Flatten":
                if len(step[end]) != 1:
                    way = "into" if step is self.before else "out of"
                    raise ValueError(f"node {end!r} has {len(step[end])} edges {way} it; expected one")
                end = step[end][0]
            if type(self.nodes[end]).__name__ in _LINEAR:
                raise ValueError(f"nodes {name!r} and {end!r} are both linear, with no neuron between them; join them")
            found.append(end)
        return found[0], found[1]

    def shapes(self, entry: str, neurons: Iterable[str], ends: Mapping[str, tuple[str, str]]) -> dict[str, Shape]:
        """Shapes of the input and the populations, whose nodes may have one number for all their neurons."""
        shapes = {entry: _shape(entry, self.nodes[entry].input_type["input"])}
        for name in neurons:
            shape = np.shape(self.nodes[name].v_threshold)
            if math.prod(shape) != 1:
                shapes[name] = _shape(name, shape)
        found = True
        while found:
            found = False
            for name, (source, target) in ends.items():
                if target in neurons and target not in shapes and source in shapes:
                    shapes[target], found = self.synapse(name, shapes[source]).out_shape, True
        for name in neurons:
            if name not in shapes:
                raise ValueError(f"node {name!r} has one number for all neurons, and nothing tells how many these are")
        return shapes

    def synapse(self, name: str, source: Shape) -> Synapse:
        """The synapse of a linear node that reads a population of that shape."""
        node = self.nodes[name]
        kind = type(node).__name__
        if kind in ("Affine", "Linear"):
            weight = self.array(name, "weight")
            if weight.ndim != 2 or weight.shape[1] != math.prod(source):
                raise ValueError(f"node {name!r} has weights {weight.shape}, but its input has shape {source}")
            return Dense(source, weight.shape[:1])
        if len(source) != 3:
            raise ValueError(f"node {name!r} is a {kind} and reads {source}; expected (channels, rows, columns)")
        if kind == "AvgPool2d":
            kernel, stride = self.whole(name, "kernel_size"), self.whole(name, "stride")
            return self.fitting(name, lambda: AvgPool2d.over(
                source, kernel=kernel, stride=stride, padding=self.whole(name, "padding", kernel=kernel)
            ))  # fmt: skip
        weight = self.array(name, "weight")
        if weight.ndim != 4 or weight.shape[2] != weight.shape[3] or weight.shape[1] != source[0]:
            raise ValueError(
                f"node {name!r} has weights {weight.shape}, but its input has shape {source}; expected (channels, "
                f"{source[0]}, k, k), k the same twice"
            )
        for field in ("dilation", "groups"):
            if self.whole(name, field) != 1:
                raise ValueError(f"node {name!r} has {field} {self.whole(name, field)}; expected 1")
        if node.input_shape is not None and _shape(name, node.input_shape) != source[1:]:
            raise ValueError(f"node {name!r} is for pictures {_shape(name, node.input_shape)}, but reads {source[1:]}")
        stride = self.whole(name, "stride")
        padding = self.whole(name, "padding", kernel=weight.shape[2], stride=stride)
        return self.fitting(name, lambda: Conv2d.over(
            source, weight.shape[0], kernel=weight.shape[2], stride=stride, padding=padding
        ))  # fmt: skip

    @staticmethod
    def fitting(name: str, make: Any) -> Synapse:
        try:
            return make()
        except ValueError as error:
            raise ValueError(f"node {name!r} does not fit: {error}") from None

    def whole(self, name: str, field: str, *, kernel: int = 1, stride: int = 1) -> int:
        """A field of a node that is one whole number for rows and columns."""
        value = getattr(self.nodes[name], field)
        if field == "padding" and isinstance(value, str):
            value = {"valid": 0, "same": (kernel - 1) // 2 if kernel % 2 and stride == 1 else value}.get(value, value)
        numbers = set(np.ravel(value).tolist())
        if len(numbers) != 1 or not _checks.is_whole(least := numbers.pop(), 0):
            raise ValueError(f"node {name!r} has {field} {value!r}; expected one whole number for rows and columns")
        return int(least)

    def array(self, name: str, field: str) -> NDArray:
        """Weights of a node, all nodes' of one dtype."""
        array = np.array(getattr(self.nodes[name], field))
        others = self.dtype is not None and self.dtype != array.dtype
        if array.dtype not in (np.float32, np.float64) or others:
            wanted = "float32 or float64" if self.dtype is None else f"{self.dtype} as in other nodes"
            raise ValueError(f"node {name!r} has {field} of {array.dtype}; expected {wanted}")
        if not finite(array):
            raise ValueError(f"node {name!r} has {field} that is NaN or infinite")
        self.dtype = array.dtype
        return array

    def neuron(self, name: str) -> Neuron:
        """λ and V_th of a node; see the map at the top."""
        node, reading = self.nodes[name], self.reading

        def one(field: str, *, infinite: bool = False) -> float:
            values = np.unique(np.asarray(getattr(node, field)))
            if values.size != 1 or values.dtype.kind not in "fiu":
                raise ValueError(f"node {name!r} has {field} that differs between its neurons; expected one number")
            if not (np.isfinite(values[0]) or (infinite and values[0] > 0)):
                raise ValueError(f"node {name!r} has {field} {values[0]}; expected a finite number")
            return float(values[0])

        for field in ("v_leak", "v_reset"):
            if hasattr(node, field) and one(field):
                raise ValueError(f"node {name!r} has {field} {one(field):g}; expected 0, to which (STEP) decays")
        leak, rest = 1.0, reading.dt
        if type(node).__name__ == "LIF":
            tau = one("tau", infinite=True)
            if tau <= 0:
                raise ValueError(f"node {name!r} has tau {tau:g}; expected a positive number")
            rest = -math.expm1(-reading.dt / tau) if reading.decay == "exponential" else reading.dt / tau
            leak = 1.0 - rest
        elif reading.gain == "damped":
            rest = 1.0
        gain = {"one": 1.0, "damped": rest}.get(reading.gain) or one("r") * rest
        # No file says more than its own dtype does.
        dtype = np.asarray(node.v_threshold).dtype
        dtype = dtype if dtype.kind == "f" else np.dtype(np.float64)
        if not (0.0 < leak <= 1.0 and gain > 0.0):
            raise ValueError(
                f"node {name!r} has leak {leak:g} and gain {gain:g} with dt {reading.dt:g}, {reading.decay}, gain "
                f"{reading.gain!r}; expected a leak in (0, 1] and a positive gain: another reading"
            )
        try:
            return Neuron(float(dtype.type(leak)), float(dtype.type(one("v_threshold") / gain)))
        except ValueError as error:
            raise ValueError(f"node {name!r} has no neuron of (STEP): {error}") from None

    def order(self, neurons: list[str], edges: Iterable[tuple[str, str]]) -> tuple[str, ...]:
        """The populations in the order of (LAYERS)."""
        if self.reading.order:
            if sorted(self.reading.order) != sorted(neurons):
                raise ValueError(f"order is {self.reading.order}; expected each of {', '.join(neurons)} once")
            return self.reading.order
        before: dict[str, list[str]] = {name: [] for name in neurons}
        for source, target in sorted(edges):
            if source != target:
                before[target].append(source)
        try:
            return tuple(TopologicalSorter(before).static_order())
        except CycleError as error:
            path = " to ".join(map(repr, reversed(error.args[1])))
            raise ValueError(
                f"neurons {path} form a cycle, and which edge of it brings the spikes of the step before is not said; "
                "give reading=Reading(..., order=(names of the neurons' nodes))"
            ) from None

    def readout(
        self, exit: str, ends: Mapping[str, tuple[str, str]], shapes: Mapping[str, Shape], params: Params
    ) -> Readout:
        """The last linear map, or else the rates of the last neurons as they are."""
        if len(self.before[exit]) != 1:
            raise ValueError(f"node {exit!r} has {len(self.before[exit])} edges into it; expected one")
        last = self.origin(self.before[exit][0])
        source = ends[last][0] if last in ends else last
        if type(self.nodes[source]).__name__ not in _NEURONS:
            raise ValueError(f"node {exit!r} is reached from {source!r} without a neuron; expected neurons before it")
        if last in ends:
            synapse = self.synapse(last, shapes[source])
            if not isinstance(synapse, Dense):
                raise ValueError(
                    f"node {last!r}, before the output, is a {type(synapse).__name__}; expected a dense one"
                )
            weight = self.array(last, "weight")
            bias = (
                self.array(last, "bias") if hasattr(self.nodes[last], "bias") else np.zeros(len(weight), weight.dtype)
            )
        else:
            n = math.prod(shapes[source])
            weight, bias = np.eye(n, dtype=self.dtype), np.zeros(n, self.dtype)
            synapse = Dense(shapes[source], (n,))
        said = self.nodes[exit].output_type["output"]
        if said is not None and math.prod(_shape(exit, said)) != synapse.n_out:
            raise ValueError(f"node {exit!r} has shape {_shape(exit, said)}, but gets {synapse.n_out} numbers")
        params |= {"readout.weight": weight, "readout.bias": bias}
        return Readout(source, synapse)


def _shape(name: str, value: Any) -> Shape:
    return _checks.shape(f"shape of node {name!r}", np.ravel(value).tolist() if value is not None else None)
