"""A data set in memory: what the registry reads, or a user's own arrays.

Source: forms of arrays and files in ``docs/data.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ide_ref import _checks
from ide_ref.datasets.augment import check_images
from ide_ref.datasets.events import EventFrames

SPLITS = ("train", "test")

_CHUNK = 1024
"""Items whose deviations from the mean are held at once."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test items with their labels; :meth:`from_arrays` makes one of a user's arrays.

    Raises
    ------
    ValueError
        Items of another shape or type, NaN among them, a part without items, unequal numbers of items and labels,
        labels that are no whole numbers from 0 to ``n_classes - 1``.
    """

    name: str
    x_train: NDArray[np.generic] | EventFrames
    """(B, n) or (B, channels, rows, columns) raw numbers, (B, T, ...) spike trains; read-only. Recordings of events are
    handed out a batch at a time."""
    y_train: NDArray[np.int64]
    """(B,) labels, 0 to ``n_classes - 1``, read-only."""
    x_test: NDArray[np.generic] | EventFrames
    """Of the same shape as the training items, another B."""
    y_test: NDArray[np.int64]
    """(B,) labels."""
    n_classes: int
    scale: float
    """Value that stands for 1, for :func:`~ide_ref.datasets.normalise`; spike trains are taken as they are."""
    source: Path | None
    """Where it was read from, ``None`` for arrays."""
    notice: str
    """Whom to credit; says so where the recordings are synthetic."""
    spikes: bool = False
    """Whether an item is a spike train and not a constant input."""

    def __post_init__(self) -> None:
        _checks.kind("name", self.name, str)
        _checks.whole("n_classes", self.n_classes)
        _checks.positive("scale", self.scale)
        for split in SPLITS:
            x, y = self._part(split)
            _checks.kind(f"x_{split}", x, np.ndarray, EventFrames)
            if len(x.shape) - self.spikes not in (2, 4):
                t = "T, " if self.spikes else ""
                expected = f"(B, {t}n) or (B, {t}channels, rows, columns)"
                raise ValueError(f"x_{split} has shape {x.shape}, expected {expected}")
            # What recordings hold is checked as they are read; here it is their number.
            items = np.broadcast_to(np.uint8(0), x.shape) if isinstance(x, EventFrames) else x
            try:
                check_images(items, y, n_classes=self.n_classes, input_shape=self.x_train.shape[1:])
            except ValueError as error:
                raise ValueError(f"data set {self.name!r}, {split}: {error}") from None

    @classmethod
    def from_arrays(
        cls,
        x_train: ArrayLike,
        y_train: ArrayLike,
        x_test: ArrayLike,
        y_test: ArrayLike,
        *,
        name: str = "arrays",
        n_classes: int | None = None,
        scale: float | None = None,
        spikes: bool = False,
        notice: str = "",
    ) -> Dataset:
        """A data set of one's own arrays, which are not copied: leave them as they are.

        Parameters
        ----------
        x_train, x_test : (B, n), (B, rows, columns) or (B, channels, rows, columns) real numbers
            Flat items, grey pictures or pictures. With `spikes`, trains of any of these, (B, T, ...).
        y_train, y_test : (B,) integers
            Labels from 0 on.
        name : str
            In messages, logs and the name of the output folder.
        n_classes : int, optional
            One more than the largest label unless given.
        scale : float, optional
            Value that stands for 1: 255 for uint8 and 1 otherwise unless given. Not for spike trains.
        spikes : bool
            Whether the second axis is time.
        notice : str
            Whom to credit.

        Raises
        ------
        ValueError
            As for the class; or labels that do not begin at 0, where `n_classes` is not given.
        """
        items = [_items("x_train", x_train, spikes), _items("x_test", x_test, spikes)]
        labels = [_labels("y_train", y_train), _labels("y_test", y_test)]
        if spikes and scale is not None:
            raise ValueError(f"scale is {scale!r}, but spike trains are taken as they are; leave it out")
        if n_classes is None:
            both = np.concatenate(labels)
            least, most = (int(both.min()), int(both.max())) if both.size else (0, 0)
            if least > 0:
                given = f"labels reach from {least} to {most}, expected them to begin at 0"
                raise ValueError(f"{given}: take {least} off, or give n_classes")
            n_classes = max(most, 0) + 1
        if scale is None:
            scale = 255.0 if np.asarray(x_train).dtype == np.uint8 and not spikes else 1.0
        return cls(name, items[0], labels[0], items[1], labels[1], n_classes, scale, None, notice, spikes)

    def _part(self, split: str) -> tuple[NDArray[np.generic] | EventFrames, NDArray[np.int64]]:
        return (self.x_train, self.y_train) if split == "train" else (self.x_test, self.y_test)

    @property
    def n_frames(self) -> int | None:
        """T of spike trains, ``None`` for constant inputs."""
        return self.x_train.shape[1] if self.spikes else None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(n,) or (channels, rows, columns) of one item or one frame."""
        return tuple(self.x_train.shape[1 + self.spikes :])

    @cached_property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel of the scaled training items, one channel for flat ones.

        The deviation of a channel that is constant counts as 1. Spike trains are taken as they are: 0 and 1.
        """
        n_channels = self.input_shape[0] if len(self.input_shape) == 3 else 1
        if self.spikes or isinstance(self.x_train, EventFrames):
            return (0.0,) * n_channels, (1.0,) * n_channels
        channels = self.x_train.reshape(len(self.y_train), n_channels, -1)
        count = channels.size // n_channels
        mean, variance = channels.sum(axis=(0, 2), dtype=np.float64) / count, np.zeros(n_channels)
        with np.errstate(over="ignore"):
            for first in range(0, len(channels), _CHUNK):
                deviations = channels[first : first + _CHUNK] - mean[:, None]
                variance += np.square(deviations).sum(axis=(0, 2)) / count
        std = np.sqrt(variance)
        # What rounding leaves of a constant is not to be blown up.
        std = np.where(std > 1e-12 * np.abs(mean), std / self.scale, 1.0)
        return tuple((mean / self.scale).tolist()), tuple(std.tolist())

    def first(self, n_items: int) -> Dataset:
        """The first so many items of each split."""
        n = _checks.whole("n_items", n_items)
        x_train, x_test = (x.first(n) if isinstance(x, EventFrames) else x[:n] for x in (self.x_train, self.x_test))
        return replace(self, x_train=x_train, y_train=self.y_train[:n], x_test=x_test, y_test=self.y_test[:n])

    def batch(self, split: str, indices: ArrayLike) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
        """Items of a split, "train" or "test", as the data set holds them: x, (B, ...), and y, (B,).

        ValueError for another split, or indices that are no whole numbers of its range.
        """
        _checks.one_of("split", split, SPLITS)
        x, y = self._part(split)
        chosen = np.asarray(indices)
        if chosen.ndim != 1 or chosen.dtype.kind not in "iu":
            raise ValueError(f"indices is {chosen.dtype} of shape {chosen.shape}, expected integers of shape (B,)")
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < len(y):
            raise ValueError(f"indices reach from {chosen.min()} to {chosen.max()}, expected 0 to {len(y) - 1}")
        return (x.take(chosen) if isinstance(x, EventFrames) else x[chosen]), y[chosen]


def _array(name: str, value: ArrayLike, kinds: str, expected: str) -> NDArray[np.generic]:
    """A read-only view of an array whose dtype is of one of the kinds."""
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.empty((), object)
    if array.dtype.kind not in kinds:
        raise ValueError(f"{name} is a {type(value).__name__} of {array.dtype}; expected an array of {expected}")
    array = array.view()
    array.flags.writeable = False
    return array


def _items(name: str, value: ArrayLike, spikes: bool) -> NDArray[np.generic]:
    """Items as a data set holds them: numbers, and pictures with a channel axis."""
    x = _array(name, value, "fiub", "real numbers")
    x = x.view(np.uint8) if x.dtype == bool else x
    return np.expand_dims(x, -3) if x.ndim - spikes == 3 else x


def _labels(name: str, value: ArrayLike) -> NDArray[np.int64]:
    """Labels as a data set holds them."""
    y = _array(name, value, "iu", "whole numbers").astype(np.int64)
    if y.ndim != 1:
        raise ValueError(f"{name} has shape {y.shape}, expected (B,): a label an item, not a row")
    y.flags.writeable = False
    return y
