"""Data-parallel training: each batch split over processes, with the same bits from any number of them.

A batch is cut into blocks of `BLOCK` samples, whatever the number of ranks, and every block is simulated and
differentiated as a small batch of its own, by one rank. Three things cross blocks: the statistics of batch
normalisation, the loss, which every rank computes from all logits, and the sums of the gradients. All sums over blocks
follow one binary tree over the blocks' places in the batch, so that it does not matter who adds what.

``docs/parallel.md`` has a model of what that costs.
"""

from __future__ import annotations

import itertools
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ide_ref import _threads, constraints, solvers
from ide_ref._kernels import elementwise as _elementwise
from ide_ref.constraints import BatchNorm
from ide_ref.equilibrium import Linearisation
from ide_ref.implicit import Asked, Backward, linearisations, solve_beta
from ide_ref.maps import AffineMap, BatchNormCache, Frozen, Pullback, fold, on_batch
from ide_ref.network import INPUT, Network, Params
from ide_ref.presets import Preset, Recipe
from ide_ref.simulation import Rates, simulate
from ide_ref.solvers import Solution
from ide_ref.synapses import to_channels_last

BLOCK = 8
"""Samples that are simulated and differentiated together. Another number gives other last bits."""

SLOW, LATE = 1.5, 1.0
"""A rank is named in the log when a block takes it so many times as long as the median, and so many seconds in all."""

PATIENCE = 10.0
"""Seconds within which all ranks must fail together; a failure of one alone ends the others after that."""

LAUNCHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Where Open MPI, and MPICH and its kin, tell a process how many ranks were started."""

T = TypeVar("T")


class Communicator(Protocol):
    """What is used of mpi4py's communicators."""

    @property
    def rank(self) -> int:
        """Of this process, from 0."""

    @property
    def size(self) -> int:
        """Number of ranks."""

    def allgather(self, sendobj: Any) -> list[Any]:
        """What each rank gave, in their order, on every rank."""

    def alltoall(self, sendobj: Sequence[Any]) -> list[Any]:
        """What each rank gave for this one, in their order."""


