"""A network is a graph: populations in order, and connections between any two of them.

``Network`` says what is connected to what and holds no arrays. ``init`` draws parameters, a flat dict;
``freeze`` folds restriction, batch normalisation and dropout, after which every connection is a plain affine
map. All states are (B, n) arrays in cell order, the populations side by side.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ide_ref import _checks, constraints
from ide_ref._kernels import cells as _cells
from ide_ref._kernels import memory
from ide_ref.constraints import BatchNorm, Restriction, SingularPair
from ide_ref.neurons import Neuron
from ide_ref.norms import Norm, operator_norm
from ide_ref.profiles import PAPER, Profile
from ide_ref.synapses import Dense, Shape, Synapse, added, both_ways, from_cells, to_cells

INPUT = "input"
"""Name of the input as the source of a connection."""

DROWNED = 0.01
"""Error of normalised values, from the rounding of what is normalised, from which on a warning tells of it."""

Params = dict[str, NDArray]


def _finite(array: NDArray) -> bool:
    """Whether no value is NaN or infinite."""
    if array.flags.c_contiguous and array.dtype in (np.float32, np.float64):
        return bool(_cells.all_finite(array.reshape(-1)))
    return bool(np.all(np.isfinite(array)))


def _clamped(alpha: NDArray, c: float) -> float:
    """α clipped to [−c, c]; np.clip takes ten times as long for one number."""
    return min(max(float(alpha), -c), c)


@dataclass(frozen=True)
class Population:
    """Neurons of one layer: (n,) or (channels, rows, columns) of them."""

    name: str
    shape: Shape

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
        Whether the map's output gets a bias a channel, and is then normalised (BN).
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


@dataclass(frozen=True)
class Readout:
    """(READ): o = W^o a + b^o from one population, by neurons that neither spike nor reset."""

    source: str
    synapse: Dense


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
        λ and V_th of all populations.

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
        for c in self.connections:
            _checks.kind("connection", c, Connection)
            for part, name in (("name", c.name), ("source", c.source), ("target", c.target)):
                _checks.kind(f"{part} of connection {c.name!r}", name, str)
            _checks.kind(f"synapse of connection {c.name!r}", c.synapse, Synapse)
        names = [c.name for c in self.connections]
        for name in names:
            if names.count(name) > 1 or name == "readout":
                raise ValueError(f"connection name {name!r} is used twice or reserved; names must differ")
        for c in self.connections:
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
    def starts(self) -> NDArray[np.int64]:
        """(L + 1,) offsets of the populations in a state."""
        return np.concatenate([[0], np.cumsum([p.size for p in self.populations])]).astype(np.int64)

    @property
    def state_size(self) -> int:
        """n, the neurons of all populations."""
        return int(self.starts[-1])

    @cached_property
    def _index(self) -> dict[str, int]:
        return {INPUT: -1, **{p.name: i for i, p in enumerate(self.populations)}}

    def index(self, population: str) -> int:
        """Place of a population in the order; -1 for the input."""
        if population not in self._index:
            raise ValueError(f"population {population!r} is unknown; expected one of {', '.join(self._index)}")
        return self._index[population]

    def place(self, population: str | int) -> slice:
        """Where a population lies in a state."""
        i = self.index(population) if isinstance(population, str) else population
        return slice(int(self.starts[i]), int(self.starts[i + 1]))

    @cached_property
    def ends(self) -> tuple[tuple[int, int], ...]:
        """(source, target) of each connection as places in the order; source -1 is the input."""
        return tuple((self.index(c.source), self.index(c.target)) for c in self.connections)

    @cached_property
    def feedback_sources(self) -> tuple[int, ...]:
        """Populations that send feedback: the unknowns of (FP) and (BETA)."""
        return tuple(sorted({s for s, t in self.ends if s >= t}))

    @cached_property
    def feedback_places(self) -> tuple[tuple[int, slice, slice], ...]:
        """(population, its place in a state, its place in a vector of the feedback sources alone)."""
        result = []
        offset = 0
        for source in self.feedback_sources:
            place = self.place(source)
            result.append((source, place, slice(offset, offset + place.stop - place.start)))
            offset += place.stop - place.start
        return tuple(result)

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
                shapes[f"{c.name}.alpha"] = ()
                shapes[f"{c.name}.singular_vector"] = (self._singular_size(c),)
        shapes["readout.weight"] = self.readout.synapse.weight_shape
        shapes["readout.bias"] = (self.n_classes,)
        return shapes

    @staticmethod
    def _singular_size(c: Connection) -> int:
        """Length of the right singular vector kept as the next search's start."""
        if c.restriction is not None and c.restriction.norm == "operator":
            return c.synapse.n_in
        return math.prod(c.synapse.weight_shape[1:])

    @cached_property
    def trainable(self) -> tuple[str, ...]:
        """Names that have gradients: all but running statistics and singular vectors."""
        state = ("running_mean", "running_var", "singular_vector")
        return tuple(name for name in self.parameter_shapes if name.rsplit(".", 1)[1] not in state)

    @property
    def n_parameters(self) -> int:
        """Number of trainable scalars."""
        return sum(math.prod(self.parameter_shapes[name]) for name in self.trainable)

    def init(self, rng: np.random.Generator, *, dtype: DTypeLike = np.float64, profile: Profile = PAPER) -> Params:
        """Draw parameters.

        Weights are uniform(−1, 1) with each receiving row scaled to norm 1, biases 0, batch norm the
        identity, α = 0.9 c. The readout is uniform in ±1/√fan-in.

        Returns
        -------
        dict of str to array
            Everything the network needs, running statistics and start vectors included.
        """
        _checks.kind("rng", rng, np.random.Generator)
        _checks.kind("profile", profile, Profile)
        dtype = _checks.float_type("dtype", dtype)
        params: Params = {}
        for name, shape in self.parameter_shapes.items():
            owner, part = name.rsplit(".", 1)
            if owner == "readout":
                bound = 1.0 / math.sqrt(self.readout.synapse.n_in)
                value = rng.uniform(-bound, bound, shape)
            elif part == "weight":
                synapse = next(c.synapse for c in self.connections if c.name == owner)
                value = rng.uniform(-1.0, 1.0, shape)
                others = tuple(i for i in range(value.ndim) if i != synapse.out_axis)
                value /= np.sqrt(np.sum(np.square(value), axis=others, keepdims=True))
            elif part == "singular_vector":
                value = rng.standard_normal(shape)
            elif part == "alpha":
                restriction = next(c.restriction for c in self.connections if c.name == owner)
                value = np.asarray(0.9 * restriction.c if restriction else 1.0)
            else:
                value = np.full(shape, 1.0 if part in ("bn_weight", "running_var") else 0.0)
            params[name] = np.asarray(value, dtype=dtype)
        if profile.clamp_alpha:
            for c in self.connections:
                if c.restriction:
                    raw, start = params[f"{c.name}.weight"], params[f"{c.name}.singular_vector"]
                    norm = _singular_pair(c, raw, start, constraints.singular_tolerance(dtype)).value
                    params[f"{c.name}.alpha"] = np.asarray(norm, dtype=dtype)
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
            if not _finite(array):
                raise ValueError(f"parameter {name!r} has values that are NaN or infinite")
        if len(dtypes) != 1 or not dtypes <= {np.dtype(np.float32), np.dtype(np.float64)}:
            names = ", ".join(sorted(str(d) for d in dtypes))
            raise ValueError(f"parameters have dtypes {names}; expected all float32 or all float64")

    def project(self, params: Params, *, profile: Profile = PAPER) -> Params:
        """Parameters with every α clipped to [−c, c], to follow each step of the optimiser."""
        if profile.clamp_alpha:
            return params
        clipped = {
            f"{c.name}.alpha": np.asarray(
                _clamped(params[f"{c.name}.alpha"], c.restriction.c), params[f"{c.name}.alpha"].dtype
            )
            for c in self.connections
            if c.restriction
        }
        return {**params, **clipped}

    # --- input --------------------------------------------------------------------------------------

    def is_train(self, x: NDArray) -> bool:
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
        ok = x.shape[1:] == self.input_shape or (self.is_train(x) and x.shape[2:] == self.input_shape)
        if not ok or 0 in x.shape:
            raise ValueError(
                f"x has shape {x.shape}; expected (batch, *{self.input_shape}) for static input or "
                f"(batch, steps, *{self.input_shape}) for a spike train, of at least one sample and step"
            )
        if np.issubdtype(x.dtype, np.floating) and not _finite(x):
            raise ValueError("x has values that are NaN or infinite; expected finite inputs")
        return _checks.converted("x", x, dtype)

    def mean_input(self, x: NDArray, *, profile: Profile = PAPER) -> NDArray:
        """x̄ of (RATE): x itself if static, its weighted average if a spike train. (B, *input_shape)."""
        if not self.is_train(x):
            return x
        mean = self.neuron.time_average(x)
        if profile.long_average:
            n_steps = x.shape[1]
            mean *= (
                self.neuron.total_weight(2 * n_steps) / self.neuron.total_weight(n_steps + 1)
                if (self.neuron.leak < 1.0)
                else 1.0
            )
        return mean


