"""Any network as :mod:`ide_ref.equations` reads it: every connection a dense matrix, states in channels-last order.

What is taken from the package is the structure, the parameters and the dropout masks that were drawn; restriction,
normalisation, spikes, rates, β and gradients are computed by the equations alone.

Source: ``docs/equations.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ide_ref import equations
from ide_ref.maps import Frozen
from ide_ref.network import Network, Params
from ide_ref.synapses import Synapse, to_channels_last


@dataclass(frozen=True)
class Specified:
    """A frozen network by the equations."""

    net: equations.Network
    """With frozen maps."""
    connections: list[equations.Connection]
    params: list[dict[str, NDArray]]
    """Of each connection."""
    readout: tuple[int, NDArray, NDArray]
    """Index of the population read out, W^o and b^o."""
    names: list[str]
    """Of the connections."""
    x: NDArray
    """(B, T, n_in): the input of every step."""
    training: bool
    readout_tie: NDArray[np.int64]
    """(n_classes, n): which number of the readout's weight stands where in W^o, whose columns are cells."""

    def gradient(self, y: NDArray) -> tuple[float, NDArray, NDArray, Params, Params]:
        """L, a[T] (B, n), β (B, n), the gradients of all parameters by name, and the running statistics."""
        value, a, beta, found = equations.gradient(
            self.net, self.connections, self.params, self.readout, self.x, y, self.training
        )
        gradients: Params = {}
        statistics: Params = {}
        for name, parts in zip([*self.names, "readout"], found, strict=True):
            for part, array in parts.items():
                into = statistics if part.startswith("running") else gradients
                into[f"{name}.{part}"] = np.asarray(array)
        d_W = gradients["readout.weight"]
        gradients["readout.weight"] = equations.untied(d_W, self.readout_tie, d_W)
        return value, np.concatenate(a, axis=1), np.concatenate(beta, axis=1), gradients, statistics


def specified(frozen: Frozen, x: NDArray, n_steps: int) -> Specified:
    """A frozen network and its input by the equations, in float64, for a static input over ``n_steps`` steps.

    x, (B, *input_shape) or (B, T, *input_shape), is what it was frozen on, where it was frozen for training.
    """
    masks = {m.name: m.keep for m in frozen.maps if m.keep is not None}
    return specify(frozen.network, frozen.params, x, n_steps, masks=masks, training=frozen.batch_size is not None)


def specify(
    network: Network, params: Params, x: NDArray, n_steps: int, *, masks: Mapping[str, NDArray], training: bool
) -> Specified:
    """A network that is not frozen by the equations; ``params`` need no vectors that a search for ‖W̄‖ starts from.

    ``masks`` are dropout masks of connections by name, (B, n_to) in channels-last order; a static ``x`` stays for
    ``n_steps`` steps; with ``training`` input
    connections are normalised with the batch's own statistics.
    """
    steps = x if network.is_spike_input(x) else np.repeat(x[:, None], n_steps, axis=1)
    inputs = np.stack([to_channels_last(steps[:, t], network.input_shape) for t in range(steps.shape[1])], axis=1)
    inputs = inputs.astype(np.float64)
    x_mean = equations.average(inputs, network.input_neuron.leak)
    connections, owned, maps = [], [], []
    for c, (source, target) in zip(network.connections, network.edges, strict=True):
        named = ((name.rpartition("."), value) for name, value in params.items())
        own = {part: np.asarray(value, np.float64) for (owner, _, part), value in named if owner == c.name}
        learned, given = (tie(c.synapse), None) if c.synapse.weight_shape else (None, matrix(c.synapse, np.empty(())))
        channel = np.arange(c.synapse.n_out) % c.synapse.out_shape[0]
        norm = None if c.restriction is None else c.restriction.norm
        connection = equations.Connection(source, target, learned, given, channel, norm)
        keep = np.asarray(masks.get(c.name, np.ones((len(x), c.synapse.n_out))), np.float64)
        connections.append(connection)
        owned.append(own)
        maps.append(equations.freeze(connection, own, x_mean, keep, training))
    sizes = [population.size for population in network.populations]
    constants = ([neuron.leak for neuron in network.neurons], [neuron.v_th for neuron in network.neurons])
    leak, v_th = (of_each[0] if len(set(of_each)) == 1 else of_each for of_each in constants)
    net = equations.Network(sizes, maps, leak, v_th)
    order = tie(network.readout.synapse)
    W_o, b_o = (params[f"readout.{part}"].astype(np.float64) for part in ("weight", "bias"))
    readout = (network.index(network.readout.source), equations.tied(W_o, order), b_o)
    names = [c.name for c in network.connections]
    return Specified(net, connections, owned, readout, names, inputs, training, order)


@lru_cache(maxsize=32)
def tie(synapse: Synapse) -> NDArray[np.int64]:
    """(n_out, n_in) which number of the weight array, flat, stands at each place of the matrix; −1 for none."""
    count = int(np.prod(synapse.weight_shape))
    numbered = np.arange(1.0, count + 1.0).reshape(synapse.weight_shape)
    return np.rint(matrix(synapse, numbered)).astype(np.int64) - 1


def matrix(synapse: Synapse, weight: NDArray) -> NDArray:
    """(n_out, n_in) the matrix of a synapse with a weight array; with an empty one where it has no weights."""
    return synapse.apply(synapse.to_taps(weight), np.eye(synapse.n_in)).T
