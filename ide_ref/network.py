"""A network is a graph: populations in order, and connections between any two of them.

``Network`` says what is connected to what and holds no arrays; ``init`` draws its parameters, a flat dict, from which
:func:`ide_ref.maps.freeze` makes maps. States are (B, n) arrays, the populations side by side, each channels last.

Source: (FP) with W in blocks, a block for each connection; ``docs/networks.md``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ide_ref import _checks, _files, constraints
from ide_ref._kernels import elementwise as _elementwise
from ide_ref.constraints import Restriction, SingularPair
from ide_ref.neurons import Neuron
from ide_ref.synapses import AvgPool2d, Conv2d, ConvTranspose2d, Dense, Shape, Synapse, both_ways, from_channels_last

if TYPE_CHECKING:
    from ide_ref.maps import Frozen

INPUT = "input"
"""Name of the input as the source of a connection."""

Params = dict[str, NDArray]


def finite(array: NDArray) -> bool:
    """Whether no value of an array of any shape is NaN or infinite."""
    if array.flags.c_contiguous and array.dtype in (np.float32, np.float64):
        return bool(_elementwise.all_finite(array.reshape(-1)))
    return bool(np.all(np.isfinite(array)))


def clamped(alpha: NDArray, c: float) -> float:
    """α, an array of shape (), clipped to [−c, c]; np.clip takes ten times as long for one number."""
    return min(max(float(alpha), -c), c)


@dataclass(frozen=True)
class Population:
    """Neurons of one layer: (n,) or (channels, rows, columns) of them.

    Parameters
    ----------
    name : str
    shape : tuple of int
    neuron : Neuron, optional
        λ and V_th of this population; by default those of the network.
    """

    name: str
    shape: Shape
    neuron: Neuron | None = None

    @property
    def size(self) -> int:
        """Number of neurons."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Connection:
    """A linear map from ``source`` (a population or ``"input"``) into ``target``.

    Parameters
    ----------
    bias, batch_norm : bool
        Whether the map's output gets a bias per channel, and is then normalised (BN).
    restriction : Restriction, optional
        (NORM) on the weight.
    dropout : float
        Probability of a zero in the mask on the map's output, in [0, 1).
    """

    name: str
    source: str
    target: str
    synapse: Synapse
    bias: bool = False
    batch_norm: bool = False
    restriction: Restriction | None = None
    dropout: float = 0.0

    @property
    def takes_operator_norm(self) -> bool:
        """Whether the restriction's norm is that of the map, not of a matrix in which its weights stand once."""
        operator = self.restriction is not None and self.restriction.norm == "operator"
        return operator and not isinstance(self.synapse, Dense)


