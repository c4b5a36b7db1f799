"""Small files in the real formats, written independently of the readers under test."""

import os
import struct
from pathlib import Path

import pytest

IDX_CODE = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


@pytest.fixture(scope="session")
def idx_bytes():
    def encode(array):
        code = IDX_CODE[array.dtype.str[1:]]
        header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
        return header + array.astype(array.dtype.newbyteorder(">")).tobytes()

    return encode


@pytest.fixture(scope="session")
def event_bytes():
    def encode(events):
        """Five bytes for each (x, y, polarity, t), through one 40-bit integer."""
        return b"".join((x << 32 | y << 24 | p << 23 | t).to_bytes(5, "big") for x, y, p, t in events)

    return encode


@pytest.fixture
def real_data():
    root = os.environ.get("IDE_REF_DATA")
    if not root:
        pytest.skip("IDE_REF_DATA is not set: no real data to read")
    return Path(root)
