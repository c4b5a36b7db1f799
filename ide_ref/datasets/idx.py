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
_LONGEST_HEADER = 4 + 4 * 255


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
    content = read_bytes(path, "an IDX file")
    if content[:2] == _GZIP_MAGIC:
        content = _gunzip(path, content)
    stored, dims, start = _header(path, content)
    if dtype is not None and stored.newbyteorder("=") != np.dtype(dtype):
        raise damaged(path, 2, f"elements of type {stored.name}", f"type {np.dtype(dtype).name}")
    if shape is not None:
        pairs = zip(dims, shape, strict=False)
        if len(dims) != len(shape) or not all(wanted in (None, size) for size, wanted in pairs):
            told = ", ".join("any" if size is None else str(size) for size in shape)
            raise damaged(path, 3, f"shape {dims}", f"shape ({told})")
    # Python integers: a damaged header may announce more elements than an int64 can count.
    end = start + stored.itemsize * math.prod(dims)
    if len(content) < end:
        raise damaged(path, len(content), "the end of the file", f"{end} bytes for shape {dims}")
    if len(content) > end:
        raise damaged(path, end, f"{len(content) - end} trailing bytes", f"the end after shape {dims}")
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
    path = _checks.path("path", path)
    begin = read_bytes(path, "an IDX file", 2 * _LONGEST_HEADER)
    if begin[:2] == _GZIP_MAGIC:
        try:
            begin = zlib.decompressobj(wbits=31).decompress(begin, _LONGEST_HEADER)
        except zlib.error as error:
            raise damaged(path, 0, f"a broken gzip stream ({error})", "a sound one") from None
    return _header(path, begin)[1]


def _header(path: Path, content: bytes) -> tuple[np.dtype[np.generic], tuple[int, ...], int]:
    """Element type, shape, and offset of the first element."""
    if len(content) < 4:
        raise damaged(path, len(content), "the end of the file", "the 4 bytes of an IDX magic number")
    if content[:2] != b"\0\0":
        raise damaged(path, 0, f"bytes {content[:2].hex(' ')}", "bytes 00 00, the beginning of an IDX file")
    if content[2] not in _DTYPES:
        codes = " ".join(f"{code:02x}" for code in _DTYPES)
        raise damaged(path, 2, f"type code {content[2]:02x}", f"one of {codes}")
    ndim = content[3]
    start = 4 + 4 * ndim
    if ndim == 0:
        raise damaged(path, 3, "0 dimensions", "at least 1")
    if len(content) < start:
        raise damaged(path, len(content), "the end of the file", f"a header of {start} bytes")
    return np.dtype(_DTYPES[content[2]]), struct.unpack_from(f">{ndim}I", content, 4), start


def _gunzip(path: Path, content: bytes) -> bytes:
    # Not the gzip module: it hides how far it came, and the error has to say where.
    inflate = zlib.decompressobj(wbits=31)
    parts = []
    for start in range(0, len(content), _CHUNK):
        try:
            parts.append(inflate.decompress(content[start : start + _CHUNK]))
        except zlib.error as error:
            found = f"an error in the {_CHUNK} bytes from here ({error})"
            raise damaged(path, start, found, "a sound gzip stream") from None
    if not inflate.eof:
        raise damaged(path, len(content), "the end of the compressed file", "the rest of its gzip stream")
    if inflate.unused_data:
        n_over = len(inflate.unused_data)
        raise damaged(path, len(content) - n_over, f"{n_over} bytes after the gzip stream", "the end of the file")
    return b"".join(parts)
