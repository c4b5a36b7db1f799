"""Where arrays lie in memory, and whose memory was that before."""

from __future__ import annotations

import contextlib
import ctypes
import math

import numpy as np
from numpy.typing import DTypeLike, NDArray

LINE = 64
"""Bytes of a cache line, of a tile's row, and of the widest vectors."""

LARGE = 1 << 20
"""Bytes from which memory is kept for the next array of the same size, when the last array on it is gone.

A training step asks for the same arrays again and again. From the system each comes as pages that it clears first: in
the larger networks a tenth of a step.
"""

MOST = 512 << 20
"""Bytes kept at most; what was given back first is let go first."""

_LENT, _PEAK = range(2)
_sizes = [0, 0]
"""Bytes that arrays lie on now, and the most that did."""

_spare: dict[int, NDArray] = {}
"""What is kept, by its address, in the order in which it was given back."""


class _Lent:
    """Memory of an array; kept for another when it is garbage, which is when no array lies on it any more."""

    __slots__ = ("__array_interface__", "_memory")

    def __init__(self, memory: NDArray, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._memory = memory
        _sizes[_LENT] += memory.size
        _sizes[_PEAK] = max(_sizes)
        self.__array_interface__ = {
            "shape": shape, "typestr": dtype.str, "data": (_address(memory), False), "version": 3
        }  # fmt: skip

    def __del__(self) -> None:
        # While Python ends, what this needs may be gone.
        with contextlib.suppress(Exception):
            _sizes[_LENT] -= self._memory.size
            _let_go(spare() + self._memory.size - MOST)
            _spare[_address(self._memory)] = self._memory


def spare() -> int:
    """Bytes that are kept."""
    return sum(memory.size for memory in tuple(_spare.values()))


def _let_go(n_bytes: int) -> None:
    """Give so many bytes of what is kept back to the system, as far as there are."""
    for address, memory in tuple(_spare.items()):
        if n_bytes <= 0:
            break
        n_bytes -= memory.size
        _spare.pop(address, None)


def _take(n_bytes: int) -> NDArray | None:
    """Memory of that size that was kept, the last that came; None for none."""
    for address, memory in reversed(tuple(_spare.items())):
        # Another thread may have been quicker.
        if memory.size == n_bytes and _spare.pop(address, None) is not None:
            return memory
    return None


def empty(shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray:
    """``np.empty`` that begins at a cache line: a vector that straddles two costs two loads."""
    dtype = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, int) else shape
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes < LARGE:
        buffer, start = _new(n_bytes)
        return np.ndarray(shape, dtype, buffer, start)
    memory = _take(n_bytes)
    if memory is None:
        # Keeping memory never makes a process larger than its arrays once were.
        together = _sizes[_LENT] + n_bytes
        _let_go(together + spare() - max(_sizes[_PEAK], together))
        buffer, start = _new(n_bytes)
        memory = buffer[start : start + n_bytes]
    return np.asarray(_Lent(memory, shape, dtype))


def _new(n_bytes: int) -> tuple[NDArray, int]:
    """Memory with room for so many bytes, and where in it a cache line begins."""
    buffer = np.empty(n_bytes + LINE, np.uint8)
    # The quickest way to its address.
    return buffer, -ctypes.addressof(ctypes.c_char.from_buffer(buffer.data)) % LINE


def _keep_small_memory() -> None:
    """Let glibc keep what small arrays leave behind.

    It gives the top of its heap back to the system when more than a bound is free there, and what it is asked for then
    comes as pages that are cleared first. The bound is twice the size of the largest block that came straight from the
    system and was freed; this is one.
    """
    np.empty(4 * LARGE, np.uint8)


_keep_small_memory()


def zeros(shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray:
    """The same, all 0."""
    array = empty(shape, dtype)
    array[...] = 0
    return array


def copied(array: NDArray, dtype: DTypeLike | None = None) -> NDArray:
    """A contiguous copy that begins at a cache line."""
    copy = empty(array.shape, array.dtype if dtype is None else dtype)
    copy[...] = array
    return copy


def _address(array: NDArray) -> int:
    return int(array.__array_interface__["data"][0])


def aligned(array: NDArray, dtype: DTypeLike | None = None) -> NDArray:
    """The array itself if it is contiguous, of this dtype and begins at a cache line; otherwise a copy that does."""
    dtype = array.dtype if dtype is None else np.dtype(dtype)
    if array.dtype == dtype and array.flags.c_contiguous and _address(array) % LINE == 0:
        return array
    return copied(array, dtype)


def place(part: NDArray, room: NDArray) -> int:
    """At which number of a flat array one that lies in it begins."""
    return (_address(part) - _address(room)) // room.itemsize


def rows(x: NDArray, *, written: bool = False) -> tuple[NDArray, int]:
    """The memory of a matrix's rows as one flat array, and how far a row is from the next.

    So a slice of columns is read, and written, where it lies. Where the numbers of a row do not lie side by side, that
    of a copy, or a ValueError if it is to be written.
    """
    n_rows, n = x.shape
    if x.flags.c_contiguous:
        return x.reshape(-1), n
    if x.strides[1] != x.itemsize or x.strides[0] % x.itemsize or x.strides[0] < n * x.itemsize:
        if written:
            raise ValueError(f"out has strides {x.strides}; expected rows whose numbers lie side by side in memory")
        return np.ascontiguousarray(x).reshape(-1), n
    row = x.strides[0] // x.itemsize
    return np.lib.stride_tricks.as_strided(x, ((n_rows - 1) * row + n,), (x.itemsize,)), row
