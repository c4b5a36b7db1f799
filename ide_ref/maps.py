"""Every connection as an affine map of one batch, and the way back from a map's gradient to its parameters.

``freeze`` folds restriction (NORM), batch normalisation (BN) and dropout, so that simulation, (FP) and (BETA) know
nothing but affine maps; what only the parameters' gradients need stands apart, in :class:`Pullback`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ide_ref import _checks, _threads, constraints
from ide_ref._kernels import layout, memory
from ide_ref.constraints import BatchNorm, SingularPair
from ide_ref.network import INPUT, Connection, Network, Params, clamped, finite
from ide_ref.norms import Norm, operator_norm
from ide_ref.synapses import Synapse, accumulate, to_channels_last

DROWNED = 0.01
"""Error of normalised values, from the rounding of what is normalised, from which on a warning tells of it."""


class BatchNormCache(NamedTuple):
    """What a batch normalisation normalises: z = W s + b, (B, n), and its moments per channel, (C,) each."""

    z: NDArray
    mean: NDArray
    variance: NDArray

    @classmethod
    def of(cls, name: str, z: NDArray, n_channels: int) -> BatchNormCache:
        """z of a connection, (B, n_to), by name, with its moments, `checked`."""
        return cls.checked(name, z, *constraints.batch_statistics(z, n_channels))

    @classmethod
    def checked(cls, name: str, z: NDArray, mean: NDArray, variance: NDArray) -> BatchNormCache:
        """z of a connection, (B, n_to), by name, with given moments, (C,) each.

        ValueError where these are beyond the dtype; warns where rounding of z drowns what tells its samples apart.
        """
        if not np.isfinite(variance).all():
            raise ValueError(
                f"batch normalisation of connection {name!r}: the batch's mean or variance is beyond {z.dtype}; "
                "expected smaller weights or inputs (normalise these, or compute in float64)"
            )
        rounding = np.finfo(z.dtype).eps * np.abs(mean) / np.sqrt(variance + variance.dtype.type(constraints.EPSILON))
        if rounding.max() > DROWNED:
            _checks.warn(
                f"batch normalisation of connection {name!r}: the batch's mean is so far from 0 beside its deviation "
                f"that rounding in {z.dtype} moves normalised values by {rounding.max():.1g}; take the mean off the "
                "inputs, or compute in float64",
            )
        return cls(z, mean, variance)


@dataclass(frozen=True)
class AffineMap:
    """One connection with everything folded: s ↦ keep ⊙ BN(W s + bias), BN(z) = scale ⊙ z + shift.

    Attributes
    ----------
    name : str
        Of the connection.
    synapse : Synapse
    taps : (K, C_in, C_out) array
        W after the restriction.
    bias : (C,) array or None
    norm : BatchNorm or None
    keep : (B, n_to) array or None
        Dropout mask of this batch.
    z : (B, n_to) array or None
        W x̄ + bias of the batch whose statistics are in ``norm``.
    """

    name: str
    synapse: Synapse
    taps: NDArray
    bias: NDArray | None = None
    norm: BatchNorm | None = None
    keep: NDArray | None = None
    z: NDArray | None = None

    @property
    def coupled(self) -> bool:
        """Whether a sample's output depends on the others of its batch, through the batch's own statistics."""
        return self.z is not None

    @property
    def in_rollout(self) -> AffineMap:
        """The map as simulation has it: this one, unless a profile says otherwise."""
        return self

    @property
    def weight(self) -> NDArray:
        """W after the restriction, in the weight's own shape."""
        return self.synapse.from_taps(self.taps)

    @cached_property
    def shift(self) -> NDArray | None:
        """(C,) constant part of the output, None for none."""
        if self.norm is None:
            return self.bias
        return self.norm.shift if self.bias is None else self.norm.shift + self.norm.scale * self.bias

    def pre_activation(self, s: NDArray) -> NDArray:
        """z = W s + bias, before normalisation, (B, n_from) to (B, n_to)."""
        z = self.synapse.apply(self.taps, s)
        if self.bias is not None:
            z += self.synapse.out_channels(self.bias)
        return z

    def normalise(self, z: NDArray, out: NDArray | None = None) -> NDArray:
        """Output of the connection from its z: keep ⊙ BN(z); added to ``out``, (B, n_to), where it is given."""
        if self.norm is not None:
            return constraints.affine(z, self.norm.scale, self.norm.shift, self.keep, out)
        return accumulate(z if self.keep is None else constraints.multiply(self.keep, z), out)

    def normalised_by(self, z: NDArray) -> AffineMap:
        """A map with normalisation, with the statistics of a batch's own z, (B, n_to)."""
        return self.with_statistics(BatchNormCache.of(self.name, z, self.synapse.out_shape[0]))

    def with_statistics(self, cache: BatchNormCache) -> AffineMap:
        """A map with normalisation, with a batch's statistics; z may be of some of its samples alone."""
        norm = replace(self.norm, mean=cache.mean, variance=cache.variance, from_batch=True)  # type: ignore[type-var]
        return replace(self, norm=norm, z=cache.z)

    def apply_at(self, s: NDArray, out: NDArray) -> tuple[AffineMap, NDArray]:
        """Add the output for given rates to ``out``, (B, n_to); the map as it is linearised there, and z."""
        z = self.pre_activation(s)
        self.normalise(z, out)
        return self, z

    def linear(self, s: NDArray) -> NDArray:
        """The linear part of the output, without any constant: keep ⊙ scale ⊙ W s, (B, n_from) to (B, n_to)."""
        if self.z is None:
            out = self.synapse.apply(self.laid_out, s)
        else:
            out = self.norm.linear(self.synapse.apply(self.taps, s), self.z)  # type: ignore[union-attr]  # whose z it is
        return out if self.keep is None else constraints.multiply(self.keep, out)

    def adjoint(self, v: NDArray, out: NDArray | None = None) -> NDArray:
        """Transpose of ``linear``, (B, n_to) to (B, n_from); added to ``out`` as by :meth:`Synapse.adjoint`."""
        if self.keep is not None:
            v = constraints.multiply(self.keep, v)
        if self.z is None:
            return self.synapse.adjoint(self.laid_out_in_reverse, v, out)
        return self.synapse.adjoint(self.taps, self.norm.linear(v, self.z), out)  # type: ignore[union-attr]  # as above

    def add_constant(self, out: NDArray) -> None:
        """Add what arrives without any spike, keep ⊙ shift, to ``out``, (B, n_to)."""
        if self.shift is not None:
            constant = self.synapse.out_channels(self.shift)
            out += constant if self.keep is None else self.keep * constant

    @cached_property
    def folded_taps(self) -> NDArray:
        """scale ⊙ W as taps, (K, C_in, C_out): what one spike adds."""
        if self.norm is None:
            return self.taps
        # A dense connection's taps count the neurons of all positions as channels.
        scale = self.norm.scale
        return self.taps * np.tile(scale, self.taps.shape[-1] // scale.size)

    @cached_property
    def laid_out(self) -> NDArray:
        """``folded_taps`` in the shape in which the kernels read them, for ``linear``."""
        return self.synapse.lay_out(self.folded_taps, reverse=False)

    @cached_property
    def laid_out_in_reverse(self) -> NDArray:
        """The same shape for ``adjoint``."""
        return self.synapse.lay_out(self.folded_taps, reverse=True)

    @property
    def largest_factor(self) -> float:
        """Of the dropout mask; 1 without one."""
        return 1.0 if self.keep is None else float(self.keep.max())

    @cached_property
    def norm_bound(self) -> Norm:
        """‖scale ⊙ W‖₂ at this input size times the largest factor of the mask, as a value and from above.

        A batch's own statistics are taken as fixed: with them the connection is linear, a sample at a time.
        """
        # Where a decomposition gave the value, it gave the bound as well.
        return self._known_norm if math.isfinite(self._known_norm.upper) else self._norm(bound=True)

    @property
    def operator_norm(self) -> float:
        """The value of ``norm_bound``, without the time that a bound takes for a large convolution."""
        return self._known_norm.value

    @cached_property
    def _known_norm(self) -> Norm:
        return self._norm(bound=False)

    def _norm(self, *, bound: bool) -> Norm:
        scale = None if self.norm is None else self.norm.scale
        found = operator_norm(self.synapse, self.taps, scale, bound=bound)
        return found if self.keep is None else found.times(self.largest_factor)

    def cache(self, s: NDArray, z: NDArray | None = None) -> BatchNormCache | None:
        """What the normalisation sees for given rates, (B, n_from), whose z may be known; None without one."""
        if self.norm is None:
            return None
        if self.z is not None:
            return BatchNormCache(self.z, self.norm.mean, self.norm.variance)
        return BatchNormCache.of(self.name, self.pre_activation(s) if z is None else z, self.synapse.out_shape[0])


@dataclass(frozen=True)
class Pullback:
    """From the gradient in one map, (HEBB), to the gradients of its connection's parameters.

    Attributes
    ----------
    connection : Connection
    params : dict
        The network's parameters that were frozen.
    singular : SingularPair or None
        Leading singular pair of W̄ under a restriction.
    momentum : float
        Share of a batch in the running statistics.
    through_statistics : bool
        Whether the gradient passes through the statistics of the batch's own rates though the map has others.
    """

    connection: Connection
    params: Params
    singular: SingularPair | None = None
    momentum: float = constraints.MOMENTUM
    through_statistics: bool = False

    def gradients(
        self, m: AffineMap, delta: NDArray, s: NDArray, cache: BatchNormCache | None = None
    ) -> tuple[Params, Params]:
        """Gradients of the connection's parameters, and its running statistics after these rates.

        Parameters
        ----------
        m : AffineMap
            As it was linearised.
        delta : (B, n_to) array
            ∂L/∂(output), (1/V_th) M β of the receiving population.
        s : (B, n_from) array
            Rates (or input) of the sending population.
        cache : BatchNormCache, optional
            Of the map at these rates; computed where it is missing.
        """
        c = self.connection
        grads: Params = {}
        statistics: Params = {}
        if m.keep is not None:
            delta = constraints.multiply(m.keep, delta)
        if (normalisation := self.normalisation(m, s, cache)) is not None:
            norm, z, statistics = normalisation
            delta, grads[f"{c.name}.bn_weight"], grads[f"{c.name}.bn_bias"] = norm.pull_back(delta, z)
        grads.update(self.products(delta, s))
        if c.synapse.weight_shape:
            grads.update(self.of_weight(grads[f"{c.name}.weight"]))
        return grads, statistics

    def products(self, delta: NDArray, s: NDArray) -> Params:
        """(HEBB) of what the linear map alone put out, (B, n_to), and got, (B, n_from): ∂L/∂ of W and of the bias."""
        c = self.connection
        grads: Params = {}
        if c.bias:
            sums = constraints.channel_sums(delta, c.synapse.out_shape[0])
            grads[f"{c.name}.bias"] = sums.astype(delta.dtype)
        if c.synapse.weight_shape:
            grads[f"{c.name}.weight"] = c.synapse.from_taps(c.synapse.hebbian(delta, s))
        return grads

    def normalisation(
        self, m: AffineMap, s: NDArray, cache: BatchNormCache | None = None
    ) -> tuple[BatchNorm, NDArray, Params] | None:
        """Of rates (B, n_from): what the gradient passes through, its z, and the running statistics after them."""
        cache = m.cache(s) if cache is None else cache
        if cache is None:
            return None
        norm: Any = m.norm
        name, statistics = self.connection.name, {}
        if self.through_statistics:
            norm = replace(norm, mean=cache.mean, variance=cache.variance, from_batch=True)
        for part, value in ((f"{name}.running_mean", cache.mean), (f"{name}.running_var", cache.variance)):
            statistics[part] = constraints.running_update(self.params[part], value, self.momentum)
        return norm, cache.z, statistics

    def of_weight(self, d_weight: NDArray) -> Params:
        """From ∂L/∂W, in the weight's shape, to the gradients in W̄ and α."""
        c = self.connection
        if self.singular is None:
            return {f"{c.name}.weight": d_weight}
        given = self.params[f"{c.name}.alpha"]
        alpha = clamped(given, c.restriction.c)  # type: ignore[union-attr]  # whose pair it is
        d_raw, d_alpha = constraints.restrict_pull_back(
            d_weight, self.params[f"{c.name}.weight"], alpha, self.singular.value, self.norm_gradient(self.singular)
        )
        # Beyond the clamp the derivative is 0; inside, α and its clipped value are the same.
        inside = alpha == float(given)
        return {f"{c.name}.weight": d_raw, f"{c.name}.alpha": d_alpha if inside else np.zeros_like(d_alpha)}

    def norm_gradient(self, pair: SingularPair) -> tuple[NDArray, NDArray]:
        """∂‖W̄‖/∂W̄ as :func:`ide_ref.constraints.restrict_pull_back` takes it."""
        if not self.connection.takes_operator_norm:
            return pair.left, pair.right
        synapse = self.connection.synapse
        whole = synapse.from_taps(synapse.hebbian(pair.left[None], pair.right[None]))
        return whole.ravel(), np.ones(1, whole.dtype)


class HasRates(Protocol):
    """Anything with rates of all populations: a rollout's or an equilibrium's."""

    @property
    def a(self) -> NDArray:
        """(B, n) rates in channels-last order."""


@dataclass(frozen=True)
class Frozen:
    """A network with fixed affine maps, for one batch (training) or for any (evaluation).

    Attributes
    ----------
    network : Network
    params : dict
        What was frozen.
    maps, pullbacks : tuples
        Of the connections, in the network's order.
    readout : (K, n, n_classes) array
        Taps of the readout.
    batch_size : int or None
        The batch it belongs to; None for any.
    statistics : dict
        Singular vectors for the next search to start from.
    batch : (B, *input_shape) array or None
        x̄ of the batch it was frozen on.
    further_sweeps : int
        How many sweeps beyond the given rates J of (BETA) is taken.
    """

    network: Network
    params: Params
    maps: tuple[AffineMap, ...]
    pullbacks: tuple[Pullback, ...]
    readout: NDArray
    batch_size: int | None
    statistics: Params
    batch: NDArray | None = None
    further_sweeps: int = 0

    @property
    def dtype(self) -> np.dtype:
        """dtype of the computation."""
        return self.readout.dtype

    @cached_property
    def simulated(self) -> tuple[AffineMap, ...]:
        """The maps as the rollout has them."""
        return tuple(m.in_rollout for m in self.maps)

    @cached_property
    def plan(self) -> layout.Plan:
        """The connections between populations as the rollout reads them."""
        return self._plan(with_input=False)

    @cached_property
    def plan_with_input(self) -> layout.Plan:
        """The same with the connections of the input, whose spikes they carry."""
        return self._plan(with_input=True)

    def _plan(self, *, with_input: bool) -> layout.Plan:
        net = self.network
        links = [
            layout.Link(source, target, m.synapse, m.folded_taps, m.keep)
            for m, (source, target) in zip(self.simulated, net.edges, strict=True)
            if source >= 0 or with_input
        ]
        return layout.plan(links, len(net.populations), self.dtype)

    def check_input(self, x: NDArray) -> NDArray:
        """x as an array of this dtype; ValueError for a wrong shape, batch or value."""
        x = self.network.check_input(x, self.dtype)
        if self.batch_size is not None and x.shape[0] != self.batch_size:
            raise ValueError(f"x has {x.shape[0]} samples; the network was frozen on a batch of {self.batch_size}")
        return x

    def check_state(self, name: str, state: NDArray, n_batch: int | None = None) -> NDArray:
        """A state (B, n) as an array of this dtype; ValueError, by name, for another shape, kind or value."""
        return self._checked(name, state, n_batch, self.network.state_size, "a state")

    def check_d_logits(self, d_logits: NDArray, n_batch: int) -> NDArray:
        """∂L/∂o, (B, n_classes), as an array of this dtype; ValueError for a wrong shape, kind or value."""
        return self._checked("d_logits", d_logits, n_batch, self.network.n_classes, "a row per sample")

    def _checked(self, name: str, value: NDArray, n_batch: int | None, size: int, what: str) -> NDArray:
        array = np.asarray(value)
        if array.shape != (*(array.shape[:1] if n_batch is None else (n_batch,)), size):
            raise ValueError(f"{name} has shape {array.shape}; expected ({n_batch or 'batch'}, {size}), {what}")
        if array.dtype.kind not in "fiub":
            raise ValueError(f"{name} has dtype {array.dtype}; expected real numbers")
        if not finite(array):
            raise ValueError(f"{name} has values that are NaN or infinite; expected finite ones")
        return _checks.converted(name, array, self.dtype)

    def mean_input(self, x: NDArray) -> NDArray:
        """x̄ of (RATE), (B, *input_shape)."""
        return self.network.mean_input(x)

    def drive(self, x_mean: NDArray, out: NDArray | None = None) -> NDArray:
        """F x̄ + b of the input connections: (B, *input_shape) to (B, n); added to ``out`` where it is given."""
        net = self.network
        x = to_channels_last(x_mean, net.input_shape)
        out = memory.zeros((x_mean.shape[0], net.state_size), self.dtype) if out is None else out
        # The batch's own z was computed when its statistics were taken.
        known = self.batch is not None and np.array_equal(x_mean, self.batch)
        for m, (source, target) in zip(self.maps, net.edges, strict=True):
            if source < 0:
                m.normalise(m.z if known and m.z is not None else m.pre_activation(x), out[:, net.slice_of(target)])
        return out

    def constants(self, n_batch: int, *, with_input: bool) -> NDArray:
        """What the rollout's connections bring without any spike, (B, n); the input's on request."""
        net = self.network
        out = memory.zeros((n_batch, net.state_size), self.dtype)
        for m, (source, target) in zip(self.simulated, net.edges, strict=True):
            if source >= 0 or with_input:
                m.add_constant(out[:, net.slice_of(target)])
        return out

    def read_out(self, state: HasRates) -> NDArray:
        """o = W^o a + b^o, (READ): (B, n_classes)."""
        net = self.network
        a = self.check_state("state.a", state.a)[:, net.slice_of(net.readout.source)]
        return net.readout.synapse.apply(self.readout, a) + self.params["readout.bias"]

    def read_out_pull_back(self, state: HasRates, d_logits: NDArray) -> tuple[NDArray, Params]:
        """g = ∂L/∂a, (B, n), and the readout's gradients, from ∂L/∂o (B, n_classes)."""
        net = self.network
        columns = net.slice_of(net.readout.source)
        synapse = net.readout.synapse
        g = memory.zeros(state.a.shape, state.a.dtype)
        g[:, columns] = synapse.adjoint(self.readout, d_logits)
        grads = {
            "readout.weight": synapse.from_taps(synapse.hebbian(d_logits, state.a[:, columns])),
            "readout.bias": constraints.channel_sums(d_logits, net.n_classes).astype(self.dtype),
        }
        return g, grads


def read_out(frozen: Frozen, state: HasRates) -> NDArray:
    """Logits of a rollout or an equilibrium, (READ).

    Parameters
    ----------
    frozen : Frozen
        The network.
    state : Rates or Equilibrium
        The rates that are read.

    Returns
    -------
    (B, n_classes) array
        One row per sample.

    Raises
    ------
    ValueError
        For what has no rates.
    """
    _checks.kind("frozen", frozen, Frozen)
    if not hasattr(state, "a"):
        raise ValueError(f"state is of type {type(state).__name__}; expected Rates or Equilibrium")
    return frozen.read_out(state)


@_threads.fitted
def freeze(
    network: Network,
    params: Mapping[str, NDArray],
    x: NDArray | None = None,
    *,
    training: bool = False,
    rng: np.random.Generator | None = None,
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

    Returns
    -------
    Frozen

    Raises
    ------
    ValueError
        For parameters or inputs that do not fit, or whose batch statistics are beyond the dtype.
    """
    _checks.kind("network", network, Network)
    if rng is not None:
        _checks.kind("rng", rng, np.random.Generator)
    if training and x is None:
        raise ValueError("x is missing; freezing for training takes the batch's own statistics from it")
    folded = fold(network, params, training=training)
    if not training or x is None:
        return network.edited(folded, None)
    x = network.check_input(x, folded.dtype)
    x_mean = network.mean_input(x)
    inputs = to_channels_last(x_mean, network.input_shape)
    sizes = [len(x) * int(c.synapse.n_out) if c.dropout > 0 else 0 for c in network.connections]
    masks = np.split(memory.empty(sum(sizes), folded.dtype), np.cumsum(sizes)[:-1])
    keep: dict[str, NDArray] = {}
    caches: dict[str, BatchNormCache] = {}
    for c, m, mask in zip(network.connections, folded.maps, masks, strict=True):
        if c.dropout > 0:
            if rng is None:
                raise ValueError(f"rng is missing; connection {c.name!r} has dropout and needs a generator")
            shape = (len(x), c.synapse.n_out)
            keep[c.name] = constraints.dropout_mask(shape, c.dropout, rng, folded.dtype, mask.reshape(shape))
        if c.batch_norm and c.source == INPUT:
            caches[c.name] = BatchNormCache.of(c.name, m.pre_activation(inputs), c.synapse.out_shape[0])
    return on_batch(folded, x, x_mean, keep, caches)


def fold(network: Network, params: Mapping[str, NDArray], *, training: bool = False) -> Frozen:
    """What of `freeze` knows no batch: restriction and running statistics folded, without the edits of a profile.

    ``training`` says how exact the restriction's norm is to be, see :func:`constraints.singular_tolerance`.
    """
    network.check_params(params)
    dtype = params["readout.weight"].dtype.newbyteorder("=")
    theta: Params = {name: _checks.converted(name, params[name], dtype) for name in params}
    tol = constraints.singular_tolerance(dtype, training=training)
    maps: list[AffineMap] = []
    pullbacks: list[Pullback] = []
    statistics: Params = {}
    for c in network.connections:
        weight, singular = theta.get(f"{c.name}.weight", np.empty((), dtype)), None
        if c.restriction:
            singular = network.leading_pair(c, weight, theta[f"{c.name}.singular_vector"], tol)
            statistics[f"{c.name}.singular_vector"] = singular.right
            # α is inside its bounds already, by ``project``.
            weight = weight * dtype.type(clamped(theta[f"{c.name}.alpha"], c.restriction.c) / singular.value)
        norm = None
        if c.batch_norm:
            parts = ("bn_weight", "bn_bias", "running_mean", "running_var")
            scale, shift, mean, variance = (theta[f"{c.name}.{part}"] for part in parts)
            norm = BatchNorm(scale, shift, mean, variance, from_batch=False)
        maps.append(AffineMap(c.name, c.synapse, c.synapse.to_taps(weight), theta.get(f"{c.name}.bias"), norm))
        pullbacks.append(Pullback(c, theta, singular))
    readout = network.readout.synapse.to_taps(theta["readout.weight"])
    return Frozen(network, theta, tuple(maps), tuple(pullbacks), readout, None, statistics)


def on_batch(
    folded: Frozen, x: NDArray, x_mean: NDArray, keep: Mapping[str, NDArray], caches: Mapping[str, BatchNormCache]
) -> Frozen:
    """A folded network for one batch x, whose x̄ is (B, *input_shape), or for some samples of one.

    Parameters
    ----------
    keep : dict of (B, n_to) arrays
        Dropout masks by connection.
    caches : dict of BatchNormCache
        What the normalisations of the input's connections see: their z of these samples, the statistics of the batch.
    """
    maps = tuple(
        replace(m if m.name not in caches else m.with_statistics(caches[m.name]), keep=keep.get(m.name))
        for m in folded.maps
    )
    return folded.network.edited(replace(folded, maps=maps, batch_size=len(x), batch=x_mean), x)
