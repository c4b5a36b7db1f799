import re

import numpy as np
import pytest

from ide_ref.datasets import DataError, read_cifar10, read_cifar100


def record(labels, start):
    """Label bytes, then the pixel at plane c, row i, column j as (start + 7 c + 3 i + j) modulo 256."""
    pixels = [(start + 7 * c + 3 * i + j) % 256 for c in range(3) for i in range(32) for j in range(32)]
    return bytes(labels) + bytes(pixels)


def test_cifar10_planes_and_labels(tmp_path):
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(record([9], 0) + record([3], 100))
    images, labels = read_cifar10(path, n_records=2)
    assert images.dtype == np.uint8
    assert labels.tolist() == [9, 3]
    c, i, j = np.ogrid[:3, :32, :32]
    np.testing.assert_array_equal(images, [(s + 7 * c + 3 * i + j) % 256 for s in (0, 100)])
    assert not images.flags.writeable


def test_cifar100_has_the_coarse_label_first(tmp_path):
    path = tmp_path / "train.bin"
    path.write_bytes(record([19, 99], 5) + record([0, 42], 6))
    images, fine, coarse = read_cifar100(path)
    assert (fine.tolist(), coarse.tolist()) == ([99, 42], [19, 0])
    assert images[:, 0, 0, 0].tolist() == [5, 6]


@pytest.mark.parametrize(
    ("content", "n_records", "message"),
    [
        (b"", None, "byte 0: found the end of the file, expected a whole number of records of 3073 bytes"),
        (record([0], 0)[:-1], None, "byte 3072: found the end of the file, expected a whole number of records"),
        (record([0], 0) + b"x", None, "byte 3074: found the end of the file, expected a whole number of records"),
        (record([0], 0), 2, "byte 3073: found the end of the file, expected 2 records of 3073 bytes"),
        (
            record([0], 0) * 2 + b"yes",
            2,
            "byte 6146: found 3 trailing bytes, expected the end of the file after 2 records of 3073 bytes",
        ),
        (record([0], 0) + record([10], 0), 2, "byte 3073: found label 10, expected 0 to 9"),
    ],
)
def test_wrong_sizes_and_labels_are_named_with_their_place(tmp_path, content, n_records, message):
    path = tmp_path / "test_batch.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(f"{path}: {message}")):
        read_cifar10(path, n_records=n_records)


@pytest.mark.parametrize(
    ("labels", "message"),
    [([20, 0], "byte 3074: found coarse label 20, expected 0 to 19"), ([0, 100], "byte 3075: found fine label 100")],
)
def test_both_labels_of_cifar100_are_checked(tmp_path, labels, message):
    path = tmp_path / "train.bin"
    path.write_bytes(record([1, 1], 0) + record(labels, 0))
    with pytest.raises(DataError, match=message):
        read_cifar100(path)
