"""What a step of data-parallel training takes on N ranks, by the model of docs/parallel.md.

    python docs/examples/scaling_of_ranks.py fashion-mnist-400 --batch-size 8192
    mpiexec -n 2 python docs/examples/scaling_of_ranks.py fashion-mnist-400 --batch-size 128

The first simulates up to 1,024 ranks; the second holds the model against a step on the ranks there are.

Times of one block and of what every rank does by itself are measured on this machine, on one thread; latency and
bandwidth of the network are given. Each number of ranks is simulated: blocks dealt as `ide_ref.parallel` deals them,
the slowest rank waited for, messages by the model of Hockney (1994), a time α for each and 1/bandwidth for each byte.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numba
import numpy as np

from ide_ref import parallel, presets
from ide_ref.presets import Preset
from ide_ref.training.step import training_step

RANKS = [1, 2, 3, 4, *(1 << k for k in range(3, 11))]


class Alone:
    """A communicator of one rank."""

    rank, size = 0, 1

    def allgather(self, value: Any) -> list[Any]:
        return [value]

    def alltoall(self, values: Any) -> list[Any]:
        return list(values)


@dataclass(frozen=True)
class Cost:
    """Of one step, in seconds and bytes."""

    block: float
    """Seconds of a rank for each block."""
    sample: float
    """Seconds of every rank for each sample of the whole batch: loading and drawing."""
    fixed: float
    """Seconds of every rank, whatever the batch: norms, sums, update."""
    gradient: int
    """Bytes of all gradients."""
    channels: int
    """Of all batch normalisations."""
    classes: int


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """The least of some times of a work, after one that compiles."""
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def prepared(preset: Preset, group: parallel.Group, n_batch: int) -> Callable[[], object]:
    """A step of training on random data."""
    network, recipe = preset.network, preset.recipe
    rng = np.random.default_rng(0)
    params = network.init(rng, dtype=recipe.dtype)
    velocity = {name: np.zeros_like(params[name]) for name in network.trainable}
    x = rng.normal(size=(n_batch, *network.input_shape)).astype(recipe.dtype)
    y = rng.integers(network.n_classes, size=n_batch)
    return lambda: training_step(preset, params, velocity, x, y, rate=0.0, rng=rng, group=group)


def measured(preset: Preset) -> Cost:
    """From steps of one and of eight blocks by one rank."""
    network = preset.network
    params = network.init(np.random.default_rng(0), dtype=preset.recipe.dtype)
    alone = parallel.Group(Alone())
    few, many = (seconds(prepared(preset, alone, n * parallel.BLOCK)) for n in (1, 8))
    block = (many - few) / 7
    x = np.zeros((64, *network.input_shape), preset.recipe.dtype)
    load = seconds(lambda: np.ascontiguousarray(x[::-1])) / len(x)
    size = sum(params[name].nbytes for name in network.trainable)
    channels = sum(c.synapse.out_shape[0] for c in network.connections if c.batch_norm)
    return Cost(block, load, max(few - block, 0.0), size, channels, network.n_classes)


def compare(preset: Preset, group: parallel.Group, n_batch: int) -> None:
    """A step on the ranks there are, beside the model's, with the latency and bandwidth between them."""
    cost = group.first(lambda: measured(preset))
    some = np.zeros(1 << 18, np.float32)
    latency = seconds(lambda: group.allgather(lambda: None)) / math.ceil(math.log2(group.size))
    bandwidth = some.nbytes * (group.size - 1) / seconds(lambda: group.allgather(lambda: some))
    found = seconds(prepared(preset, group, n_batch))
    compute, messages = step_time(cost, group.size, n_batch, latency, bandwidth)
    if group.is_first:
        print(f"{preset.name}, batch {n_batch}, {group.size} ranks: {1e3 * found:.1f} ms a step, by the model ", end="")
        print(
            f"{1e3 * (compute + messages):.1f} ms ({1e3 * compute:.1f} + {1e3 * messages:.1f}); one rank by the ",
            end="",
        )
        print(f"model {1e3 * step_time(cost, 1, n_batch, 0, 1)[0]:.1f} ms; {1e6 * latency:.0f} us, ", end="")
        print(f"{bandwidth / 1e6:.0f} MB/s between ranks")


def tree_nodes(first: int, stop: int) -> int:
    """Into how many nodes of the tree the blocks first..stop-1 fall."""
    nodes = 0
    while first < stop:
        size = first & -first or 1 << (stop - first).bit_length()
        while first + size > stop:
            size >>= 1
        nodes, first = nodes + 1, first + size
    return nodes


def step_time(cost: Cost, n_ranks: int, batch: int, latency: float, bandwidth: float) -> tuple[float, float]:
    """Seconds of a step on so many ranks: computation, and communication."""
    n_blocks = -(-batch // parallel.BLOCK)
    ends = [-(-n_blocks * rank // n_ranks) for rank in range(n_ranks + 1)]
    shares = list(itertools.pairwise(ends))
    compute = max(stop - first for first, stop in shares) * cost.block + batch * cost.sample + cost.fixed
    if n_ranks == 1:
        return compute, 0.0
    nodes = [tree_nodes(first, stop) for first, stop in shares]
    others = (n_ranks - 1) / n_ranks
    # Signals, statistics of the input, logits, sums of the normalisations: gathered in log2 N rounds by all.
    gathered = batch * (4 * cost.classes + 24) + sum(nodes) * 2 * 40 * cost.channels
    # Gradients: each rank gets its part of every node, in N - 1 messages, and then all parts.
    exchanged = (max(max(nodes), sum(nodes) / n_ranks) + 1) * cost.gradient * others
    rounds = 5 * math.ceil(math.log2(n_ranks)) + n_ranks - 1
    return compute, rounds * latency + (gathered * others + exchanged) / bandwidth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("preset", choices=presets.names())
    parser.add_argument("--batch-size", type=int, default=8192)
    parser.add_argument("--n-steps", type=int)
    parser.add_argument("--latency", type=float, default=2e-6, help="seconds (default 2e-6)")
    parser.add_argument("--bandwidth", type=float, default=1e10, help="bytes per second (default 1e10)")
    args = parser.parse_args()
    preset = presets.load(args.preset, n_steps=args.n_steps)
    preset = replace(preset, recipe=replace(preset.recipe, allow_unconverged=True))
    group = parallel.world()
    numba.set_num_threads(1)
    if group is not None:
        compare(preset, group, args.batch_size)
        return
    cost = measured(preset)
    print(f"{args.preset}: {1e3 * cost.block:.2f} ms a block, {1e3 * cost.fixed:.2f} ms by every rank, ", end="")
    print(f"{1e6 * cost.sample:.2f} us a sample by every rank, {cost.gradient / 1e6:.2f} MB of gradients")
    print(f"batch {args.batch_size}, latency {args.latency:.0e} s, {args.bandwidth:.0e} bytes/s")
    print("ranks  compute ms  messages ms   speed-up  efficiency")
    alone = sum(step_time(cost, 1, args.batch_size, args.latency, args.bandwidth))
    for n in RANKS:
        compute, messages = step_time(cost, n, args.batch_size, args.latency, args.bandwidth)
        gain = alone / (compute + messages)
        print(f"{n:5d}  {1e3 * compute:10.2f}  {1e3 * messages:11.2f}  {gain:9.2f}  {gain / n:10.1%}")


if __name__ == "__main__":
    main()
