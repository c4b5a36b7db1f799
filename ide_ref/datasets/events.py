"""N-MNIST recordings: 40-bit event files, and the frames that a network is given.

One event is five bytes, big-endian: column (8 bits), row (8), polarity (1; 1 is ON, brighter) and time
in microseconds (23). A record whose row is 240 is no event: it adds 2^13 µs to the time of every record
after it. The sensor has 34 by 34 pixels.

Source: https://www.garrickorchard.com/datasets/n-mnist, the recordings' format.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ide_ref import _checks
from ide_ref.datasets.errors import DataError, damaged, read_bytes, unreadable

SENSOR_SIZE = 34
N_CLASSES = 10
_RECORD = 5
_OVERFLOW_ROW = 240
_OVERFLOW = 1 << 13
_END_OF_TIME = 1 << 23


@dataclass(frozen=True, eq=False)
class Events:
    """Events of one recording, in the order of time."""

    x: NDArray[np.uint8]
    """(n,): column, 0 to 33."""
    y: NDArray[np.uint8]
    """(n,): row, 0 to 33."""
    polarity: NDArray[np.uint8]
    """(n,): 1 where the pixel became brighter (ON), 0 where darker (OFF)."""
    t: NDArray[np.int64]
    """(n,): time in microseconds, not decreasing."""

    def __len__(self) -> int:
        return len(self.t)


def read_events(path: str | Path) -> Events:
    """Events of an N-MNIST file.

    Raises
    ------
    DataError
        An empty file or one that ends inside an event, a pixel outside the 34 by 34 sensor, a time before its
        predecessor's or of 2^23 µs and more: one line with the file and the byte offset.
    """
    path = _checks.path("path", path)
    content = read_bytes(path, "an N-MNIST event file")
    if not content or len(content) % _RECORD:
        raise damaged(path, len(content), "the end of the file", f"a whole number of {_RECORD}-byte events")
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    x, y = records[:, 0], records[:, 1]
    high, middle, low = records[:, 2:].astype(np.int32).T
    t = (high & 0x7F) << 16 | middle << 8 | low
    polarity = np.right_shift(records[:, 2], 7, dtype=np.uint8)
    overflow = y == _OVERFLOW_ROW
    event = np.flatnonzero(~overflow)
    # More overflows than time has room for count as so many: 32 bits do.
    t += _OVERFLOW * np.minimum(np.cumsum(overflow, dtype=np.int32), _END_OF_TIME // _OVERFLOW)
    t = t[event].astype(np.int64)
    x, y, polarity = x[event], y[event], polarity[event]
    outside = (x >= SENSOR_SIZE) | (y >= SENSOR_SIZE)
    if outside.any():
        i = np.argmax(outside)
        found = f"column {x[i]}, row {y[i]}"
        raise damaged(path, _RECORD * int(event[i]), found, f"both below {SENSOR_SIZE}, the sensor's size")
    late = t >= _END_OF_TIME
    if late.any():
        i = np.argmax(late)
        found = f"time {t[i]} µs or more"
        raise damaged(path, _RECORD * int(event[i]), found, f"times below {_END_OF_TIME} µs")
    backwards = t[1:] < t[:-1]
    if backwards.any():
        i = np.argmax(backwards) + 1
        raise damaged(path, _RECORD * int(event[i]), f"time {t[i]} µs after {t[i - 1]} µs", "times in order")
    return Events(x, y, polarity, t)


def write_events(path: str | Path, events: Events) -> None:
    """Write a recording in N-MNIST's format, whose time field has no room for 2^23 µs and more.

    Raises
    ------
    ValueError
        Arrays of unequal length, a pixel outside the sensor, a polarity other than 0 or 1, times out
        of range or out of order.
    """
    path = _checks.path("path", path)
    _check_events(events)
    x, y, polarity, t = (np.asarray(part, np.int64) for part in (events.x, events.y, events.polarity, events.t))
    records = np.stack([x, y, polarity << 7 | t >> 16, t >> 8 & 0xFF, t & 0xFF], axis=1)
    path.write_bytes(records.astype(np.uint8).tobytes())


def _check_events(events: Events) -> None:
    """Raise unless the arrays are those of a recording."""
    _checks.kind("events", events, Events)
    t = np.asarray(events.t)
    columns = {"x": SENSOR_SIZE, "y": SENSOR_SIZE, "polarity": 2, "t": _END_OF_TIME}
    for name, limit in columns.items():
        values = np.asarray(getattr(events, name))
        if values.ndim != 1 or len(values) != len(t) or values.dtype.kind not in "iu":
            raise ValueError(f"events.{name} is {values.dtype} of shape {values.shape}, expected ({len(t)},) integers")
        if len(values) and (values.min() < 0 or values.max() >= limit):
            raise ValueError(f"events.{name} reaches from {values.min()} to {values.max()}, expected 0 to {limit - 1}")
    if np.any(t[1:] < t[:-1]):
        raise ValueError("events.t is not in order, expected times that never decrease; sort the events")


def bin_events(
    events: Events, n_frames: int, *, window: int | None = None, binary: bool = True
) -> NDArray[np.uint8] | NDArray[np.int32]:
    """Frames of a recording, the spike train that a network is given.

    Parameters
    ----------
    n_frames : int
        T, the number of frames.
    window : int, optional
        Length of a frame in microseconds. Frame k holds the events with k·window ≤ t < (k+1)·window;
        later ones are dropped. By default the time from 0 through the last event is divided into T
        equal parts: k = floor(T t / (t_last + 1)). Then no event is lost, and the length of a frame
        differs a little between recordings (about 10 ms for T = 30).
    binary : bool
        1 where a pixel has an event of that polarity in that frame, otherwise the number of them.

    Returns
    -------
    (T, 2, 34, 34) uint8, or int32 for counts
        Channel 0 is OFF, channel 1 is ON.

    Raises
    ------
    ValueError
        ``n_frames`` or ``window`` that is no whole number of at least 1, or events as :func:`write_events` refuses.
    """
    _checks.whole("n_frames", n_frames)
    if window is not None:
        _checks.whole("window", window)
    _check_events(events)
    t = events.t
    frame = t // window if window is not None else t * n_frames // (t[-1] + 1) if len(t) else t
    cell = ((frame * 2 + events.polarity) * SENSOR_SIZE + events.y) * SENSOR_SIZE + events.x
    cell = cell[: np.searchsorted(frame, n_frames)]
    shape = (n_frames, 2, SENSOR_SIZE, SENSOR_SIZE)
    counts = np.bincount(cell, minlength=int(np.prod(shape))).reshape(shape)
    return (counts > 0).astype(np.uint8) if binary else counts.astype(np.int32)


@dataclass(frozen=True, eq=False)
class EventFrames:
    """Recordings that are read, binned and handed out as spike trains a batch at a time."""

    paths: tuple[Path, ...]
    """One file a recording."""
    n_frames: int
    """T."""
    window: int | None = None
    """As in :func:`bin_events`."""
    packed: NDArray[np.uint8] | None = None
    """(B, bytes): the binned frames, one bit a pixel, polarity and frame (8.7 kB a recording for T = 30; 520 MB for all
    of N-MNIST's training set), or None where every batch reads its files again."""

    def __post_init__(self) -> None:
        _checks.kind("paths", self.paths, tuple)
        _checks.whole("n_frames", self.n_frames)
        if self.window is not None:
            _checks.whole("window", self.window)

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, T, 2, 34, 34)."""
        return (len(self.paths), self.n_frames, 2, SENSOR_SIZE, SENSOR_SIZE)

    def __len__(self) -> int:
        return len(self.paths)

    def cached(self) -> EventFrames:
        """The same recordings, all of them read now, as by :func:`read_events`, and kept in memory as packed bits."""
        n_bytes = -(-int(np.prod(self.shape[1:])) // 8)
        packed = np.empty((len(self), n_bytes), np.uint8)
        for row, path in zip(packed, self.paths, strict=True):
            row[:] = np.packbits(self._bin(path))
        packed.flags.writeable = False
        return replace(self, packed=packed)

    def first(self, n: int) -> EventFrames:
        """The first so many recordings."""
        return replace(self, paths=self.paths[:n], packed=None if self.packed is None else self.packed[:n])

    def take(self, indices: ArrayLike) -> NDArray[np.uint8]:
        """Spike trains of the given recordings, (B, T, 2, 34, 34) uint8, 0 or 1.

        Where nothing is cached their files are read, as by :func:`read_events`.
        """
        chosen, shape = np.asarray(indices), self.shape[1:]
        if self.packed is not None:
            bits = np.unpackbits(self.packed[chosen], axis=1, count=int(np.prod(shape)))
            return bits.reshape(len(chosen), *shape)
        frames = np.empty((len(chosen), *shape), np.uint8)
        for frame, i in zip(frames, chosen, strict=True):
            frame[:] = self._bin(self.paths[i])
        return frames

    def _bin(self, path: Path) -> NDArray:
        return bin_events(read_events(path), self.n_frames, window=self.window)


def find_recordings(folder: str | Path, split: str) -> tuple[tuple[Path, ...], NDArray[np.int64]]:
    """Recordings of one split of an N-MNIST folder: ``Train/0`` to ``Train/9`` or ``Test/0`` to ``Test/9``.

    Parameters
    ----------
    split : {"train", "test"}

    Returns
    -------
    paths : tuple of Path
        Sorted by file name, N-MNIST's order of MNIST's images: a part from the beginning holds all classes.
    labels : (B,) int64

    Raises
    ------
    ValueError
        For another split.
    DataError
        A class folder is missing or cannot be read, or none of them holds a ``.bin`` file.
    """
    _checks.one_of("split", split, ("train", "test"))
    base = _checks.path("folder", folder) / split.capitalize()
    remedy = f"unpack {base.name}.zip of N-MNIST into {folder}"
    found: list[tuple[str, int, Path]] = []
    for label in range(N_CLASSES):
        class_folder = base / str(label)
        try:
            # Unlike glob, this tells of a folder that cannot be read.
            found += [(path.stem, label, path) for path in class_folder.iterdir() if path.suffix == ".bin"]
        except (FileNotFoundError, NotADirectoryError):
            told = f"no such folder, expected the recordings of class {label}; {remedy}"
            raise DataError(f"{class_folder}: {told}") from None
        except OSError as error:
            raise unreadable(error) from None
    if not found:
        raise DataError(f"{base}: no recordings, expected .bin files in its folders 0 to {N_CLASSES - 1}; {remedy}")
    found.sort()
    return tuple(path for _, _, path in found), np.array([label for _, label, _ in found], np.int64)
