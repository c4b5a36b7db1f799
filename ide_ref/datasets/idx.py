"""IDX files, the format of MNIST and its relatives, plain or gzip.

An IDX file is two zero bytes, a type code, the number of dimensions, each dimension as a big-endian
32-bit count, and the elements, big-endian, last dimension fastest.

Source: http://yann.lecun.com/exdb/mnist/, "File formats".
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ide_ref import _checks
from ide_ref.datasets.errors import damaged, read_bytes

_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 1 << 16
_MOST_DIMENSIONS = 32
"""What NumPy 1 takes; NumPy 2 takes 64."""
_LONGEST_HEADER = 4 + 4 * _MOST_DIMENSIONS
_BEGIN = 1 << 12
"""Bytes of a file that hold its header, compressed or not."""


def read_idx(
    path: str | Path, *, shape: Sequence[int | None] | None = None, dtype: DTypeLike | None = None
) -> NDArray[np.generic]:
    """Array stored in an IDX file, of its shape and type in native byte order, read-only.

    Parameters
    ----------
    path : path
        The file; gzip is recognised by its content, not by its name.
    shape : sequence of int or None, optional
        Expected shape, ``None`` where any size will do. Not checked by default.
    dtype : dtype, optional
        Expected element type. Not checked by default.

    Raises
    ------
    DataError
        Wrong magic number, type or shape, a file that ends early or goes on after its last element,
        or a broken gzip stream: one line with the file, the byte offset and what was expected. Offsets
        count the decompressed bytes, except where the gzip stream itself is broken.
    """
    path = _checks.path("path", path)
    stored, dims, start, compressed = _header(path)
    if dtype is not None and stored.newbyteorder("=") != np.dtype(dtype):
        raise damaged(path, 2, f"elements of type {stored.name}", f"type {np.dtype(dtype).name}")
    if shape is not None:
        pairs = zip(dims, shape, strict=False)
        if len(dims) != len(shape) or not all(wanted in (None, size) for size, wanted in pairs):
            told = ", ".join("any" if size is None else str(size) for size in shape)
            raise damaged(path, 3, f"shape {dims}", f"shape ({told})")
    end = start + stored.itemsize * math.prod(dims)
    content = _gunzip(path, end) if compressed else read_bytes(path, "an IDX file", end + 1)
    if len(content) < end:
        raise damaged(path, len(content), "the end of the file", f"{end} bytes for shape {dims}")
    if len(content) > end:
        raise damaged(path, end, "trailing bytes", f"the end after shape {dims}")
    values = np.frombuffer(content, stored, offset=start).reshape(dims)
    values = values.astype(stored.newbyteorder("="), copy=False)
    values.flags.writeable = False
    return values


def idx_shape(path: str | Path) -> tuple[int, ...]:
    """Shape that an IDX file announces, from its first bytes alone.

    Raises
    ------
    DataError
        The file cannot be read or does not begin as an IDX file does.
    """
    return _header(_checks.path("path", path))[1]


def _header(path: Path) -> tuple[np.dtype[np.generic], tuple[int, ...], int, bool]:
    """Element type, shape, offset of the first element, and whether the file is compressed."""
    content = read_bytes(path, "an IDX file", _BEGIN)
    compressed = content[:2] == _GZIP_MAGIC
    if compressed:
        try:
            content = zlib.decompressobj(wbits=31).decompress(content, _LONGEST_HEADER)
        except zlib.error as error:
            raise damaged(path, 0, f"a broken gzip stream ({error})", "a sound one") from None
    if len(content) < 4:
        raise damaged(path, len(content), "the end of the file", "the 4 bytes of an IDX magic number")
    if content[:2] != b"\0\0":
        raise damaged(path, 0, f"bytes {content[:2].hex(' ')}", "bytes 00 00, the beginning of an IDX file")
    if content[2] not in _DTYPES:
        codes = " ".join(f"{code:02x}" for code in _DTYPES)
        raise damaged(path, 2, f"type code {content[2]:02x}", f"one of {codes}")
    ndim = content[3]
    start = 4 + 4 * ndim
    if not 1 <= ndim <= _MOST_DIMENSIONS:
        raise damaged(path, 3, f"{ndim} dimensions", f"1 to {_MOST_DIMENSIONS}")
    if len(content) < start:
        raise damaged(path, len(content), "the end of the file", f"a header of {start} bytes")
    stored, dims = np.dtype(_DTYPES[content[2]]), struct.unpack_from(f">{ndim}I", content, 4)
    # Python's integers, as there may be more elements than NumPy can count, even where a dimension of 0 leaves none.
    if math.prod(max(size, 1) for size in dims) * stored.itemsize >= 1 << 63:
        raise damaged(path, 4, f"shape {dims}", "fewer than 2^63 bytes")
    return stored, dims, start, compressed


def _gunzip(path: Path, end: int) -> bytes:
    """What a gzip file holds, up to one byte more than there should be."""
    # Not the gzip module: it hides how far it came, and the error has to say where.
    content = read_bytes(path, "an IDX file")
    inflate, found = zlib.decompressobj(wbits=31), bytearray()
    for start in range(0, len(content), _CHUNK):
        try:
            found += inflate.decompress(content[start : start + _CHUNK], end + 1 - len(found))
        except zlib.error as error:
            told = f"an error in the {_CHUNK} bytes from here ({error})"
            raise damaged(path, start, told, "a sound gzip stream") from None
        if len(found) > end or inflate.eof:
            break
    if len(found) <= end and not inflate.eof:
        raise damaged(path, len(content), "the end of the compressed file", "the rest of its gzip stream")
    n_over = len(inflate.unused_data) + max(0, len(content) - start - _CHUNK)
    if inflate.eof and n_over:
        raise damaged(path, len(content) - n_over, f"{n_over} bytes after the gzip stream", "the end of the file")
    return bytes(found)
