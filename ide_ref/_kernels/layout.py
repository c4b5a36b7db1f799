"""How the kernels find a network's weights and positions in memory: runs, weights in blocks, and the rollout's plan.

A plan is made once for a frozen network and serves all its rollouts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from ide_ref._kernels import memory
from ide_ref._kernels._jit import njit
from ide_ref._kernels.memory import LINE
from ide_ref._kernels.propagate import COLUMNS
from ide_ref._kernels.vector import copy_across

# Columns of a plan's table.
SOURCE, C_IN, C_OUT, N_IN, N_OUT, FINE, N_FINE, COARSE, N_COARSE, WEIGHTS, KEEP, DEPTHWISE, N_COLUMNS = range(13)


@dataclass(frozen=True)
class Runs:
    """Ranges of input positions that an output position sees through consecutive taps.

    Attributes
    ----------
    fine, coarse : (R, Q, 3) arrays
        First input position of run r of output position q, the one after the last, and what is to be added to an
        input position for its tap; (0, 0, 0) for none. Fine: one run per tap. Coarse: one per row of the kernel, where
        the taps of a row see consecutive positions; otherwise as fine.
    """

    fine: NDArray[np.int32]
    coarse: NDArray[np.int32]

    @classmethod
    def of(cls, sources: NDArray[np.int32], row: int) -> Runs:
        """Runs of a table (Q, K) of input positions, -1 for none, whose kernel has rows of so many taps."""
        fine, _ = _joined(sources, 1)
        coarse, consecutive = _joined(sources, row)
        return cls(fine, coarse if consecutive else fine)


def _joined(sources: NDArray[np.int32], row: int) -> tuple[NDArray[np.int32], bool]:
    """Runs of ``row`` taps each, and whether all see positions that ascend with the tap, one by one."""
    n_out, n_taps = sources.shape
    seen = sources.reshape(n_out, n_taps // row, row)
    taps = np.arange(n_taps).reshape(n_taps // row, row)
    offset = taps - seen
    some = np.any(seen >= 0, axis=2)
    tap = np.argmax(seen >= 0, axis=2)[:, :, None]
    first = np.take_along_axis(seen, tap, axis=2)[:, :, 0]
    added = np.take_along_axis(offset, tap, axis=2)[:, :, 0]
    last = first + np.sum(seen >= 0, axis=2)
    consecutive = bool(np.all((seen < 0) | (offset == added[:, :, None])))
    runs = np.where(some[:, :, None], np.stack([first, last, added], axis=2), 0)
    return np.ascontiguousarray(runs.transpose(1, 0, 2), np.int32), consecutive


@njit(parallel=True)
def _lay_in_blocks(taps, across, n_taps, c_in, c_out, out):
    """Taps (K, C_in, C_out), or ``across`` (K, C_out, C_in), by blocks of COLUMNS outputs: (K, C_in, its outputs) each.

    Both are flat; overwrites out.
    """
    lanes = LINE // out.itemsize
    share = lanes if across else COLUMNS
    n_parts = (c_out + share - 1) // share
    for task in prange(n_taps * n_parts):
        k = task // n_parts
        i = task % n_parts * share
        n = min(share, c_out - i)
        j = i // COLUMNS * COLUMNS
        width = min(COLUMNS, c_out - j)
        to = n_taps * c_in * j + k * c_in * width + i - j
        if across and n == lanes:
            copy_across(out, to, width, taps, (k * c_out + i) * c_in, c_in, c_in)
        elif across:
            for c in range(c_in):
                for d in range(n):
                    out[to + c * width + d] = taps[(k * c_out + i + d) * c_in + c]
        else:
            for c in range(c_in):
                for d in range(n):
                    out[to + c * width + d] = taps[(k * c_in + c) * c_out + i + d]


def in_blocks(taps: NDArray, dtype: np.dtype) -> NDArray:
    """Taps (K, C_in, C_out) as ``propagate.propagate`` reads them, flat: by blocks of output channels."""
    across = taps.transpose(0, 2, 1).flags.c_contiguous and not taps.flags.c_contiguous
    if taps.shape[2] <= COLUMNS and not across:
        return memory.aligned(taps, dtype).reshape(-1)
    # Transposed taps are read as they lie.
    read = np.ascontiguousarray(taps.transpose(0, 2, 1) if across else taps, dtype)
    out = memory.empty(taps.size, dtype)
    n_taps, c_in, c_out = taps.shape
    _lay_in_blocks(read.reshape(-1), across, n_taps, c_in, c_out, out)
    return out


class Link(NamedTuple):
    """A connection of a plan: from population ``source``, −1 for the input, to ``target``.

    ``synapse`` is an ``ide_ref.synapses.Synapse``, ``taps`` (K, C_in, C_out) what a spike adds, and ``keep`` (B, n_to)
    the dropout mask or None.
    """

    source: int
    target: int
    synapse: Any
    taps: NDArray
    keep: NDArray | None


class Plan(NamedTuple):
    """The graph as the rollout reads it.

    Attributes
    ----------
    incoming : (L + 1,) int array
        Rows incoming[l]:incoming[l + 1] of ``table`` end in population l.
    table : (n_connections, N_COLUMNS) int array
        See the column names above; source L is the input.
    runs, weights, keep : flat arrays
        The table points into them; ``keep`` is (B, n_to) per connection.
    """

    incoming: NDArray[np.int64]
    table: NDArray[np.int64]
    runs: NDArray[np.int32]
    weights: NDArray
    keep: NDArray


def plan(links: Iterable[Link], n_populations: int, dtype: np.dtype) -> Plan:
    """Links sorted by target, their arrays laid end to end."""
    runs: list[NDArray] = []
    weights: list[NDArray] = []
    keeps: list[NDArray] = []

    def laid(parts: list[NDArray], part: NDArray) -> int:
        """Where a part comes to lie behind the others."""
        at = sum(before.size for before in parts)
        parts.append(part.ravel())
        return at

    def joined(parts: list[NDArray], dtype: np.dtype) -> NDArray:
        if len(parts) == 1:
            return memory.aligned(parts[0], dtype)
        out = memory.empty(sum(part.size for part in parts), dtype)
        return np.concatenate(parts, out=out) if parts else out

    def kept(keep: NDArray | None) -> int:
        """Where a mask lies, -1 for none."""
        if keep is None:
            return -1
        return laid(keeps, keep) if room is None else memory.place(keep, room)

    ordered = sorted(links, key=lambda link: link.target)
    # Masks are as large as the potentials: where all lie in one array, as `freeze` draws them, it is taken as it is.
    room = _room_of([link.keep for link in ordered if link.keep is not None], dtype)
    table = np.empty((len(ordered), N_COLUMNS), np.int64)
    for row, (source, _, synapse, taps, keep) in zip(table, ordered, strict=True):
        fine, coarse = synapse.runs.fine, synapse.runs.coarse
        row[SOURCE] = n_populations if source < 0 else source
        row[C_IN], row[C_OUT] = synapse.channels
        row[N_IN], row[N_OUT] = len(synapse.targets), fine.shape[1]
        row[FINE], row[N_FINE] = laid(runs, fine), len(fine)
        row[COARSE], row[N_COARSE] = laid(runs, coarse), len(coarse)
        row[WEIGHTS] = laid(weights, taps if synapse.depthwise else in_blocks(taps, dtype))
        row[KEEP] = kept(keep)
        row[DEPTHWISE] = synapse.depthwise
    incoming = np.searchsorted([link.target for link in ordered], np.arange(n_populations + 1))
    return Plan(
        incoming.astype(np.int64, copy=False), table, joined(runs, np.dtype(np.int32)), joined(weights, dtype),
        joined(keeps, dtype) if room is None else room,
    )  # fmt: skip


def _room_of(masks: list[NDArray], dtype: np.dtype) -> NDArray | None:
    """The one flat array in which all of the masks lie, each in one piece; None where there is none."""
    room = masks[0].base if masks else None
    if not isinstance(room, np.ndarray) or room.ndim != 1 or room.dtype != dtype or not room.flags.c_contiguous:
        return None
    return room if all(mask.base is room and mask.flags.c_contiguous for mask in masks) else None