class Seen(NamedTuple):
    """What a batch normalisation sees: z = W s + b, cells (B, n), and its moments a channel, (C,) each."""

    z: NDArray
    mean: NDArray
    variance: NDArray

    @classmethod
    def of(cls, c: Connection, z: NDArray) -> Seen:
        """z of a connection with its moments.

        ValueError where these are beyond the dtype; warns where rounding of z drowns what tells its samples apart.
        """
        mean, variance = constraints.batch_statistics(z, c.synapse.out_shape[0])
        if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
            raise ValueError(
                f"batch normalisation of connection {c.name!r}: the batch's mean or variance is beyond {z.dtype}; "
                "expected smaller weights or inputs (normalise these, or compute in float64)"
            )
        rounding = np.finfo(z.dtype).eps * np.abs(mean) / np.sqrt(variance + variance.dtype.type(constraints.EPSILON))
        if rounding.max(initial=0.0) > DROWNED:
            warnings.warn(
                f"batch normalisation of connection {c.name!r}: the batch's mean is so far from 0 beside its deviation "
                f"that rounding in {z.dtype} moves normalised values by {rounding.max():.1g}; take the mean off the "
                "inputs, or compute in float64",
                RuntimeWarning,
                stacklevel=3,
            )
        return cls(z, mean, variance)


