import gzip
import os
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ide_ref.datasets import DataError, idx_shape, read_cifar10, read_events, read_idx, read_own

STORED = st.sampled_from(["u1", "i1", "i2", "i4", "f4", "f8"]).map(np.dtype)


@given(
    array=STORED.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(max_dims=4, min_side=0, max_side=5))),
    compress=st.booleans(),
)
def test_every_type_and_shape_comes_back(tmp_path_factory, idx_bytes, array, compress):
    path = tmp_path_factory.mktemp("idx") / "file"
    content = idx_bytes(array)
    path.write_bytes(gzip.compress(content) if compress else content)
    read = read_idx(path)
    assert read.dtype == array.dtype
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, array)
    assert not read.flags.writeable
    assert idx_shape(path) == array.shape


def test_a_hand_written_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes.fromhex("00000b02 00000002 00000003 0001 0002 0003 ffff fffe 0100"))
    assert read_idx(path, shape=(None, 3), dtype=np.int16).tolist() == [[1, 2, 3], [-1, -2, 256]]


GOOD = bytes.fromhex("00000802 00000002 00000003 010203040506")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "byte 0: found the end of the file, expected the 4 bytes of an IDX magic number"),
        (b"\1" + GOOD[1:], "byte 0: found bytes 01 00, expected bytes 00 00"),
        (GOOD[:2] + b"\7" + GOOD[3:], "byte 2: found type code 07, expected one of 08 09 0b 0c 0d 0e"),
        (GOOD[:3] + b"\0", "byte 3: found 0 dimensions, expected 1 to 32"),
        (GOOD[:9], "byte 9: found the end of the file, expected a header of 12 bytes"),
        (GOOD[:-1], "byte 17: found the end of the file, expected 18 bytes for shape (2, 3)"),
        (GOOD + b"xx", "byte 18: found trailing bytes, expected the end after shape (2, 3)"),
        (GOOD[:3] + b"\x21" + b"\0" * 132, "byte 3: found 33 dimensions, expected 1 to 32"),
        (
            GOOD[:3] + b"\x03" + b"\0" * 4 + b"\xff" * 8,
            "byte 4: found shape (0, 4294967295, 4294967295), expected fewer",
        ),
        (GOOD[:3] + b"\x02" + b"\xff" * 8 + b"x", "byte 4: found shape (4294967295, 4294967295), expected fewer"),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_damage_is_named_with_its_place(tmp_path, content, message, compress):
    path = tmp_path / "broken-idx"
    path.write_bytes(gzip.compress(content) if compress else content)
    with pytest.raises(DataError, match=re.escape(f"{path}: {message}")) as caught:
        read_idx(path)
    assert "replace the file with an intact copy" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_expectations_are_checked(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(GOOD)
    assert read_idx(path, shape=(None, 3), dtype=np.uint8).shape == (2, 3)
    with pytest.raises(DataError, match=r"byte 3: found shape \(2, 3\), expected shape \(any, 4\)"):
        read_idx(path, shape=(None, 4))
    with pytest.raises(DataError, match=r"byte 3: found shape \(2, 3\), expected shape \(any\)"):
        read_idx(path, shape=(None,))
    with pytest.raises(DataError, match="byte 2: found elements of type uint8, expected type float32"):
        read_idx(path, dtype=np.float32)


def test_broken_gzip_streams_are_named_with_their_place(tmp_path, idx_bytes):
    path, whole = tmp_path / "file.gz", gzip.compress(GOOD)
    noise = np.random.default_rng(0).integers(0, 256, 200_000, dtype=np.uint8)
    damaged = bytearray(gzip.compress(idx_bytes(noise)))
    damaged[-6] ^= 1
    for content, read, message in (
        (whole[:-3], read_idx, f"byte {len(whole) - 3}: found the end of the compressed file"),
        (whole + b"more", read_idx, f"byte {len(whole)}: found 4 bytes after the gzip stream"),
        (damaged, read_idx, "byte 196608: found an error in the 65536 bytes from here"),
        (whole[:3] + b"\xff" * 40, idx_shape, "byte 0: found a broken gzip stream"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read(path)


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        *((read, "an IDX file") for read in (read_idx, idx_shape)),
        (read_cifar10, "a CIFAR binary batch"),
        (read_events, "an N-MNIST event file"),
    ],
)
def test_a_missing_file_and_a_folder(tmp_path, read, kind):
    for place in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DataError, match=rf"{place}: (no such file|cannot be read \(.*\)), expected {kind}; "):
            read(place)


def test_decompression_ends_where_the_header_says(tmp_path):
    """A file of 3.1 MB took 6.4 GB."""
    path = tmp_path / "bomb"
    path.write_bytes(gzip.compress(GOOD + bytes(100_000_000), 1))
    tracemalloc.start()
    tracemalloc.reset_peak()  # of whoever else traces
    before, _ = tracemalloc.get_traced_memory()
    with pytest.raises(DataError, match="byte 18: found trailing bytes"):
        read_idx(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - before < 5_000_000


def test_a_header_makes_no_room(tmp_path):
    """For a terabyte that the file does not have."""
    path = tmp_path / "file"
    path.write_bytes(GOOD[:4] + b"\0\x10\0\0" * 2 + b"x")
    with pytest.raises(DataError, match=r"byte 13: found the end of the file, expected 1099511627788 bytes"):
        read_idx(path)
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(DataError, match=r"byte 13: found the end of the file, expected 1099511627788 bytes"):
        read_idx(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize("read", [read_idx, idx_shape, read_cifar10, read_events, read_own])
def test_a_pipe_is_refused_and_does_not_block(tmp_path, read):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(DataError, match=rf"{path}: cannot be read \(is no regular file\)"):
        read(str(path))