class Group:
    """Ranks that train together: each calls the same methods in the same order.

    Parameters
    ----------
    comm : Communicator
    """

    def __init__(self, comm: Communicator) -> None:
        self.rank, self.size = comm.rank, comm.size
        self._comm = comm
        self._seconds, self._n_blocks = 0.0, 0
        self.hosts: list[str] = comm.allgather(socket.gethostname())
        """By rank."""

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files and logs."""
        return self.rank == 0

    def allgather(self, work: Callable[[], T]) -> list[T]:
        """What `work` gives on each rank, on every rank; if it fails on one, that error is raised on all."""
        return self._exchange(self._comm.allgather, work, lambda *told: told)

    def alltoall(self, work: Callable[[], Sequence[T]]) -> list[T]:
        """Of a value for each rank, those that are for this one; errors as in `allgather`."""
        return self._exchange(self._comm.alltoall, work, lambda error, values: [(error, v) for v in values])

    def first(self, work: Callable[[], T]) -> T:
        """What `work` gives on the first rank, where alone it is called."""
        return self.allgather(lambda: work() if self.is_first else None)[0]  # type: ignore[return-value]

    def _exchange(self, exchange: Callable[[Any], list[Any]], work: Callable[[], Any], form: Callable) -> list[Any]:
        error: Exception | None = None
        try:
            value = work()
        except Exception as found:
            error, value = found, [None] * self.size
        told = exchange(form(error, value))
        for error, _ in told:
            if error is not None:
                raise error
        return [value for _, value in told]

    def count(self, blocks: range) -> None:
        """Note blocks whose time will be counted."""
        self._n_blocks += len(blocks)

    def timed(self, work: Callable[[], T]) -> Callable[[], T]:
        """The same work, its time counted among that of this rank's blocks."""

        def _timed() -> T:
            began = time.perf_counter()
            try:
                return work()
            finally:
                self._seconds += time.perf_counter() - began

        return _timed

    def slow(self) -> str:
        """Which ranks worked long on a block since the last call of this, in words; empty for none."""
        told = self.allgather(lambda: (self._seconds, self._n_blocks))
        self._seconds, self._n_blocks = 0.0, 0
        per_block = {rank: seconds / n for rank, (seconds, n) in enumerate(told) if n}
        usual = sorted(per_block.values())[(len(per_block) - 1) // 2]
        parts = [
            f"rank {rank} on {self.hosts[rank]} is slow: a block of samples took it {1e3 * seconds:.0f} ms, "
            f"the median of all ranks is {1e3 * usual:.0f} ms"
            for rank, seconds in per_block.items()
            if seconds > SLOW * usual and (seconds - usual) * told[rank][1] > LATE
        ]
        return "; ".join(parts)

    def blocks(self, n_batch: int) -> range:
        """Those of this rank, of a batch; the first rank has one."""
        n_blocks = -(-n_batch // BLOCK)
        first, stop = (-(-n_blocks * rank // self.size) for rank in (self.rank, self.rank + 1))
        return range(first, stop)


class _Yielding:
    """MPI's communicator where there are fewer free processors than ranks: its own waiting would keep them busy."""

    def __init__(self, comm: Any) -> None:
        self.comm, self.rank, self.size = comm, comm.rank, comm.size

    def _wait(self) -> None:
        arrived = self.comm.Ibarrier()
        while not arrived.Test():
            time.sleep(1e-4)

    def allgather(self, sendobj: Any) -> list[Any]:
        self._wait()
        return self.comm.allgather(sendobj)

    def alltoall(self, sendobj: Sequence[Any]) -> list[Any]:
        self._wait()
        return self.comm.alltoall(sendobj)


def world(*, asked: bool = False) -> Group | None:
    """The ranks that an MPI launcher started, each with its share of its host's threads.

    None where this process is alone, unless a group of one is asked for.

    Raises
    ------
    ModuleNotFoundError
        mpi4py is not installed.
    ValueError
        mpi4py belongs to another MPI than the launcher.
    """
    started = max(int(os.environ.get(name, 1)) for name in LAUNCHERS)
    if started == 1 and not asked:
        return None
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    if comm.size < started:
        raise ValueError(
            f"{started} processes were started, but mpi4py sees {comm.size}; expected mpi4py and mpiexec of one MPI"
        )
    import numba

    neighbours = comm.allgather(socket.gethostname()).count(socket.gethostname())
    crowded = neighbours > numba.get_num_threads() or _threads.others_run()
    numba.set_num_threads(max(1, numba.get_num_threads() // neighbours))
    # All wait in one way, for a barrier is met by all or none.
    return Group(_Yielding(comm) if any(comm.allgather(crowded)) else comm)


@contextmanager
def ending_together(group: Group) -> Iterator[None]:
    """Of processes under MPI: an error of all is told by the first rank alone; one that a rank has alone ends all."""
    from mpi4py import MPI

    failed = MPI.COMM_WORLD.Dup()
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        all_failed, deadline = failed.Ibarrier(), time.monotonic() + PATIENCE
        while not (together := all_failed.Test()) and time.monotonic() < deadline:
            time.sleep(0.02)
        if not together:
            where = f"rank {group.rank} of {group.size} on {group.hosts[group.rank]}"
            told = " ".join(str(error).split()) or type(error).__name__
            sys.stderr.write(f"ide-ref: {where}: {told}; the run ends, its last checkpoint stays for --resume\n")
            sys.stderr.flush()
            MPI.COMM_WORLD.Abort(1)
        if not group.is_first:
            raise SystemExit(0) from None
        raise


class Node(NamedTuple):
    """The sum of 2^level blocks, from block place · 2^level on."""

    level: int
    place: int
    value: Any


def partial_sums(nodes: Sequence[Node], add: Callable[[Any, Any], Any]) -> list[Node]:
    """Nodes of the tree, in the blocks' order, siblings added wherever both are there."""
    done: list[Node] = []
    for node in nodes:
        done.append(node)
        while len(done) > 1 and done[-2][:2] == (done[-1].level, done[-1].place - 1) and done[-1].place % 2:
            right, left = done.pop(), done.pop()
            done.append(Node(left.level + 1, left.place // 2, add(left.value, right.value)))
    return done


def whole_sum(nodes: Sequence[Node], add: Callable[[Any, Any], Any]) -> Any:
    """Of all blocks: what no sibling is there for is added from the right."""
    *rest, last = partial_sums(nodes, add)
    total = last.value
    for node in reversed(rest):
        total = add(node.value, total)
    return total


class Sums(NamedTuple):
    """Of one batch normalisation over some samples: (C,) arrays of float64."""

    n: int
    """Numbers per channel."""
    mean: NDArray
    spread: NDArray
    """Σ (z − mean)²."""
    delta: NDArray
    """Σ ∂L/∂y."""
    along: NDArray
    """Σ ∂L/∂y (z − mean)."""

    @classmethod
    def of(cls, z: NDArray, n_channels: int, delta: NDArray | None = None) -> Sums:
        """Of z and ∂L/∂y, (B, n); without the latter its sums are 0."""
        rows = np.ascontiguousarray(z).reshape(-1, n_channels)
        mean, variance, none = np.empty(n_channels), np.empty(n_channels), np.zeros(n_channels)
        _elementwise.moments(rows, mean, variance)
        sums = cls(len(rows), mean, len(rows) * variance, none, none)
        if delta is None:
            return sums
        columns = delta.reshape(rows.shape).astype(np.float64)
        return sums._replace(delta=columns.sum(axis=0), along=(columns * (rows - mean)).sum(axis=0))

    def plus(self, other: Sums) -> Sums:
        """Of the samples of both. Source: Chan, Golub and LeVeque (1979)."""
        n = self.n + other.n
        apart = other.mean - self.mean
        step = apart * (other.n / n)
        return Sums(
            n,
            self.mean + step,
            self.spread + other.spread + apart * step * self.n,
            self.delta + other.delta,
            # Σ δ (z − mean) of each half, from its own mean to that of both.
            self.along - step * self.delta + other.along + (apart - step) * other.delta,
        )

    def cache(self, name: str, z: NDArray) -> BatchNormCache:
        """What a batch normalisation sees: z of some samples, (B, n), the statistics of all."""
        with np.errstate(over="ignore"):
            return BatchNormCache.checked(name, z, self.mean.astype(z.dtype), (self.spread / self.n).astype(z.dtype))


def check(preset: Preset) -> None:
    """Refuse what is not split over ranks.

    Raises
    ------
    ValueError
        Backpropagation through time, or a profile that couples the samples of a batch in (BETA).
    """
    if preset.recipe.method != "ide":
        raise ValueError(f"method is {preset.recipe.method!r}; over several ranks expected 'ide'")
    if preset.profile.batch_statistics_in_beta or preset.profile.unbiased_spike_statistics:
        raise ValueError(
            "the profile couples the samples of a batch in simulation or beta (batch_statistics_in_beta, "
            "unbiased_spike_statistics); over several ranks expected one without, such as the paper's"
        )


@dataclass(frozen=True)
class Gradients(Backward):
    """As `ide_ref.Backward`, of a whole batch over all ranks; ``beta`` and ``asked`` are of no sample.

    ``solution`` has residuals of all samples and the most iterations of any block, but no x; ``frozen`` is that of a
    block, or without a batch where this rank has none.
    """

    group: Group
    own: tuple[Backward, ...]
    """This rank's blocks."""

    @property
    def errors(self) -> NDArray:
        """(B, N), as of `ide_ref.Backward`, of all samples; every rank has to ask for it."""
        return np.concatenate([e for told in self.group.allgather(lambda: [b.errors for b in self.own]) for e in told])


class _Back(NamedTuple):
    """(BETA) of one block, before anything is pulled back to the parameters."""

    backward: Backward
    at: Linearisation
    delta: NDArray
    x_mean: NDArray


def differentiate(
    group: Group,
    network: Network,
    params: Mapping[str, NDArray],
    x: NDArray,
    recipe: Recipe,
    judge: Callable[[NDArray], tuple[float, NDArray]],
    *,
    rng: np.random.Generator,
) -> tuple[NDArray, float, Rates, Gradients]:
    """Freeze, simulate, read out and differentiate one batch over all ranks.

    Parameters
    ----------
    x : (B, *input_shape) or (B, T, *input_shape) array
        The whole batch, the same on every rank.
    judge : callable
        From logits (B, n_classes) to loss and ∂L/∂o, the same on every rank.
    rng : Generator
        Draws the dropout masks as one process alone would draw them.

    Returns
    -------
    logits : (B, n_classes) array
    loss : float
    rates : Rates
        Counts of all samples, but rates of none.
    gradients : Gradients

    Raises
    ------
    ValueError, NotConverged
        As of the functions that one process calls; what happens on one rank is raised on all.
    """
    blocks = group.blocks(len(x))
    group.count(blocks)
    folded = fold(network, params, training=True)
    x = network.check_input(x, folded.dtype)
    frozen = _frozen(group, folded, x, rng)
    own = [x[_rows(k, len(x))] for k in blocks]

    simulated: list[Rates] = []

    def counted() -> list[tuple[NDArray, ...]]:
        simulated.extend(
            simulate(f, part, recipe.n_steps).without_potentials() for f, part in zip(frozen, own, strict=True)
        )
        return [(f.read_out(r), r.n_spikes, r.n_events, r.margin) for f, r in zip(frozen, simulated, strict=True)]

    told = [block for rank in group.allgather(group.timed(counted)) for block in rank]
    logits, n_spikes, n_events, margin = (np.concatenate(part) for part in zip(*told, strict=True))
    loss, d_logits = judge(logits)

    found: list[_Back] = []

    def solved() -> tuple[list[Solution], list[list[Node]]]:
        parts = (d_logits[_rows(k, len(x))] for k in blocks)
        found.extend(_back(f, r, d, recipe) for f, r, d in zip(frozen, simulated, parts, strict=True))
        solutions = [replace(b.backward.solution, x=b.backward.solution.x[:, :0], aux=None) for b in found]
        return solutions, [
            partial_sums([Node(0, k, _sums(i, b)) for k, b in zip(blocks, found, strict=True)], Sums.plus)
            for i, m in enumerate(folded.maps)
            if m.norm is not None
        ]

    answers = group.allgather(group.timed(solved))
    names = [m.name for m in folded.maps if m.norm is not None]
    sums = {
        name: whole_sum([node for _, nodes in answers for node in nodes[i]], Sums.plus) for i, name in enumerate(names)
    }
    gradients, statistics = _pulled_back(group, network.edited(folded, x), found, blocks, sums)
    none = np.empty((0, network.state_size), folded.dtype)
    rates = Rates(network, none, none, x[:0], recipe.n_steps, n_spikes, n_events, margin)
    return (
        logits,
        loss,
        rates,
        Gradients(
            gradients,
            {**folded.statistics, **statistics},
            none,
            _joined([s for solutions, _ in answers for s in solutions]),
            frozen[0] if frozen else folded,
            Asked(rates, d_logits[:0], "closed", False),
            group,
            tuple(b.backward for b in found),
        ),
    )


def _rows(block: int, n_batch: int) -> slice:
    return slice(block * BLOCK, min((block + 1) * BLOCK, n_batch))


def _frozen(group: Group, folded: Frozen, x: NDArray, rng: np.random.Generator) -> list[Frozen]:
    """The network for each of this rank's blocks, with the statistics of the whole batch x."""
    network, blocks = folded.network, group.blocks(len(x))
    keep = {
        c.name: _masks(len(x), c.synapse.n_out, blocks, c.dropout, rng, folded.dtype)
        for c in network.connections
        if c.dropout > 0
    }
    normalised = [
        m for c, m in zip(network.connections, folded.maps, strict=True) if c.batch_norm and c.source == INPUT
    ]
    means: list[NDArray] = []
    zs: list[list[NDArray]] = []

    def sums() -> list[list[Node]]:
        means.extend(network.mean_input(x[_rows(k, len(x))]) for k in blocks)
        inputs = [to_channels_last(mean, network.input_shape) for mean in means]
        zs.extend([m.pre_activation(part) for part in inputs] for m in normalised)
        return [
            partial_sums(
                [Node(0, k, Sums.of(z, m.synapse.out_shape[0])) for k, z in zip(blocks, of_map, strict=True)],
                Sums.plus,
            )
            for m, of_map in zip(normalised, zs, strict=True)
        ]

    told = group.allgather(sums)
    totals = [whole_sum([node for rank in told for node in rank[i]], Sums.plus) for i in range(len(normalised))]
    return [
        on_batch(
            folded,
            x[_rows(k, len(x))],
            means[j],
            {name: masks[j] for name, masks in keep.items()},
            {m.name: total.cache(m.name, z[j]) for m, total, z in zip(normalised, totals, zs, strict=True)},
        )
        for j, k in enumerate(blocks)
    ]


def _masks(
    n_batch: int, n_out: int, blocks: range, rate: float, rng: np.random.Generator, dtype: np.dtype
) -> list[NDArray]:
    """The blocks' rows of the mask (B, n_out) that `constraints.dropout_mask` draws for the whole batch.

    The generator ends where that leaves it. Blocks begin with a new draw, as their size is a multiple of 4.
    """
    rows = [min(k * BLOCK, n_batch) for k in (blocks.start, blocks.stop)]
    before, after = (-(-row * n_out // 4) for row in rows)
    bits: Any = rng.bit_generator
    bits.advance(before)
    if rows[0] == rows[1]:
        masks: list[NDArray] = []
    else:
        mask = constraints.dropout_mask((rows[1] - rows[0], n_out), rate, rng, dtype)
        masks = [mask[start : start + BLOCK] for start in range(0, len(mask), BLOCK)]
    bits.advance(-(-n_batch * n_out // 4) - after)
    return masks


def _back(frozen: Frozen, rates: Rates, d_logits: NDArray, recipe: Recipe) -> _Back:
    """Readout and (BETA) of one block; its gradients are the readout's."""
    d_logits = frozen.check_d_logits(d_logits, len(rates.a))
    g, grads = frozen.read_out_pull_back(rates, d_logits)
    jacobian, at = linearisations(frozen, rates)
    beta, delta, solution = solve_beta(
        jacobian, g, at=at, solver=recipe.solver, tol=recipe.tol, max_iter=recipe.max_iter,
        allow_unconverged=recipe.allow_unconverged,
    )  # fmt: skip
    asked = Asked(rates, d_logits, "closed", False)
    return _Back(Backward(grads, {}, beta, solution, frozen, asked), at, delta, rates.x_mean)


def _ends(i: int, b: _Back) -> tuple[NDArray, NDArray, NDArray | None]:
    """Of connection i of a block: ∂L/∂(its output before dropout), what it sent, and what its normalisation saw."""
    net, m, cache = b.at.frozen.network, b.at.maps[i], b.at.caches[i]
    source, target = net.edges[i]
    delta = b.delta[:, net.slice_of(target)]
    if source < 0:
        sent = to_channels_last(b.x_mean, net.input_shape)
    else:
        sent = (b.at.forward if source < target else b.at.feedback)[:, net.slice_of(source)]
    cache = m.cache(sent) if cache is None else cache
    delta = delta if m.keep is None else constraints.multiply(m.keep, delta)
    return delta, sent, None if cache is None else cache.z


def _sums(i: int, b: _Back) -> Sums:
    """Of the normalisation of connection i of a block."""
    delta, _, z = _ends(i, b)
    return Sums.of(z, b.at.maps[i].synapse.out_shape[0], delta)  # type: ignore[arg-type]  # it has one


class _Way(NamedTuple):
    """From ∂L/∂y of one batch normalisation to ∂L/∂z = scale ∂L/∂y + along (z − mean) + constant, (C,) arrays."""

    scale: NDArray
    along: NDArray
    constant: NDArray
    norm: BatchNorm

    def back(self, delta: NDArray, z: NDArray) -> NDArray:
        """∂L/∂z of some samples, (B, n)."""
        d_z = constraints.affine(delta, self.scale, np.zeros_like(self.scale), None)
        if self.norm.from_batch:
            centred = (z.reshape(-1, len(self.scale)) - self.norm.mean).reshape(z.shape)
            constraints.affine(centred, self.along, self.constant, None, d_z)
        return d_z


def _normalisation(pullback: Pullback, m: AffineMap, sums: Sums) -> tuple[_Way, Params, Params]:
    """Of one connection, from the sums over the whole batch: the way back, gradients, running statistics."""
    name, dtype = m.name, m.taps.dtype
    cache = sums.cache(name, np.empty((0, m.synapse.n_out), dtype))
    if pullback.connection.source == INPUT:
        m = m.with_statistics(cache)
    norm, _, statistics = pullback.normalisation(m, cache.z, cache)  # type: ignore[misc]  # it has one
    # Of statistics that are the batch's own the rounded mean is taken for the exact one, but where it meets z.
    apart = sums.mean - norm.mean
    d_weight = (sums.along if norm.from_batch else sums.along + apart * sums.delta) / norm.deviation
    along = -norm.scale * d_weight / (sums.n * norm.deviation)
    constant = -norm.scale * sums.delta / sums.n - along * apart
    grads = {f"{name}.bn_weight": d_weight.astype(dtype), f"{name}.bn_bias": sums.delta.astype(dtype)}
    return _Way(norm.scale, along.astype(dtype), constant.astype(dtype), norm), grads, statistics


def _hebbian(b: _Back, ways: Mapping[str, _Way]) -> Params:
    """(HEBB) of one block: ∂L/∂ of weights after the restriction, and of biases."""
    grads: Params = {}
    for i, pullback in enumerate(b.at.frozen.pullbacks):
        delta, sent, z = _ends(i, b)
        if z is not None:
            delta = ways[pullback.connection.name].back(delta, z)
        grads |= pullback.products(delta, sent)
    return grads


def _pulled_back(
    group: Group, folded: Frozen, found: list[_Back], blocks: range, sums: Mapping[str, Sums]
) -> tuple[Params, Params]:
    """Gradients of all parameters, summed over all blocks, and the running statistics."""
    network = folded.network
    names = [n for n in network.trainable if n.endswith((".weight", ".bias"))]
    shapes = [folded.params[name].shape for name in names]
    ends = np.cumsum([0, *(math.prod(shape) for shape in shapes)])
    # Each rank sums a part of the gradients, and tells its sums to all.
    parts = [int(ends[-1]) * rank // group.size for rank in range(group.size + 1)]
    ways: dict[str, _Way] = {}
    grads: Params = {}
    statistics: Params = {}
    for pullback, m in zip(folded.pullbacks, folded.maps, strict=True):
        if m.name in sums:
            ways[m.name], of_norm, updated = _normalisation(pullback, m, sums[m.name])
            grads.update(of_norm)
            statistics.update(updated)

    def own() -> list[list[Node]]:
        nodes: list[Node] = []
        for k, b in zip(blocks, found, strict=True):
            of_block = {**b.backward.gradients, **_hebbian(b, ways)}
            flat = np.concatenate([np.ravel(of_block[name]) for name in names])
            nodes = partial_sums([*nodes, Node(0, k, flat)], _add_to)
        return [[n._replace(value=n.value[start:end]) for n in nodes] for start, end in itertools.pairwise(parts)]

    nodes = [node for told in group.alltoall(group.timed(own)) for node in told]
    flat = np.concatenate(group.allgather(lambda: whole_sum(nodes, _add_to)))
    summed = {
        name: flat[start:end].reshape(shape)
        for name, shape, (start, end) in zip(names, shapes, itertools.pairwise(ends), strict=True)
    }
    for pullback in folded.pullbacks:
        weight = f"{pullback.connection.name}.weight"
        if weight in summed:
            summed.update(pullback.of_weight(summed[weight]))
    return {**grads, **summed}, statistics


def _add_to(left: NDArray, right: NDArray) -> NDArray:
    return np.add(left, right, out=left)


def _joined(solutions: Sequence[Solution]) -> Solution:
    """How (BETA) was solved, of all blocks."""
    found: dict[str, Any] = {
        name: np.concatenate([getattr(s, name) for s in solutions]) for name in ("residual", "relative", "rounding")
    }
    worst = max(solutions, key=lambda s: solvers.STATUSES.index(s.status))
    found |= {name: max(getattr(s, name) for s in solutions) for name in ("iterations", "n_products")}
    return replace(worst, **found, history=())