@dataclass(frozen=True)
class Readout:
    """(READ): o = W^o a + b^o from one population, by neurons that neither spike nor reset."""

    source: str
    synapse: Dense


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows below their head, each column as wide as it must be, numbers at its right; a dash for nothing."""
    columns = []
    for head, *cells in zip(*rows, strict=True):
        width = max(map(len, [head, *cells]))
        align = ">" if head in ("neurons", "parameters", "dropout") else "<"
        columns.append([f"{cell or '-':{align}{width}}" for cell in (head, *cells)])
    return ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]


@dataclass(frozen=True)
class Network:
    """The structure of a feedback spiking network.

    Parameters
    ----------
    input_shape : tuple of int
    populations : tuple of Population
        In the order of (LAYERS): a connection from an earlier population carries this step's spikes, one
        from the same or a later population, feedback, those of the step before.
    connections : tuple of Connection
    readout : Readout
    neuron : Neuron
        λ and V_th of all populations that have no neuron of their own.

    Raises
    ------
    ValueError
        When names repeat or are unknown, or shapes do not fit; the message names the connection and both
        shapes.
    """

    input_shape: Shape
    populations: tuple[Population, ...]
    connections: tuple[Connection, ...]
    readout: Readout
    neuron: Neuron

    def __post_init__(self) -> None:
        for name, parts in (("populations", self.populations), ("connections", self.connections)):
            _checks.kind(name, parts, tuple)
        if not self.populations:
            raise ValueError("the network has no populations; expected at least one")
        _checks.kind("neuron", self.neuron, Neuron)
        _checks.kind("readout", self.readout, Readout)
        shapes = {INPUT: _checks.shape("input_shape", self.input_shape)}
        for population in self.populations:
            _checks.kind("population", population, Population)
            _checks.kind("name of a population", population.name, str)
            if population.name in shapes:
                raise ValueError(f"population name {population.name!r} is used twice; names must differ")
            shapes[population.name] = _checks.shape(f"shape of population {population.name!r}", population.shape)
            _checks.kind(f"neuron of population {population.name!r}", population.neuron, Neuron, type(None))
        names = {"readout"}
        for c in self.connections:
            _checks.kind("connection", c, Connection)
            for part, name in (("name", c.name), ("source", c.source), ("target", c.target)):
                _checks.kind(f"{part} of connection {c.name!r}", name, str)
            _checks.kind(f"synapse of connection {c.name!r}", c.synapse, Synapse)
            if c.name in names:
                raise ValueError(f"connection name {c.name!r} is used twice or reserved; names must differ")
            names.add(c.name)
            if c.target not in shapes or c.target == INPUT:
                raise ValueError(f"connection {c.name!r} ends in {c.target!r}, which is no population")
            self._check_fit(c.name, "from", c.source, c.synapse.in_shape, shapes)
            self._check_fit(c.name, "into", c.target, c.synapse.out_shape, shapes)
            if not (_checks.is_real(c.dropout) and 0.0 <= c.dropout < 1.0):
                raise ValueError(f"connection {c.name!r} has dropout {c.dropout!r}; expected a number in [0, 1)")
            if c.restriction is not None:
                _checks.kind(f"restriction of connection {c.name!r}", c.restriction, Restriction)
                if not c.synapse.weight_shape:
                    raise ValueError(
                        f"connection {c.name!r} has a restriction, but {type(c.synapse).__name__} has no weight to "
                        "restrict; leave it out"
                    )
        _checks.kind("synapse of the readout", self.readout.synapse, Dense)
        _checks.kind("source of the readout", self.readout.source, str)
        self._check_fit("readout", "from", self.readout.source, self.readout.synapse.in_shape, shapes)

    @staticmethod
    def _check_fit(name: str, way: str, end: str, shape: Shape, shapes: Mapping[str, Shape]) -> None:
        if end not in shapes:
            raise ValueError(f"connection {name!r} goes {way} {end!r}, which is no population")
        if shapes[end] != shape:
            raise ValueError(f"connection {name!r} goes {way} {end!r} with shape {shape}, but that has {shapes[end]}")

    def __str__(self) -> str:
        """What the network consists of, as tables: populations, connections with the readout, totals."""
        sizes = dict.fromkeys([*(c.name for c in self.connections), "readout"], 0)
        for name in self.trainable:
            sizes[name.rsplit(".", 1)[0]] += math.prod(self.parameter_shapes[name])
        # A column more where a population has a neuron of its own.
        width = 4 if self.own_neurons else 3
        populations = [("population", "shape", "neurons", "own neuron")[:width]]
        for p in (Population(INPUT, self.input_shape), *self.populations):
            own = p.neuron.describe() if p.neuron else ""
            populations.append((p.name, "x".join(map(str, p.shape)), f"{p.size:,}", own)[:width])
        heads = "connection, from, to, synapse, kernel, parameters, bias, batch norm, restriction, dropout"
        connections = [tuple(heads.split(", "))]
        # The readout has a bias and is no population.
        readout = Connection("readout", self.readout.source, f"{self.n_classes} logits", self.readout.synapse, True)
        for c in (*self.connections, readout):
            # What a synapse has besides its shapes: a window and how it moves.
            window = [(part.name.replace("_", " "), getattr(c.synapse, part.name)) for part in fields(c.synapse)[2:]]
            kernel = ", ".join(str(value) if name == "kernel" else f"{name} {value}" for name, value in window)
            norm = f"{c.restriction.norm} norm <= {c.restriction.c:g}" if c.restriction else ""
            row = c.name, c.source, c.target, type(c.synapse).__name__, kernel, f"{sizes[c.name]:,}", "yes" * c.bias
            connections.append((*row, "yes" * c.batch_norm, norm, f"{c.dropout:g}" if c.dropout else ""))
        counts = f"{self.n_neurons:,} neurons (input included), {self.n_parameters:,} parameters"
        totals = f"{counts}, {self.neuron.describe()}"
        return "\n".join([*_columns(populations), "", *_columns(connections), "", totals])

    # --- as plain values ----------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The graph as plain values, fit for JSON; `from_dict` is the way back.

        Raises
        ------
        ValueError
            A synapse of a class that `from_dict` does not know.
        """
        return _files.finite(
            {
                "input_shape": self.input_shape,
                # Without a neuron of its own a population is written as it always was.
                "populations": [{k: v for k, v in asdict(p).items() if v is not None} for p in self.populations],
                "connections": [{**asdict(c), "synapse": _saved(c.synapse)} for c in self.connections],
                "readout": {"source": self.readout.source, "synapse": _saved(self.readout.synapse)},
                "neuron": asdict(self.neuron),
            }
        )

    @classmethod
    def from_dict(cls, parts: Mapping[str, Any]) -> Network:
        """The graph that `to_dict` wrote.

        Raises
        ------
        KeyError, TypeError, ValueError
            The fields are not those of a graph.
        """
        connections = []
        for c in parts["connections"]:
            restriction = None if c["restriction"] is None else Restriction(**c["restriction"])
            connections.append(Connection(**{**c, "synapse": _restored(c["synapse"]), "restriction": restriction}))
        readout = parts["readout"]
        return Network(
            tuple(parts["input_shape"]),
            tuple(
                Population(p["name"], tuple(p["shape"]), Neuron(**p["neuron"]) if "neuron" in p else None)
                for p in parts["populations"]
            ),
            tuple(connections),
            Readout(readout["source"], _restored(readout["synapse"])),  # type: ignore[arg-type]  # the network checks it
            Neuron(**parts["neuron"]),
        )

    # --- sizes and places ---------------------------------------------------------------------------

    @property
    def n_classes(self) -> int:
        """Number of readout units."""
        return self.readout.synapse.n_out

    @property
    def n_neurons(self) -> int:
        """Neurons as the paper's tables count them: the input's too."""
        return math.prod(self.input_shape) + self.state_size

    @cached_property
    def n_multiplications(self) -> int:
        """Multiply-adds of one sweep of one sample with dense products."""
        return sum(c.synapse.n_multiplications for c in self.connections)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """(L + 1,) offsets of the populations in a state."""
        return np.concatenate([[0], np.cumsum([p.size for p in self.populations])]).astype(np.int64)

    @property
    def state_size(self) -> int:
        """n, the neurons of all populations."""
        return int(self.offsets[-1])

    @cached_property
    def _index(self) -> dict[str, int]:
        return {INPUT: -1, **{p.name: i for i, p in enumerate(self.populations)}}

    def index(self, population: str) -> int:
        """Place of a population in the order; -1 for the input. ValueError for an unknown name."""
        if population not in self._index:
            raise ValueError(f"population {population!r} is unknown; expected one of {', '.join(self._index)}")
        return self._index[population]

    def slice_of(self, population: str | int) -> slice:
        """Where a population lies in a state."""
        i = self.index(population) if isinstance(population, str) else population
        return slice(int(self.offsets[i]), int(self.offsets[i + 1]))

    @cached_property
    def neurons(self) -> tuple[Neuron, ...]:
        """λ and V_th of each population."""
        return tuple(p.neuron or self.neuron for p in self.populations)

    @property
    def own_neurons(self) -> dict[str, Neuron]:
        """The neurons of the populations that have their own, by name."""
        return {p.name: p.neuron for p in self.populations if p.neuron}

    @cached_property
    def stretches(self) -> tuple[tuple[Neuron, slice], ...]:
        """Neighbouring populations of equal neurons and where they lie in a state: one where all share theirs."""
        ends = [i for i in range(1, len(self.neurons)) if self.neurons[i] != self.neurons[i - 1]]
        places = itertools.pairwise([0, *ends, len(self.neurons)])
        return tuple((self.neurons[i], slice(int(self.offsets[i]), int(self.offsets[j]))) for i, j in places)

    @cached_property
    def population_thresholds(self) -> NDArray[np.float64]:
        """(L,) V_th of each population."""
        return np.array([neuron.v_th for neuron in self.neurons], np.float64)

    def thresholds(self, dtype: DTypeLike = np.float64) -> NDArray:
        """(n,) V_th of every neuron."""
        return np.repeat(self.population_thresholds.astype(dtype), np.diff(self.offsets))

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """(source, target) of each connection as places in the order; source -1 is the input."""
        return tuple((self.index(c.source), self.index(c.target)) for c in self.connections)

    def into(self, population: int) -> tuple[tuple[int, int], ...]:
        """(connection, source) of all that ends in a population, places in their orders; source -1 is the input."""
        return tuple((i, source) for i, (source, target) in enumerate(self.edges) if target == population)

    @cached_property
    def feedback_sources(self) -> tuple[int, ...]:
        """Populations that send feedback: the unknowns of (FP) and (BETA)."""
        return tuple(sorted({s for s, t in self.edges if s >= t}))

    @cached_property
    def feedback_slices(self) -> tuple[tuple[int, slice, slice], ...]:
        """(population, its place in a state, its place in a vector of the feedback sources alone)."""
        found, end = [], 0
        for source in self.feedback_sources:
            start, end = end, end + self.populations[source].size
            found.append((source, self.slice_of(source), slice(start, end)))
        return tuple(found)

    @property
    def feedback_size(self) -> int:
        """Neurons in the feedback sources."""
        return sum(self.populations[i].size for i in self.feedback_sources)

    # --- parameters ---------------------------------------------------------------------------------

    @cached_property
    def parameter_shapes(self) -> dict[str, Shape]:
        """Name and shape of every array in the parameters."""
        shapes: dict[str, Shape] = {}
        for c in self.connections:
            channels = (c.synapse.out_shape[0],)
            if c.synapse.weight_shape:
                shapes[f"{c.name}.weight"] = c.synapse.weight_shape
            if c.bias:
                shapes[f"{c.name}.bias"] = channels
            if c.batch_norm:
                for part in ("bn_weight", "bn_bias", "running_mean", "running_var"):
                    shapes[f"{c.name}.{part}"] = channels
            if c.restriction:
                # The right singular vector is kept as the next search's start.
                size = c.synapse.n_in if c.takes_operator_norm else math.prod(c.synapse.weight_shape[1:])
                shapes |= {f"{c.name}.alpha": (), f"{c.name}.singular_vector": (size,)}
        shapes["readout.weight"] = self.readout.synapse.weight_shape
        shapes["readout.bias"] = (self.n_classes,)
        return shapes

    @cached_property
    def trainable(self) -> tuple[str, ...]:
        """Names that have gradients: all but running statistics and singular vectors."""
        state = ("running_mean", "running_var", "singular_vector")
        return tuple(name for name in self.parameter_shapes if name.rsplit(".", 1)[1] not in state)

    @property
    def n_parameters(self) -> int:
        """Number of trainable scalars."""
        return sum(math.prod(self.parameter_shapes[name]) for name in self.trainable)

    def init(self, rng: np.random.Generator, *, dtype: DTypeLike = np.float64) -> Params:
        """Draw parameters.

        Weights are uniform(−1, 1) with each receiving row scaled to norm 1, biases 0, batch norm the
        identity, α = 0.9 c. The readout is uniform in ±1/√fan-in.

        Returns
        -------
        dict of str to array
            Everything the network needs, running statistics and start vectors included.
        """
        _checks.kind("rng", rng, np.random.Generator)
        dtype = _checks.float_type("dtype", dtype)
        params: Params = {}
        connections = {c.name: c for c in self.connections}
        for name, shape in self.parameter_shapes.items():
            owner, part = name.rsplit(".", 1)
            if owner == "readout":
                bound = 1.0 / math.sqrt(self.readout.synapse.n_in)
                value = rng.uniform(-bound, bound, shape)
            elif part == "weight":
                value = rng.uniform(-1.0, 1.0, shape)
                others = tuple(i for i in range(value.ndim) if i != connections[owner].synapse.out_axis)
                value /= np.sqrt(np.sum(np.square(value), axis=others, keepdims=True))
            elif part == "singular_vector":
                value = rng.standard_normal(shape)
            elif part == "alpha":
                value = np.array(0.9 * connections[owner].restriction.c)  # type: ignore[union-attr]  # or no α
            else:
                value = np.full(shape, 1.0 if part in ("bn_weight", "running_var") else 0.0)
            params[name] = value.astype(dtype)
        return params

    def check_params(self, params: Mapping[str, NDArray]) -> None:
        """Raise ValueError, naming the array, where ``params`` does not belong to this network."""
        _checks.kind("params", params, Mapping)
        missing = [name for name in self.parameter_shapes if name not in params]
        unknown = [name for name in params if name not in self.parameter_shapes]
        if missing or unknown:
            raise ValueError(
                f"parameters do not fit the network: missing {', '.join(missing) or 'none'}; "
                f"unknown {', '.join(unknown) or 'none'}"
            )
        dtypes = set()
        for name, shape in self.parameter_shapes.items():
            array = params[name]
            if not isinstance(array, (np.ndarray, np.generic)):
                raise ValueError(f"parameter {name!r} is of type {type(array).__name__}; the network expects an array")
            if array.shape != shape:
                raise ValueError(f"parameter {name!r} has shape {array.shape}; the network expects {shape}")
            if array.dtype.kind not in "fiu":
                raise ValueError(f"parameter {name!r} has dtype {array.dtype}; expected float32 or float64")
            dtypes.add(array.dtype.newbyteorder("="))
            part = name.rsplit(".", 1)[1]
            if part == "running_var" and np.any(array < 0):
                raise ValueError(f"parameter {name!r} has negative values; expected variances")
            if part == "singular_vector" and not np.any(array):
                raise ValueError(f"parameter {name!r} is zero; expected a vector to start a search from")
            if not finite(array):
                raise ValueError(f"parameter {name!r} has values that are NaN or infinite")
        if dtypes not in ({np.dtype(np.float32)}, {np.dtype(np.float64)}):
            names = ", ".join(sorted(str(d) for d in dtypes))
            raise ValueError(f"parameters have dtypes {names}; expected all float32 or all float64")

    def project(self, params: Params) -> Params:
        """Parameters with every α clipped to [−c, c], to follow each step of the optimiser."""
        projected = dict(params)
        for c in self.connections:
            if c.restriction:
                alpha = params[f"{c.name}.alpha"]
                projected[f"{c.name}.alpha"] = np.asarray(clamped(alpha, c.restriction.c), alpha.dtype)
        return projected

    # --- input --------------------------------------------------------------------------------------

    def is_spike_input(self, x: NDArray) -> bool:
        """Whether x is a spike train (B, T, *input_shape) rather than a static input (B, *input_shape)."""
        return x.ndim == len(self.input_shape) + 2

    def check_input(self, x: NDArray, dtype: DTypeLike) -> NDArray:
        """x as an array of the computation's dtype.

        Raises
        ------
        ValueError
            For a wrong shape, no samples or no steps, or values that are not real, NaN or infinite.
        """
        x = np.asarray(x)
        if x.dtype.kind not in "fiub":
            raise ValueError(f"x has dtype {x.dtype}; expected real numbers")
        if self.input_shape not in (x.shape[1:], x.shape[2:]) or 0 in x.shape:
            raise ValueError(
                f"x has shape {x.shape}; expected (batch, *{self.input_shape}) for static input or "
                f"(batch, steps, *{self.input_shape}) for a spike train, of at least one sample and step"
            )
        if not finite(x):
            raise ValueError("x has values that are NaN or infinite; expected finite inputs")
        return _checks.converted("x", x, dtype)

    @cached_property
    def input_neuron(self) -> Neuron:
        """The neuron by whose λ a spike train is averaged: that of the first population that reads the input."""
        return self.neurons[min((target for source, target in self.edges if source < 0), default=0)]

    def mean_input(self, x: NDArray) -> NDArray:
        """x̄ of (RATE): x itself if static, its weighted average if a spike train. (B, *input_shape).

        ValueError for a spike train into populations of different leak: (FP) has one x*, and there would be several x̄.
        """
        if not self.is_spike_input(x):
            return x
        leaks = {
            self.populations[target].name: self.neurons[target].leak for source, target in self.edges if source < 0
        }
        if len(set(leaks.values())) > 1:
            told = ", ".join(f"{name!r} {leak:g}" for name, leak in leaks.items())
            raise ValueError(
                f"x is a spike train into populations of different leak ({told}); expected one leak of all that read "
                "it, by which it is averaged, or a static input"
            )
        return self.input_neuron.time_average(x)

    # --- what :mod:`ide_ref.authors` replaces -------------------------------------------------------

    def leading_pair(self, c: Connection, weight: NDArray, start: NDArray, tol: float) -> SingularPair:
        """Leading singular pair of W̄ in the norm of a connection's restriction; warns where the search stopped short.

        ``weight`` is in its own shape, ``start`` in the shape of the map's input.

        Raises
        ------
        ValueError
            The norm is not positive and finite.
        """
        pair = constraints.leading_singular_pair(*restricted_map(c, weight), start, tol=tol)
        check_norm(c, pair, weight.dtype)
        if pair.residual > tol:
            _checks.warn(
                f"norm of connection {c.name!r}: the search for the leading singular pair stopped at a relative "
                f"residual of {pair.residual:.1e}, tolerance {tol:.0e}; the norm may be off by as much, its gradient "
                "by more",
            )
        return pair

    def edited(self, frozen: Frozen, x: NDArray | None) -> Frozen:
        """The maps that :func:`ide_ref.maps.freeze` made, beside x, (B, *input_shape) or None: as they are."""
        return frozen


