"""Dense products: the unit of the timings, and a rollout that is made of them.

The unit is D = 2·MACs·B·(T + 31)/r, plus the drive and its gradient once each, with MACs those of one feedback
sweep and r the machine's float32 matrix-product rate, measured in the same run: what the method costs with dense
products and 30 backward sweeps.

Source: ``docs/performance.md``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ide_ref.maps import Frozen
from ide_ref.network import INPUT, Network


def dense_forward(network: Network, n_steps: int, batch_size: int, rate: float) -> float:
    """Seconds of the dense sweeps of T steps and the drive at the rate of a matrix product."""
    return _seconds(network, n_steps, 1, batch_size, rate)


def dense_equivalent(network: Network, n_steps: int, batch_size: int, rate: float, *, spike_input: bool) -> float:
    """D in seconds: dense products for the sweeps of T steps and 31 backward, the drive and its gradient."""
    return _seconds(network, n_steps + 31, n_steps + 1 if spike_input else 2, batch_size, rate)


def _seconds(network: Network, n_sweeps: int, n_drives: int, batch_size: int, rate: float) -> float:
    times = ((c, n_drives if c.source == INPUT else n_sweeps) for c in network.connections)
    return 2.0 * batch_size * sum(c.synapse.n_multiplications * n for c, n in times) / rate


COLUMNS_BYTES = 16 << 20
"""Of the copies of spikes that one product of :func:`dense_rollout` reads, about: they stay in the caches."""


def dense_rollout(frozen: Frozen, x: NDArray, n_steps: int) -> NDArray:
    """Average rates a[T], (B, n), from (STEP) with dense products: what a rollout costs that does not use sparsity.

    For each connection and step what every output position sees is copied side by side, some samples at a time, and
    multiplied by the weights in NumPy's matrix product, that is in BLAS. Static input, and connections with weights.
    """
    net, dtype, n_batch = frozen.network, frozen.dtype, len(x)
    drive = frozen.drive(x, frozen.constants(n_batch, with_input=False))
    maps = []
    for c, (source, target) in zip(frozen.maps, net.edges, strict=True):
        if source >= 0:
            c_in, c_out = c.synapse.channels
            n_positions = net.populations[source].size // c_in
            first, last = c.synapse.runs.fine[:, :, :2].transpose(2, 1, 0)
            # Of a position that is none, the row of zeros behind the others.
            seen = np.where(first < last, first, n_positions).ravel()
            weights = np.ascontiguousarray(c.folded_taps.reshape(-1, c_out))
            sent = np.zeros((n_batch, n_positions + 1, c_in), dtype)
            share = max(1, min(n_batch, COLUMNS_BYTES // (seen.size * c_in * dtype.itemsize)))
            columns = np.empty((share, seen.size, c_in), dtype)
            product = np.empty((share, c.synapse.n_out), dtype)
            maps.append((source, target, seen, weights, c.keep, sent, columns, product))
    v, a = np.zeros_like(drive), np.zeros_like(drive)
    for t in range(n_steps):
        for population in range(len(net.populations)):
            place = net.slice_of(population)
            neuron, here = net.neurons[population], v[:, place]
            here *= dtype.type(neuron.leak)
            here += drive[:, place]
            for _, target, seen, weights, keep, sent, columns, product in maps:
                for first in range(0, n_batch if target == population else 0, len(columns)):
                    part = slice(first, first + len(columns))
                    n = len(sent[part])
                    read, found = columns[:n], product[:n]
                    np.take(sent[part], seen, axis=1, out=read, mode="clip")
                    np.matmul(read.reshape(-1, len(weights)), weights, out=found.reshape(-1, weights.shape[1]))
                    if keep is not None:
                        found *= keep[part]
                    here[part] += found
            fired = here >= dtype.type(neuron.v_th)
            here -= fired * dtype.type(neuron.v_th)
            a[:, place] += fired * dtype.type(neuron.leak ** (n_steps - 1 - t))
            for source, _, _, _, _, sent, _, _ in maps:
                if source == population:
                    sent[:, :-1] = fired.reshape(n_batch, -1, sent.shape[2])
    for neuron, place in net.stretches:
        a[:, place] /= dtype.type(neuron.total_weight(n_steps))
    return a
