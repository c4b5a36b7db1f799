"""Where arrays lie in memory: a vector that straddles two cache lines costs two loads."""

from __future__ import annotations

import ctypes
import math

import numpy as np
from numpy.typing import DTypeLike, NDArray

LINE = 64
"""Bytes of a cache line, of a tile's row, and of the widest vectors."""


def empty(shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray:
    """``np.empty`` that begins at a cache line."""
    dtype = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, int) else shape
    buffer = np.empty(math.prod(shape) * dtype.itemsize + LINE, np.uint8)
    # The quickest way to its address.
    start = -ctypes.addressof(ctypes.c_char.from_buffer(buffer.data)) % LINE
    return np.ndarray(shape, dtype, buffer, start)


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


def aligned(array: NDArray, dtype: DTypeLike | None = None) -> NDArray:
    """The array itself if it is contiguous, of this dtype and begins at a cache line; otherwise a copy that does."""
    dtype = array.dtype if dtype is None else np.dtype(dtype)
    if array.dtype == dtype and array.flags.c_contiguous and array.__array_interface__["data"][0] % LINE == 0:
        return array
    return copied(array, dtype)


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
