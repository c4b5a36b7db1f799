"""Where arrays lie in memory."""

import math

import numpy as np
from numpy.typing import DTypeLike, NDArray

LINE = 64
"""Bytes of a cache line, and of the widest vectors."""


def empty(shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray:
    """``np.empty`` that begins at a cache line: a vector that straddles two costs two loads."""
    dtype = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, int) else shape
    n_bytes = math.prod(shape) * dtype.itemsize
    buffer = np.empty(n_bytes + LINE, np.uint8)
    return np.ndarray(shape, dtype, buffer, -_address(buffer) % LINE)


def _address(array: NDArray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def aligned(array: NDArray, dtype: DTypeLike | None = None) -> NDArray:
    """The array itself if it is contiguous, of this dtype and begins at a cache line; otherwise a copy that does."""
    dtype = array.dtype if dtype is None else np.dtype(dtype)
    if array.dtype == dtype and array.flags.c_contiguous and _address(array) % LINE == 0:
        return array
    copy = empty(array.shape, dtype)
    copy[...] = array
    return copy


def rows(x: NDArray) -> tuple[NDArray, int]:
    """The memory of a matrix's rows as one flat array, and how far a row is from the next.

    So a slice of columns is read, and written, where it lies. Where the numbers of a row do not lie side by side, that
    of a copy.
    """
    n_rows, n = x.shape
    if x.flags.c_contiguous or x.strides[1] != x.itemsize or x.strides[0] % x.itemsize or x.strides[0] < n * x.itemsize:
        return np.ascontiguousarray(x).reshape(-1), n
    row = x.strides[0] // x.itemsize
    return np.lib.stride_tricks.as_strided(x, ((n_rows - 1) * row + n,), (x.itemsize,)), row
