"""Random networks for the property tests, and what the page of equations makes of them.

Of the package's fast functions the oracle uses the structure, the parameters and the drawn dropout masks. States are
in channels-last order.
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property, partial

import numba
import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from ide_ref import IF, LIF, Connection, Dense, Frozen, Network, Population, Readout, Restriction, equations, freeze
from ide_ref.neurons import Neuron
from ide_ref.synapses import AvgPool2d, Conv2d, ConvTranspose2d, Synapse
from ide_ref.verify.specification import Specified, specified

MAX_THREADS = min(2, numba.config.NUMBA_NUM_THREADS)
"""Threads that are drawn: with two, a batch is divided."""


@dataclass(frozen=True)
class Case:
    """A network with parameters, frozen on an input."""

    network: Network
    params: dict[str, NDArray]
    x: NDArray
    y: NDArray
    frozen: Frozen
    n_steps: int
    training: bool
    n_threads: int

    def _repr_pretty_(self, printer, cycle) -> None:
        connections = "\n".join(map(str, self.network.connections))
        printer.text(
            f"x {self.x.shape}, training={self.training}, T={self.n_steps}, {self.network.neurons}, "
            f"{self.n_threads} threads\n{connections}"
        )

    @cached_property
    def spec(self) -> Specified:
        """As the page of equations reads it."""
        return specified(self.frozen, self.x, self.n_steps)

    @property
    def x_mean(self) -> NDArray:
        """(B, n_in) weighted average of the steps."""
        return equations.average(self.spec.x, self.network.input_neuron.leak)

    @cached_property
    def v_th(self) -> NDArray:
        """(n,) V_th of every neuron."""
        net = self.spec.net
        return np.concatenate([np.full(n, equations.own(net.v_th, i)) for i, n in enumerate(net.sizes)])

    def averages(self, spikes: NDArray) -> NDArray:
        """a[T] (B, n) of spikes (B, T, n), each population by its own λ."""
        leak = self.spec.net.leak
        rates = [equations.average(spikes[:, :, at], equations.own(leak, i)) for i, at in enumerate(self.places())]
        return np.concatenate(rates, axis=1)

    def places(self) -> list[slice]:
        ends = np.cumsum([0, *self.spec.net.sizes])
        return [slice(a, b) for a, b in itertools.pairwise(ends)]

    def split(self, state: NDArray) -> list[NDArray]:
        """A state (B, n) as the equations have it."""
        return [state[:, place] for place in self.places()]

    def affine(self) -> list[tuple[NDArray, NDArray]]:
        """Each connection as (matrix (B, n_to, n_from), constant (B, n_to))."""
        made = []
        for m in self.spec.net.maps:
            scale = 1.0 if m.norm is None else (m.norm[0] / np.sqrt(m.norm[3] + equations.EPSILON))[:, None]
            constant = equations.output(m, np.zeros((len(self.x), m.W.shape[1])))
            made.append((m.keep[:, :, None] * (scale * m.W), constant))
        return made

    def blocks(self) -> tuple[NDArray, NDArray, NDArray]:
        """Forward and feedback parts of the big block matrix, (B, n, n) each, and the drive (B, n)."""
        net = self.spec.net
        rest = self.split(np.zeros((len(self.x), sum(net.sizes))))
        drive = [equations.arriving(net, i, self.x_mean, rest, rest) for i in range(len(rest))]
        forward, feedback = (
            equations.block_matrix(net._replace(maps=[m for m in net.maps if (m.source < m.target) == ahead]))
            for ahead in (True, False)
        )
        return forward, feedback, np.concatenate(drive, axis=1)

    def sweep(self, z: NDArray) -> tuple[NDArray, NDArray]:
        """Rates and pre-activations (B, n) of one pass through the populations, z at the feedback sources."""
        given = np.zeros((len(z), sum(self.spec.net.sizes)))
        given[:, self.feedback_sources()] = z
        a, p = equations.sweep(self.spec.net, self.split(given), self.x_mean)
        return np.concatenate(a, axis=1), np.concatenate(p, axis=1)

    def feedback_sources(self) -> NDArray[np.intp]:
        """Places of the neurons that send feedback."""
        sources = sorted({s for s, t in self.network.edges if s >= t})
        return np.concatenate([np.arange(self.places()[-1].stop)[self.places()[s]] for s in sources])

    def rollout(self) -> tuple[NDArray, NDArray, float]:
        """(STEP): spikes and potentials (B, T, n) of t = 1..T, and the smallest |v - V_th|."""
        net = self.spec.net
        u = s = self.split(np.zeros((len(self.x), sum(net.sizes))))
        steps = []
        for t in range(self.n_steps):
            u, s = equations.step(net, u, s, self.spec.x[:, t])
            steps.append((np.concatenate(s, axis=1), np.concatenate(u, axis=1)))
        spikes, potentials = (np.stack(part, axis=1) for part in zip(*steps, strict=True))
        return spikes, potentials, np.abs(potentials + self.v_th * spikes - self.v_th).min()


def dense_matrix(synapse: Synapse, weight: NDArray | None) -> NDArray:
    """(n_out, n_in) matrix of a synapse in channels-last order, from its products with the unit vectors."""
    weight = np.empty(()) if weight is None else weight.astype(np.float64)
    return synapse.apply(synapse.to_taps(weight), np.eye(synapse.n_in)).T


def restricted(c: Connection, weight: NDArray) -> NDArray:
    """The matrix whose norm (NORM) divides by."""
    return weight.reshape(len(weight), -1) if c.restriction.norm == "kernel" else dense_matrix(c.synapse, weight)


def apply(A: NDArray, v: NDArray) -> NDArray:
    """A v, sample by sample."""
    return np.einsum("bij,bj->bi", A, v)


def flat_or_image() -> st.SearchStrategy[tuple[int, ...]]:
    return st.sampled_from([(1,), (3,), (5,), (2, 1, 2), (3, 2, 1), (2, 4, 4), (1, 3, 2)])


@cache
def synapses_between(in_shape: tuple[int, ...], out_shape: tuple[int, ...], exact: bool) -> tuple[Synapse, ...]:
    """Every small synapse that maps one shape to the other; ``exact`` leaves out means of 9."""
    found: list[Synapse] = [Dense(in_shape, out_shape)]
    for window in itertools.product((1, 2, 3), (1, 2), (0, 1)):
        for make in (Conv2d, ConvTranspose2d, partial(ConvTranspose2d, output_padding=1), AvgPool2d):
            if not (exact and make is AvgPool2d and window[0] == 3):
                with suppress(ValueError):
                    found.append(make(in_shape, out_shape, *window))
    return tuple(found)


# Up to two blocks of four channels and a rest.
channels = st.integers(1, 9)
pictures = st.tuples(channels, st.integers(3, 6), st.integers(3, 6))


def conv_size(n, kernel, stride, padding, output_padding):
    return (n + 2 * padding - kernel) // stride + 1


def transposed_size(n, kernel, stride, padding, output_padding):
    return (n - 1) * stride - 2 * padding + kernel + output_padding


def windows_of_one_size(size):
    """Strided windows (kernel, stride, padding, output padding) and the side lengths that they map to themselves."""
    found = []
    for window in itertools.product(range(1, 5), (2, 3), range(5), range(3)):
        sides = [n for n in range(1, 7) if size(n, *window) == n]
        if sides and window[3] < window[1]:
            found.append((window, sides))
    return found


SIZES = {Conv2d: conv_size, ConvTranspose2d: transposed_size}
OF_ONE_SIZE = {cls: windows_of_one_size(size) for cls, size in SIZES.items()}


@st.composite
def convolutions(draw, cls):
    """Half of them map a picture to one of its own shape although they are strided."""
    if draw(st.booleans()):
        (kernel, stride, padding, output_padding), sides = draw(st.sampled_from(OF_ONE_SIZE[cls]))
        in_shape = (draw(channels), draw(st.sampled_from(sides)), draw(st.sampled_from(sides)))
        out_channels = in_shape[0]
    else:
        in_shape, out_channels = draw(pictures), draw(channels)
        kernel, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        output_padding = draw(st.integers(0, stride - 1))
        shortest = min(in_shape[1:])
        paddings = [p for p in range(5) if SIZES[cls](shortest, kernel, stride, p, output_padding) >= 1]
        padding = draw(st.sampled_from([None, *paddings]))
    rest = {} if cls is Conv2d else {"output_padding": output_padding}
    return cls.over(in_shape, out_channels, kernel=kernel, stride=stride, padding=padding, **rest)


@st.composite
def cases(
    draw,
    *,
    exact=False,
    contractive=False,
    batch_statistics=False,
    own_neurons=False,
    dtype=np.float64,
    max_populations: int = 3,
) -> Case:
    """A graph of populations: chain, skips, feedback paths, several of each, every kind of synapse.

    ``exact``: weights, inputs and masks whose sums have no rounding. ``contractive``: weights scaled so that
    (COND) holds, whatever was drawn. ``batch_statistics``: what the input brings is normalised with those of a batch of
    two and more. ``own_neurons``: some populations have their own V_th and λ; a spike train needs one λ of its readers.
    Batches are of 1 to 9 samples, so that the products for few samples and for many are both taken. From here on Numba
    runs the drawn number of threads; conftest restores it after the test.
    """
    n_steps = draw(st.integers(1, 9))
    leaks = [1.0] if dtype == np.float32 else [1.0, 0.5, 0.75] if exact else [1.0, 0.9]
    leak = draw(st.sampled_from(leaks))
    neuron = IF(1.0) if leak == 1.0 else LIF(leak, 1.5)
    input_shape = draw(flat_or_image())
    shapes = [draw(flat_or_image()) for _ in range(draw(st.integers(1, max_populations)))]
    n = len(shapes)
    ends = [(t - 1, t) for t in range(n)]
    ends += draw(st.lists(st.sampled_from([(s, t) for t in range(n) for s in range(-1, t)]), max_size=2))
    ends += draw(st.lists(st.sampled_from([(s, t) for t in range(n) for s in range(t, n)]), min_size=1, max_size=3))
    names = {-1: "input", **{i: f"a{i + 1}" for i in range(n)}}
    connections = []
    for i, (s, t) in enumerate(ends):
        synapse = draw(st.sampled_from(synapses_between(input_shape if s < 0 else shapes[s], shapes[t], exact)))
        weightless = not synapse.weight_shape
        normalised = (contractive and weightless) or (batch_statistics and s < 0)
        batch_norm = not exact and (draw(st.booleans()) or normalised)
        restriction = None
        if not exact and not weightless and s >= t and draw(st.booleans()):
            restriction = Restriction(norm=draw(st.sampled_from(["operator", "kernel"])))
        bias, dropout = draw(st.booleans()), draw(st.sampled_from([0.0, 0.5]))
        connections.append(Connection(f"c{i}", names[s], names[t], synapse, bias, batch_norm, restriction, dropout))
    out = draw(st.integers(0, n - 1))
    of_their_own = st.builds(
        Neuron, st.sampled_from(leaks), st.sampled_from([0.5, 1.0, 2.0] if exact else [0.7, 1.5, 3])
    )
    neurons = [draw(st.none() | of_their_own) if own_neurons else None for _ in shapes]
    network = Network(
        input_shape,
        tuple(Population(names[i], shape, own) for i, (shape, own) in enumerate(zip(shapes, neurons, strict=True))),
        tuple(connections),
        Readout(names[out], Dense(shapes[out], (3,))),
        neuron,
    )

    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    params = network.init(rng)
    for name, value in params.items():
        if exact and not name.startswith("readout"):
            # Quarters in the weights make v = V_th common.
            params[name] = rng.integers(-8, 9, value.shape) / (4.0 if name.endswith("weight") else 16.0)
        elif name.endswith(("bias", "mean")):
            params[name] = rng.normal(0, 0.3, value.shape)
        elif name.endswith(("running_var", "bn_weight")):
            params[name] = rng.uniform(0.5, 1.5, value.shape)
    if contractive:
        params = _scaled(network, params)
    params = {name: np.asarray(value, dtype) for name, value in params.items()}
    n_threads = draw(st.integers(1, MAX_THREADS))
    numba.set_num_threads(n_threads)
    n_batch = draw(st.integers(1 + batch_statistics, 9))
    size = (n_batch, *input_shape)
    readers = {network.neurons[t].leak for s, t in network.edges if s < 0}
    if draw(st.booleans()) and len(readers) == 1:
        shape = (n_batch, n_steps, *input_shape)
        x = ((rng.random(shape) < 0.4) * rng.integers(1, 3, shape)).astype(dtype)
    else:
        x = np.asarray(rng.integers(-16, 33, size) / 16 if exact else rng.normal(0.5, 1, size), dtype)
    training = batch_statistics or draw(st.booleans())
    for array in (x, *params.values()):
        array.flags.writeable = False
    frozen = freeze(network, params, x, training=training, rng=rng)
    return Case(network, params, x, rng.integers(0, 3, n_batch), frozen, n_steps, training, n_threads)


def _scaled(network: Network, params: dict[str, NDArray]) -> dict[str, NDArray]:
    """Parameters with which every population's incoming norms add up to V_th / 2, so that γ ≤ √3/2."""
    params = dict(params)
    inner = [c for c in network.connections if c.source != "input"]
    for c in inner:
        weight = params.get(f"{c.name}.weight")
        size = np.linalg.norm(dense_matrix(c.synapse, weight), 2)
        if c.batch_norm:
            size *= (params[f"{c.name}.bn_weight"] / np.sqrt(params[f"{c.name}.running_var"])).max()
        v_th = network.neurons[network.index(c.target)].v_th
        share = 0.5 * v_th * (1 - c.dropout) / sum(other.target == c.target for other in inner)
        if c.restriction:
            norm = np.linalg.norm(restricted(c, weight), 2)
            params[f"{c.name}.alpha"] = np.asarray(min(0.9, share / size * norm))
        else:
            scaled = f"{c.name}.weight" if weight is not None else f"{c.name}.bn_weight"
            params[scaled] = params[scaled] * (share / size)
    return params
