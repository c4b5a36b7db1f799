"""CIFAR-10 and CIFAR-100 in their binary form.

One record is the label bytes (CIFAR-10: the class; CIFAR-100: the coarse, then the fine class) and
3072 pixel bytes: the red, green and blue planes, each 32 rows of 32.

Source: https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version".
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ide_ref import _checks
from ide_ref.datasets.errors import damaged, read_bytes

IMAGE_SHAPE = (3, 32, 32)
_N_PIXELS = 3 * 32 * 32


def read_cifar10(path: str | Path, *, n_records: int | None = None) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and labels of one CIFAR-10 batch (``data_batch_1.bin``, ..., ``test_batch.bin``).

    Parameters
    ----------
    n_records : int, optional
        Number that the file has to hold (10,000 in the published files); by default any whole number.

    Returns
    -------
    images : (B, 3, 32, 32) uint8, read-only
    labels : (B,) int64, 0 to 9

    Raises
    ------
    DataError
        A file that ends inside a record, holds another number of records, or has a label out of range.
    """
    labels, images = _read(path, {"label": 10}, n_records)
    return images, labels[:, 0]


def read_cifar100(
    path: str | Path, *, n_records: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Images, fine and coarse labels of a CIFAR-100 file (``train.bin`` or ``test.bin``); as :func:`read_cifar10`.

    The published files hold 50,000 and 10,000 records.

    Returns
    -------
    images : (B, 3, 32, 32) uint8, read-only
    fine : (B,) int64, 0 to 99
    coarse : (B,) int64, 0 to 19
    """
    labels, images = _read(path, {"coarse label": 20, "fine label": 100}, n_records)
    return images, labels[:, 1], labels[:, 0]


def check_size(path: Path, n_records: int, n_labels: int) -> None:
    """DataError for a file, unread, whose size is not that of so many records with so many label bytes each."""
    _n_records(path, path.stat().st_size, n_records, n_labels + _N_PIXELS)


def _n_records(path: Path, n_bytes: int, n_records: int | None, size: int) -> int:
    """How many records a file of so many bytes holds; refuses another number than the given one, and parts."""
    whole, rest = divmod(n_bytes, size)
    if n_records is not None and n_bytes > n_records * size:
        end = f"the end of the file after {n_records} records of {size} bytes"
        raise damaged(path, n_records * size, f"{n_bytes - n_records * size} trailing bytes", end)
    if rest or whole == 0 or (n_records is not None and whole < n_records):
        wanted = "a whole number of records" if n_records is None else f"{n_records} records"
        raise damaged(path, n_bytes, "the end of the file", f"{wanted} of {size} bytes")
    return whole


def _read(path: str | Path, label_bytes: dict[str, int], n_records: int | None) -> tuple[NDArray, NDArray]:
    path = _checks.path("path", path)
    if n_records is not None:
        _checks.whole("n_records", n_records)
    content = read_bytes(path, "a CIFAR binary batch")
    size = len(label_bytes) + _N_PIXELS
    whole = _n_records(path, len(content), n_records, size)
    records = np.frombuffer(content, np.uint8).reshape(whole, size)
    for column, (name, n_classes) in enumerate(label_bytes.items()):
        wrong = np.flatnonzero(records[:, column] >= n_classes)
        if wrong.size:
            row = int(wrong[0])
            raise damaged(path, row * size + column, f"{name} {records[row, column]}", f"0 to {n_classes - 1}")
    labels = records[:, : len(label_bytes)].astype(np.int64)
    return labels, records[:, len(label_bytes) :].reshape(whole, *IMAGE_SHAPE)
