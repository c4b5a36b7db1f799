"""Recordings like N-MNIST's, made from images: synthetic, not measured.

N-MNIST (Orchard et al. 2015, "Converting static image datasets to spiking neuromorphic datasets using
saccades") was recorded by an event camera that looked at MNIST on a screen and moved through three
saccades of about 100 ms along an isosceles triangle. Here the movement and the camera are simulated: the
image glides over the 34 by 34 pixels (right and down, right and up, back to the left), starting and
stopping smoothly; a pixel sends an ON or OFF event each time its log-intensity has risen or fallen by
its threshold since its last event, and is silent for a while afterwards; a few events are background
noise. Speeds, event counts and the silent time resemble the real recordings; latency, jitter, hot
pixels and the flicker of a screen are not modelled. Say "synthetic" beside every figure got from them.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ide_ref import _checks
from ide_ref.datasets.errors import DataError
from ide_ref.datasets.events import N_CLASSES, SENSOR_SIZE, Events, write_events

SYNTHETIC_NOTICE = "SYNTHETIC.txt"
_IMAGE_SIZE = 28
_N_PIXELS = SENSOR_SIZE * SENSOR_SIZE
# Corners of the triangle (column, row), in units of the amplitude; the image moves along its sides.
_CORNERS = np.array([(0.0, 0.0), (0.5, 1.0), (1.0, 0.0), (0.0, 0.0)])
# Recordings simulated at once: their working set stays in the second-level cache.
_CHUNK = 32


@dataclass(frozen=True)
class Sensor:
    """The simulated camera and its movement."""

    threshold: float = 0.35
    """Change of log-intensity that makes an event."""
    mismatch: float = 0.03
    """Relative standard deviation of the threshold between pixels."""
    floor: float = 0.1
    """Intensity of a black pixel relative to a white one's; bounds the contrast."""
    refractory: int = 2000
    """Silence of a pixel after an event in microseconds. Crossings meanwhile are lost."""
    noise_rate: float = 0.2
    """Background events per pixel and second."""
    saccade: int = 100_000
    """Duration of one of the three saccades in microseconds."""
    amplitude: float = 5.0
    """Length of the triangle's base and its height in pixels, at most 5."""
    sub_frames: int = 32
    """Images computed per saccade; between them log-intensity is interpolated linearly."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not _checks.is_real(value):
                raise ValueError(f"{name} is {value!r}, expected a finite number")
        for name, least in (("saccade", 1), ("sub_frames", 1), ("refractory", 0)):
            _checks.whole(name, getattr(self, name), least)
        # Each crossing is one pass over the pixels, and single precision has to resolve it.
        if not self.threshold >= 0.01:
            raise ValueError(f"threshold is {self.threshold}, expected at least 0.01")
        _checks.positive("floor", self.floor)
        for name in ("mismatch", "noise_rate"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if not 0 <= self.amplitude <= 5:
            raise ValueError(f"amplitude is {self.amplitude}, expected 0 to 5 pixels")


@dataclass(frozen=True, eq=False)
class Recordings:
    """What :func:`make_recordings` wrote."""

    folder: Path
    """``out_dir/Train`` or ``out_dir/Test``."""
    n_events: NDArray[np.int64]
    """(B,): events of each recording."""


def record(images: ArrayLike, *, seed: int = 0, sensor: Sensor | None = None) -> list[Events]:
    """Simulated recordings of B images, times from 0 to three saccades.

    Parameters
    ----------
    images : (B, 28, 28) or (B, 1, 28, 28) uint8
        Grey values, 0 black.
    seed : int
        Decides the pixels' thresholds (one camera per seed) and, with an image's index, its noise and
        what the pixels saw before.

    Raises
    ------
    ValueError
        ``images`` of another shape or type.
    """
    return list(_record(_check_images(images), seed, 0, _check_sensor(seed, sensor)))


def make_recordings(
    images: ArrayLike,
    labels: ArrayLike,
    out_dir: str | Path,
    *,
    split: str,
    limit: int | None = None,
    seed: int = 0,
    sensor: Sensor | None = None,
) -> Recordings:
    """Write one split of a synthetic data set in N-MNIST's file format and layout.

    Recording i goes to ``out_dir/Train/<label>/<i + 1 as five digits>.bin``, N-MNIST's own naming, and
    a note that the recordings are synthetic to ``out_dir/SYNTHETIC.txt``. The split appears whole or
    not at all. A recording depends on its image, its index, the split and the seed alone.

    Parameters
    ----------
    images : (B, 28, 28) or (B, 1, 28, 28) uint8
    labels : (B,) integers, 0 to 9
    out_dir : path
        Made if need be; must not hold this split yet.
    split : {"train", "test"}
    limit : int, optional
        Use the first so many images.

    Raises
    ------
    ValueError
        Wrong images, labels, split or limit; an image without a single event.
    DataError
        The split is there already, or the folder cannot be written.
    """
    pixels, classes = _check_images(images), np.asarray(labels)
    _checks.one_of("split", split, ("train", "test"))
    if classes.shape != (len(pixels),) or classes.dtype.kind not in "iu":
        raise ValueError(f"labels are {classes.dtype} of shape {classes.shape}, expected ({len(pixels)},) integers")
    if classes.size and (classes.min() < 0 or classes.max() >= N_CLASSES):
        raise ValueError(f"labels reach from {classes.min()} to {classes.max()}, expected 0 to {N_CLASSES - 1}")
    if limit is not None:
        _checks.whole("limit", limit)
    sensor = _check_sensor(seed, sensor)
    pixels = pixels[:limit]
    folder = _checks.path("out_dir", out_dir) / split.capitalize()
    if folder.exists():
        raise DataError(f"{folder}: exists already, expected no such folder; remove it or choose another")
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    n_events = np.empty(len(pixels), np.int64)
    try:
        for label in range(N_CLASSES):
            (partial / str(label)).mkdir(parents=True)
        for i, events in enumerate(_record(pixels, seed, int(split == "test"), sensor)):
            if not len(events):
                raise ValueError(f"images[{i}] gives no event, expected an image with some contrast")
            n_events[i] = len(events)
            write_events(partial / str(classes[i]) / f"{i + 1:05d}.bin", events)
        notice = "Synthetic recordings in the format of N-MNIST, simulated by ide_ref from still images. "
        notice += f"Not measured by an event camera. Seed {seed}, {sensor}.\n"
        (folder.parent / SYNTHETIC_NOTICE).write_text(notice, encoding="utf-8")
        partial.rename(folder)
    except OSError as error:
        reason = f"cannot be written ({error.strerror}), expected a writable folder; choose another"
        raise DataError(f"{error.filename or folder}: {reason}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Recordings(folder, n_events)


def _check_sensor(seed: int, sensor: Sensor | None) -> Sensor:
    _checks.whole("seed", seed, 0)
    sensor = Sensor() if sensor is None else sensor
    _checks.kind("sensor", sensor, Sensor)
    return sensor


def _check_images(images: ArrayLike) -> NDArray[np.uint8]:
    pixels = np.asarray(images)
    if pixels.ndim == 4 and pixels.shape[1] == 1:
        pixels = pixels[:, 0]
    if pixels.ndim != 3 or pixels.shape[1:] != (_IMAGE_SIZE, _IMAGE_SIZE) or pixels.dtype != np.uint8:
        expected = f"uint8 of shape (B, {_IMAGE_SIZE}, {_IMAGE_SIZE})"
        raise ValueError(f"images are {pixels.dtype} of shape {np.shape(images)}, expected {expected}")
    return pixels


def _positions(sensor: Sensor) -> NDArray[np.float64]:
    """Offset (column, row) of the image on the sensor at every sub-frame, (3 sub_frames + 1, 2)."""
    s = np.arange(1, sensor.sub_frames + 1) / sensor.sub_frames
    # Minimum jerk: of the simple profiles that start and stop at rest, the nearest to the event rates
    # of a real recording.
    progress = s**3 * (10 - 15 * s + 6 * s**2)
    sides = [a + progress[:, None] * (b - a) for a, b in itertools.pairwise(_CORNERS)]
    middle = (SENSOR_SIZE - _IMAGE_SIZE) / 2
    return middle + sensor.amplitude * (np.concatenate([_CORNERS[:1], *sides]) - 0.5)


def _log_intensity(brightness: NDArray[np.float32], position: NDArray[np.float64], floor: float) -> NDArray[np.float32]:
    """Flat log-intensity of images (B, 28, 28) placed at a position, bilinear between pixels."""
    seen = np.full((len(brightness), SENSOR_SIZE, SENSOR_SIZE), floor, np.float32)
    corner = np.floor(position).astype(int)
    (right, down) = position - corner
    for row, row_weight in ((corner[1], 1 - down), (corner[1] + 1, down)):
        for column, column_weight in ((corner[0], 1 - right), (corner[0] + 1, right)):
            window = seen[:, row : row + _IMAGE_SIZE, column : column + _IMAGE_SIZE]
            window += np.float32(row_weight * column_weight) * brightness
    return np.log(seen, out=seen).ravel()


def _record(pixels: NDArray[np.uint8], seed: int, split: int, sensor: Sensor) -> Iterator[Events]:
    mismatch = np.random.default_rng(seed).standard_normal(_N_PIXELS)
    # A threshold far below the mean would turn a pixel into a source of noise.
    threshold = (sensor.threshold * np.clip(1 + sensor.mismatch * mismatch, 0.5, 1.5)).astype(np.float32)
    for start in range(0, len(pixels), _CHUNK):
        chunk = pixels[start : start + _CHUNK]
        generators = [np.random.default_rng((seed, split, start + k)) for k in range(len(chunk))]
        yield from _record_chunk(chunk, threshold, generators, sensor)


def _record_chunk(
    pixels: NDArray[np.uint8], pixel_threshold: NDArray, generators: list[np.random.Generator], sensor: Sensor
) -> list[Events]:
    """Recordings of some images at once; ``generators`` holds one for each."""
    n = len(pixels)
    threshold = np.tile(pixel_threshold, n)
    brightness = pixels.astype(np.float32) / np.float32(255)
    positions = _positions(sensor)
    sub_frame = sensor.saccade / sensor.sub_frames

    before = _log_intensity(brightness, positions[0], sensor.floor)
    # What a pixel saw before has left its reference anywhere within a threshold. References equal to the
    # first image would meet the closed path's end exactly, in a burst of events that no camera sends.
    memory = np.concatenate([rng.uniform(-1, 1, _N_PIXELS) for rng in generators])
    reference = before + (threshold * memory).astype(np.float32)
    last_event = np.full(before.size, -np.inf, np.float32)
    where, when, which = [], [], []
    for step, position in enumerate(positions[1:]):
        after = _log_intensity(brightness, position, sensor.floor)
        cells = np.flatnonzero(np.abs(after - reference) >= threshold)
        while cells.size:
            rising = after[cells] > reference[cells]
            level = reference[cells] + np.where(rising, threshold[cells], -threshold[cells])
            change = after[cells] - before[cells]
            # A still pixel can stand at a threshold through rounding alone: its event comes at the sub-frame's end.
            fraction = np.divide(level - before[cells], change, out=np.ones_like(change), where=change != 0)
            t = np.float32(sub_frame) * (np.float32(step) + np.clip(fraction, 0, 1))
            heard = t - last_event[cells] >= sensor.refractory
            last_event[cells[heard]] = t[heard]
            where.append(cells[heard])
            when.append(t[heard].astype(np.int64))
            which.append(rising[heard])
            reference[cells] = level
            cells = cells[np.abs(after[cells] - level) >= threshold[cells]]
        before = after

    duration = 3 * sensor.saccade
    mean_noise = sensor.noise_rate * _N_PIXELS * duration * 1e-6
    for k, rng in enumerate(generators):
        n_noise = int(rng.poisson(mean_noise))
        where.append(k * _N_PIXELS + rng.integers(_N_PIXELS, size=n_noise))
        when.append(rng.integers(duration, size=n_noise))
        which.append(rng.random(n_noise) < 0.5)

    cell, t, polarity = np.concatenate(where), np.concatenate(when), np.concatenate(which)
    recording, pixel = np.divmod(cell, _N_PIXELS)
    # One sort for all: by recording, then time, then pixel so that ties have one order.
    order = np.argsort((recording * (duration + 1) + t) * _N_PIXELS + pixel, kind="stable")
    row, column = np.divmod(pixel[order], SENSOR_SIZE)
    x, y = column.astype(np.uint8), row.astype(np.uint8)
    polarity, t = polarity[order].astype(np.uint8), t[order]
    ends = np.cumsum(np.bincount(recording, minlength=n))
    return [Events(x[a:b], y[a:b], polarity[a:b], t[a:b]) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