_SYNAPSES: dict[str, type[Synapse]] = {kind.__name__: kind for kind in (Dense, Conv2d, ConvTranspose2d, AvgPool2d)}


def _saved(synapse: Synapse) -> dict[str, Any]:
    """Class and fields of a synapse."""
    name = type(synapse).__name__
    if _SYNAPSES.get(name) is not type(synapse):
        raise ValueError(f"a synapse is of class {name}, which cannot be saved; expected one of {', '.join(_SYNAPSES)}")
    return {"class": name, **asdict(synapse)}


def _restored(saved: Mapping[str, Any]) -> Synapse:
    """The synapse that `_saved` wrote."""
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
    name = fields.pop("class")
    if not _checks.is_one_of(name, _SYNAPSES):
        raise ValueError(f"class of a synapse is {name!r}; expected one of {', '.join(_SYNAPSES)}")
    return _SYNAPSES[name](**fields)


def restricted_map(c: Connection, weight: NDArray) -> tuple[Callable[[NDArray], NDArray], Callable[[NDArray], NDArray]]:
    """W̄, in the weight's shape, as the map whose norm the restriction takes, and its transpose."""
    if not c.takes_operator_norm:
        return both_ways(np.ascontiguousarray(c.synapse.kernel_matrix(weight)))
    taps = c.synapse.to_taps(weight)
    return lambda v: c.synapse.apply(taps, v[None])[0], lambda v: c.synapse.adjoint(taps, v[None])[0]


def check_norm(c: Connection, pair: SingularPair, dtype: np.dtype) -> None:
    """ValueError where ‖W̄‖ is not positive and finite."""
    if not 0 < pair.value < np.inf:
        raise ValueError(
            f"weight of connection {c.name!r} has norm {pair.value:g} in {dtype}; (NORM) needs one that is "
            "positive and finite"
        )


def of_population(network: Network, state: NDArray, population: str) -> NDArray:
    """One population's part of states (..., n), as (..., *shape): (B, *shape) of a state, (B, T, *shape) of a run.

    ValueError for an unknown population, the input, or a state that is not of the network.
    """
    _checks.kind("population", population, str)
    columns = network.slice_of(population)
    if population == INPUT:
        raise ValueError(f"population is {INPUT!r}; expected one of {', '.join(p.name for p in network.populations)}")
    if state.shape[-1:] != (network.state_size,):
        raise ValueError(f"state has shape {state.shape}; expected (..., {network.state_size})")
    return from_channels_last(state[..., columns], network.populations[network.index(population)].shape)