@dataclass(frozen=True)
class FrozenConnection:
    """One connection with everything folded: s ↦ keep ⊙ (scale ⊙ W s + shift).

    Attributes
    ----------
    taps : (K, C_in, C_out) array
        W after the restriction.
    bias : (C,) array or None
        Added to W s before normalisation.
    norm : BatchNorm or None
    keep : (B, n_to) array or None
        Dropout mask of this batch.
    singular : SingularPair or None
        Leading singular pair of W̄ under a restriction.
    z : (B, n_to) array or None
        W x̄ + b of the batch whose statistics are in ``norm``.
    couples : bool
        Whether rates sent through this connection are normalised with their own batch's statistics,
        ``Profile.batch_statistics_in_beta``.
    through : bool
        Whether the parameters' gradient passes through the statistics of their own batch's rates,
        ``Profile.batch_statistics_in_gradient``.
    simulated_norm : BatchNorm or None
        Used in place of ``norm`` by the rollout, ``Profile.unbiased_spike_statistics``.
    updates : int
        How often a batch enters the running statistics, 2 under ``Profile.statistics_twice``.
    """

    connection: Connection
    taps: NDArray
    bias: NDArray | None = None
    norm: BatchNorm | None = None
    keep: NDArray | None = None
    singular: SingularPair | None = None
    z: NDArray | None = None
    couples: bool = False
    through: bool = False
    simulated_norm: BatchNorm | None = None
    updates: int = 1

    @property
    def synapse(self) -> Synapse:
        """The linear map's structure."""
        return self.connection.synapse

    @property
    def simulated(self) -> FrozenConnection:
        """The connection as the rollout uses it."""
        return self if self.simulated_norm is None else replace(self, norm=self.simulated_norm)

    @cached_property
    def shift(self) -> NDArray | None:
        """(C,) constant part of the output, None for none."""
        if self.norm is None:
            return self.bias
        return self.norm.shift if self.bias is None else self.norm.shift + self.norm.scale * self.bias

    def raw(self, cells: NDArray) -> NDArray:
        """z = W s + b before normalisation."""
        z = self.synapse.apply(self.taps, cells)
        if self.bias is not None:
            by_channel = z.reshape(len(z), -1, self.synapse.out_shape[0])
            by_channel += self.bias
        return z

    def normalise(self, z: NDArray, out: NDArray | None = None) -> NDArray:
        """Output of the connection from its z: keep ⊙ BN(z); added to ``out``, (B, n_to), where it is given."""
        if self.norm is not None:
            return constraints.affine(z, self.norm.scale, self.norm.shift, self.keep, out)
        if self.keep is None:
            return added(z, out)
        n_channels = self.synapse.out_shape[0]
        return constraints.affine(z, np.ones(n_channels, z.dtype), np.zeros(n_channels, z.dtype), self.keep, out)

    @property
    def joins_samples(self) -> bool:
        """Whether the derivative passes through the batch's own statistics, so that a sample's has a part in others."""
        return self.norm is not None and self.norm.from_batch and self.z is not None

    def linear(self, cells: NDArray) -> NDArray:
        """The linear part of the output, without any constant: keep ⊙ scale ⊙ W s."""
        if self.norm is None or not self.joins_samples:
            out = self.synapse.apply(self.folded_taps, cells)
        else:
            out = self.norm.linear(self.synapse.apply(self.taps, cells), self.z)
        return out if self.keep is None else constraints.product(self.keep, out)

    def adjoint(self, cells: NDArray, out: NDArray | None = None, chosen: NDArray | None = None) -> NDArray:
        """Transpose of ``linear``; added to ``out``, for chosen samples, as by :meth:`Synapse.adjoint`."""
        if self.keep is not None:
            cells = constraints.product(self.keep, cells, chosen=chosen)
        if self.norm is None or not self.joins_samples:
            return self.synapse.adjoint(self.folded_taps, cells, out, chosen)
        return self.synapse.adjoint(self.taps, self.norm.linear(cells, self.z), out, chosen)

    def at(self, pre: NDArray, out: NDArray, *, measure: bool = False) -> tuple[FrozenConnection, Seen | None]:
        """Add the output for given rates to ``out``, (B, n_to).

        Returns
        -------
        connection : FrozenConnection
            As it is linearised there: itself, unless it couples the samples of a batch.
        seen : Seen or None
            What a batch normalisation sees there, where that is asked for and it is normalised by other moments.
        """
        z = self.raw(pre)
        here, seen = self, None
        if self.norm is not None and (self.couples or measure):
            seen = Seen.of(self.connection, z)
            if self.couples:
                norm = replace(self.norm, mean=seen.mean, variance=seen.variance, from_batch=True)
                here, seen = replace(self, norm=norm, z=z), None
        here.normalise(z, out)
        return here, seen

    def add_constant(self, out: NDArray) -> None:
        """Add what arrives without any spike, keep ⊙ shift, to ``out``, (B, n_to)."""
        if self.shift is None:
            return
        if self.keep is None:
            out += self.synapse.out_channels(self.shift)
        else:
            # Of no spike, 0 times what is there.
            constraints.affine(out, np.zeros_like(self.shift), self.shift, self.keep, out)

    @cached_property
    def folded_taps(self) -> NDArray:
        """scale ⊙ W as taps: what one spike adds."""
        if self.norm is None:
            return self.taps
        # A dense connection's taps count the cells of all positions as channels.
        scale = self.norm.scale
        return self.taps * np.tile(scale, self.taps.shape[-1] // scale.size)

    @cached_property
    def norm_bound(self) -> Norm:
        """‖scale ⊙ W‖₂ at this input size times the largest factor of the mask, as a value and from above.

        A batch's own statistics are taken as fixed: with them the connection is linear, a sample at a time.
        """
        return self._norm(bound=True)

    @cached_property
    def operator_norm(self) -> float:
        """The value of ``norm_bound``, without the time that a bound takes for a large convolution."""
        return self._norm(bound=False).value

    def _norm(self, *, bound: bool) -> Norm:
        scale = None if self.norm is None else self.norm.scale
        found = operator_norm(self.synapse, self.taps, scale, bound=bound)
        return found if self.keep is None else found.times(float(self.keep.max(initial=0.0)))

    def pull_back(
        self, delta: NDArray, pre: NDArray, params: Params, seen: Seen | None = None
    ) -> tuple[Params, Params]:
        """Gradients of this connection's parameters, and its running statistics after these rates.

        Parameters
        ----------
        delta : (B, n_to) array
            ∂L/∂(output), (1/V_th) M β of the receiving population.
        pre : (B, n_from) array
            Rates (or input) of the sending population.
        params : dict
            The parameters that were frozen.
        seen : Seen, optional
            What :meth:`at` saw at those rates; computed where it is missing.
        """
        c = self.connection
        grads: Params = {}
        statistics: Params = {}
        if self.keep is not None:
            delta = constraints.product(self.keep, delta)
        if self.norm is not None:
            norm = self.norm
            if norm.from_batch:
                seen = Seen(self.z if self.z is not None else self.raw(pre), norm.mean, norm.variance)
            elif seen is None:
                seen = Seen.of(c, self.raw(pre))
            if self.through:
                norm = replace(norm, mean=seen.mean, variance=seen.variance, from_batch=True)
            delta, grads[f"{c.name}.bn_weight"], grads[f"{c.name}.bn_bias"] = norm.pull_back(delta, seen.z)
            for part, value in (("running_mean", seen.mean), ("running_var", seen.variance)):
                running = params[f"{c.name}.{part}"]
                for _ in range(self.updates):
                    running = constraints.running_update(running, value)
                statistics[f"{c.name}.{part}"] = running
        if c.bias:
            sums = constraints.channel_sums(delta, c.synapse.out_shape[0])
            grads[f"{c.name}.bias"] = sums.astype(delta.dtype)
        if c.synapse.weight_shape:
            d_weight = self.synapse.from_taps(self.synapse.hebbian(delta, pre))
            if self.singular is not None and c.restriction is not None:
                alpha = _clamped(params[f"{c.name}.alpha"], c.restriction.c)
                d_weight, d_alpha = constraints.restrict_pull_back(
                    d_weight, params[f"{c.name}.weight"], alpha, self.singular.value, _norm_gradient(c, self.singular)
                )
                # Beyond the clamp the derivative is 0; inside, α and its clipped value are the same.
                inside = alpha == float(params[f"{c.name}.alpha"])
                grads[f"{c.name}.alpha"] = d_alpha if inside else np.zeros_like(d_alpha)
            grads[f"{c.name}.weight"] = d_weight
        return grads, statistics

    def effective_weight(self) -> NDArray:
        """W after the restriction, in the weight's own layout."""
        return self.synapse.from_taps(self.taps)


def _singular_pair(c: Connection, raw: NDArray, start: NDArray, tol: float, one_step: bool = False) -> SingularPair:
    """Leading singular pair of W̄ in the restriction's norm.

    Raises ValueError where that is not positive and finite; warns where it was not found to ``tol``.
    """
    apply: Callable[[NDArray], NDArray]
    adjoint: Callable[[NDArray], NDArray]
    if c.restriction is not None and c.restriction.norm == "operator" and not isinstance(c.synapse, Dense):
        taps = c.synapse.to_taps(raw)
        apply = lambda v: c.synapse.apply(taps, v[None])[0]  # noqa: E731
        adjoint = lambda v: c.synapse.adjoint(taps, v[None])[0]  # noqa: E731
    else:
        apply, adjoint = both_ways(np.ascontiguousarray(c.synapse.kernel_matrix(raw)))
    if one_step:
        pair = constraints.power_step(apply, adjoint, start)
    else:
        pair = constraints.leading_singular_pair(apply, adjoint, start, tol=tol)
    if not 0 < pair.value < np.inf:
        raise ValueError(
            f"weight of connection {c.name!r} has norm {pair.value:g} in {raw.dtype}; (NORM) needs one that is "
            "positive and finite"
        )
    if not one_step and pair.residual > tol:
        warnings.warn(
            f"norm of connection {c.name!r}: the search for the leading singular pair stopped at a relative residual "
            f"of {pair.residual:.1e}, tolerance {tol:.0e}; the norm may be off by as much, its gradient by more",
            RuntimeWarning,
            stacklevel=3,
        )
    return pair


def _norm_gradient(c: Connection, pair: SingularPair) -> tuple[NDArray, NDArray]:
    """∂‖W̄‖/∂W̄ as ``constraints.restrict_pull_back`` takes it."""
    if c.restriction is not None and c.restriction.norm == "operator" and not isinstance(c.synapse, Dense):
        whole = c.synapse.from_taps(c.synapse.hebbian(pair.left[None], pair.right[None]))
        return whole.reshape(-1), np.ones(1, whole.dtype)
    return pair.left, pair.right


class HasRates(Protocol):
    """Anything with rates of all populations: a rollout's or an equilibrium's."""

    @property
    def a(self) -> NDArray:
        """(B, n) rates in cell order."""


@dataclass(frozen=True)
class Frozen:
    """A network with fixed affine maps, for one batch (training) or for any (evaluation).

    Attributes
    ----------
    network : Network
    params : dict
        What was frozen.
    connections : tuple of FrozenConnection
        In the network's order.
    readout : (K, n, n_classes) array
        Taps of the readout.
    batch_size : int or None
        The batch it belongs to; None for any.
    statistics : dict
        Singular vectors for the next search to start from.
    profile : Profile
    batch : (B, *input_shape) array or None
        x̄ of the batch it was frozen on.
    """

    network: Network
    params: Params
    connections: tuple[FrozenConnection, ...]
    readout: NDArray
    batch_size: int | None
    statistics: Params
    profile: Profile = PAPER
    batch: NDArray | None = None

    @property
    def dtype(self) -> np.dtype:
        """dtype of the computation."""
        return self.readout.dtype

    def check_input(self, x: NDArray) -> NDArray:
        """x as an array of this dtype; ValueError for a wrong shape, batch or value."""
        x = self.network.check_input(x, self.dtype)
        if self.batch_size is not None and x.shape[0] != self.batch_size:
            raise ValueError(f"x has {x.shape[0]} samples; the network was frozen on a batch of {self.batch_size}")
        return x

    def check_state(self, name: str, state: NDArray, n_batch: int | None = None) -> NDArray:
        """A state (B, n) as an array of this dtype; ValueError, by name, for another shape, kind or value."""
        array = np.asarray(state)
        size = self.network.state_size
        if array.ndim != 2 or array.shape != (len(array) if n_batch is None else n_batch, size):
            raise ValueError(f"{name} has shape {array.shape}; expected ({n_batch or 'batch'}, {size}), a state")
        if array.dtype.kind not in "fiub":
            raise ValueError(f"{name} has dtype {array.dtype}; expected real numbers")
        if not _finite(array):
            raise ValueError(f"{name} has values that are NaN or infinite; expected finite ones")
        return _checks.converted(name, array, self.dtype)

    def mean_input(self, x: NDArray) -> NDArray:
        """x̄ of (RATE), (B, *input_shape)."""
        return self.network.mean_input(x, profile=self.profile)

    def drive(self, x_mean: NDArray, out: NDArray | None = None) -> NDArray:
        """F x̄ + b of the input connections: (B, *input_shape) to (B, n); added to ``out`` where it is given."""
        net = self.network
        cells = to_cells(x_mean, net.input_shape)
        out = memory.zeros((x_mean.shape[0], net.state_size), self.dtype) if out is None else out
        # The batch's own z was computed when its statistics were taken.
        known = self.batch is not None and (x_mean is self.batch or np.array_equal(x_mean, self.batch))
        for c, (source, target) in zip(self.connections, net.ends, strict=True):
            if source < 0:
                c.normalise(c.z if known and c.z is not None else c.raw(cells), out[:, net.place(target)])
        return out

    def constants(self, n_batch: int, *, with_input: bool) -> NDArray:
        """What the rollout's connections bring without any spike, (B, n); the input's on request."""
        net = self.network
        out = memory.zeros((n_batch, net.state_size), self.dtype)
        for c, (source, target) in zip(self.connections, net.ends, strict=True):
            if source >= 0 or with_input:
                c.simulated.add_constant(out[:, net.place(target)])
        return out

    def read_out(self, state: HasRates) -> NDArray:
        """o = W^o a + b^o, (READ): (B, n_classes)."""
        net = self.network
        a = self.check_state("state.a", state.a)[:, net.place(net.readout.source)]
        return net.readout.synapse.apply(self.readout, a) + self.params["readout.bias"]

    def read_out_pull_back(self, state: HasRates, d_logits: NDArray) -> tuple[NDArray, Params]:
        """g = ∂L/∂a, (B, n), and the readout's gradients, from ∂L/∂o (B, n_classes)."""
        net = self.network
        place = net.place(net.readout.source)
        synapse = net.readout.synapse
        g = memory.zeros(state.a.shape, state.a.dtype)
        g[:, place] = synapse.adjoint(self.readout, d_logits)
        grads = {
            "readout.weight": synapse.from_taps(synapse.hebbian(d_logits, state.a[:, place])),
            "readout.bias": constraints.channel_sums(d_logits, net.n_classes).astype(self.dtype),
        }
        return g, grads


def read_out(frozen: Frozen, state: HasRates) -> NDArray:
    """Logits of a rollout or an equilibrium, (READ): (B, n_classes)."""
    _checks.kind("frozen", frozen, Frozen)
    if not hasattr(state, "a"):
        raise ValueError(f"state is of type {type(state).__name__}; expected Rates or Equilibrium")
    return frozen.read_out(state)


def freeze(
    network: Network,
    params: Params,
    x: NDArray | None = None,
    *,
    training: bool = False,
    rng: np.random.Generator | None = None,
    profile: Profile = PAPER,
) -> Frozen:
    """Fold restriction, batch normalisation and dropout into plain affine maps.

    Parameters
    ----------
    network : Network
    params : dict
        As ``network.init`` returns them; not changed.
    x : (B, *input_shape) or (B, T, *input_shape) array
        The batch; needed for training alone.
    training : bool
        Batch statistics for the input connections and one dropout mask for the batch; otherwise running
        statistics and no dropout.
    rng : numpy Generator
        Draws the masks; needed where a connection has dropout.

    profile : Profile
        Differences of the authors' program to reproduce; none by default.

    Returns
    -------
    Frozen

    Raises
    ------
    ValueError
        For parameters or inputs that do not fit, or whose batch statistics are beyond the dtype.
    """
    _checks.kind("network", network, Network)
    _checks.kind("profile", profile, Profile)
    if rng is not None:
        _checks.kind("rng", rng, np.random.Generator)
    network.check_params(params)
    dtype = params["readout.weight"].dtype.newbyteorder("=")
    params = {name: _checks.converted(name, params[name], dtype) for name in params}
    cells = None
    n_batch = None
    x_mean = None
    if training:
        if x is None:
            raise ValueError("x is missing; freezing for training takes the batch's own statistics from it")
        x = network.check_input(x, dtype)
        n_batch = x.shape[0]
        x_mean = network.mean_input(x, profile=profile)
        cells = to_cells(x_mean, network.input_shape)
    statistics: Params = {}
    frozen = []
    for c in network.connections:
        singular = None
        weight = params.get(f"{c.name}.weight", np.empty((), dtype))
        if c.restriction:
            start = params[f"{c.name}.singular_vector"]
            tol = constraints.singular_tolerance(dtype, training=training)
            singular = _singular_pair(c, weight, start, tol, profile.one_power_step)
            statistics[f"{c.name}.singular_vector"] = singular.right
            # α is inside its bounds already, by ``project``, but in the profile that clamps instead.
            alpha = _clamped(params[f"{c.name}.alpha"], c.restriction.c)
            weight = weight * dtype.type(alpha / singular.value)
        keep = None
        if training and c.dropout > 0:
            if rng is None:
                raise ValueError(f"rng is missing; connection {c.name!r} has dropout and needs a generator")
            keep = constraints.dropout_mask((x.shape[0], c.synapse.n_out), c.dropout, rng, dtype)  # type: ignore[union-attr]
        made = FrozenConnection(c, c.synapse.to_taps(weight), params.get(f"{c.name}.bias"), None, keep, singular)
        if c.batch_norm:
            weight, bias, mean, variance = (
                params[f"{c.name}.{part}"] for part in ("bn_weight", "bn_bias", "running_mean", "running_var")
            )
            norm = BatchNorm(weight, bias, mean, variance, from_batch=False)
            made = replace(made, norm=norm)
            if training and c.source != INPUT:
                made = replace(
                    made,
                    couples=profile.batch_statistics_in_beta,
                    through=profile.batch_statistics_in_gradient,
                )
            elif cells is not None:
                z, mean, variance = Seen.of(c, made.raw(cells))
                norm = replace(norm, mean=mean, variance=variance, from_batch=True)
                twice = profile.statistics_twice and x is not None and not network.is_train(x)
                made = replace(made, norm=norm, z=z, updates=2 if twice else 1)
                if profile.unbiased_spike_statistics and x is not None and network.is_train(x):
                    n = z.size // mean.size
                    if n < 2:
                        raise ValueError("x has 1 sample; the profile's unbiased variance takes 2 values a channel")
                    unbiased = replace(norm, variance=variance * dtype.type(n / (n - 1)), epsilon=1e-8)
                    made = replace(made, simulated_norm=unbiased)
        frozen.append(made)
    readout = network.readout.synapse.to_taps(params["readout.weight"])
    return Frozen(network, params, tuple(frozen), readout, n_batch, statistics, profile, x_mean)


def of_population(network: Network, state: NDArray, population: str) -> NDArray:
    """One population's part of a state (B, n), as (B, *shape)."""
    _checks.kind("population", population, str)
    place = network.place(population)
    if population == INPUT:
        raise ValueError(f"population is {INPUT!r}; expected one of {', '.join(p.name for p in network.populations)}")
    return from_cells(state[:, place], network.populations[network.index(population)].shape)
