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
