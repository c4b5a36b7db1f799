"""The machine: what it is, and its rates of a dense matrix product and of events.

Source: ``docs/performance.md``, "What limits it".
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ide_ref._kernels import memory
from ide_ref._kernels import propagate as _propagate
from ide_ref.training.loop import cpu_model, versions

MATRIX = 2048
"""Size of the square product whose rate stands for the machine."""


def describe() -> dict[str, Any]:
    """What the figures depend on: processor, versions."""
    return {"cpu": cpu_model(), "threads": most_threads(), "system": platform.system(), **versions()}


def most_threads() -> int:
    """Threads that the kernels, and the matrix product, have."""
    import numba

    return int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """Median time of a call, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def matrix_rate() -> float:
    """Floating-point operations per second of NumPy's float32 matrix product, n = 2048."""
    a = np.random.default_rng(0).standard_normal((MATRIX, MATRIX), dtype=np.float32)
    return 2.0 * MATRIX**3 / median_seconds(lambda: a @ a, 7)


EVENT_LIMITS = {"16 KiB": 64, "256 KiB": 1024, "4 MiB": 16384}
"""Weights of so many rows of 64 numbers: they fit the first-level cache, the second, and neither."""


def event_limits() -> dict[str, float]:
    """Synaptic events per second of one thread, by the size of the weights, where the rollout reads nothing else."""
    rng = np.random.default_rng(0)
    n_positions, n_events, width = 256, 40, 64
    positions = np.arange(n_positions, dtype=np.int32)
    runs = np.stack([positions, positions + 1, -positions], axis=1)[None]
    first = (np.arange(n_positions + 1, dtype=np.int64) * n_events)[None]
    ones = np.ones(n_positions * n_events, np.float32)
    places = np.zeros(1, np.int64)
    out = memory.zeros((n_positions, width), np.float32)
    found = {}
    for name, n_rows in EVENT_LIMITS.items():
        weights = memory.zeros(n_rows * width, np.float32)
        channels = np.sort(rng.integers(0, n_rows, (n_positions, n_events)), axis=1)
        cells = (channels + positions[:, None] * n_rows).astype(np.uint32).ravel()
        call = partial(
            _propagate.propagate, runs, False, 0, n_positions, first, n_rows, cells, ones, 1, n_rows, weights, 0,
            width, out.reshape(-1), places,
        )  # fmt: skip
        found[name] = n_positions * n_events * width / median_seconds(call, 101)
    return found
