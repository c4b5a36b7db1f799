"""How many threads a computation gets: one where waking the others costs more than they bring."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRuns
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

SMALL = 1 << 24
"""Multiply-adds of a sweep of the whole batch below which one thread is as quick as two: digits at batch 128 has 11
million and takes 0.8 of the time of two, fashion-mnist-400 has 60 million."""

LONG = 1 << 30
"""Multiply-adds above which one call of a kernel may last so long that signals shall not wait for it, from 0.05 s."""

POLL = 0.1
"""Seconds from one look for signals to the next, on systems where a waiting thread hears none."""

P = ParamSpec("P")
R = TypeVar("R")

RUNNING = Path("/proc/loadavg")
"""Where Linux tells how many threads of the machine run or wait for a processor at this moment."""


def others_run() -> bool:
    """Whether somebody else works on the machine just now, five looks in a row; True where that is not told."""
    for look in range(5):
        try:
            n_running = int(RUNNING.read_text().split()[3].partition("/")[0])
        except (OSError, ValueError, IndexError):
            return True
        # One of them is this very thread.
        if n_running <= 1:
            return False
        time.sleep(1e-3 * (look < 4))
    return True


def _waiting() -> dict[str, str]:
    """How libgomp's threads are to wait, in its own words: it reads them with the first kernel that runs in parallel.

    One that spins is there at once, which makes a step of fashion-mnist-400 twice as fast, but takes its core from
    whoever else works there: then a step may take five times as long. So only where nobody does, and briefly.
    """
    return {"OMP_WAIT_POLICY": "passive"} if others_run() else {"GOMP_SPINCOUNT": "20000"}


if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
    os.environ.update(_waiting())


def _one_after_fork() -> None:
    """GNU OpenMP ends a child of fork that asks for the parent's threads; one thread of its own computes there."""
    # Told as soon as there are any.
    with suppress(ValueError):
        numba.threading_layer()  # type: ignore[attr-defined]
        numba.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_one_after_fork)


@contextmanager
def fit(work: float) -> Iterator[None]:
    """One thread where a sweep of a batch has few multiply-adds, all there are otherwise."""
    before = numba.get_num_threads()
    numba.set_num_threads(1 if work < SMALL else before)
    try:
        yield
    finally:
        numba.set_num_threads(before)


def fitted(function: Callable[P, R]) -> Callable[P, R]:
    """A function of a network (or of what was frozen of one) and a batch that runs on one thread where that is enough.

    The first argument has ``n_multiplications``; the batch is the first array, or has it as ``a``.
    """

    @wraps(function)
    def _call(*args: P.args, **kwargs: P.kwargs) -> R:
        with fit(_work(*args, **kwargs)):
            return function(*args, **kwargs)

    return _call


def _work(owner: Any = None, *others: Any, **named: Any) -> float:
    """Multiply-adds of a sweep, of one sample where there is no batch; 0 for what the function itself will refuse."""
    of_one = float(getattr(getattr(owner, "network", owner), "n_multiplications", 0))
    for argument in (*others, *named.values()):
        batch = getattr(argument, "a", argument)
        if isinstance(batch, np.ndarray) and batch.ndim > 1:
            return of_one * len(batch)
    return of_one


waiting = False
"""Whether the main thread waits in `stoppable`: a handler of signals may raise there, and the kernel stops."""


def stoppable(kernel: Callable[[NDArray[np.uint8]], None], work: float) -> None:
    """Call a kernel with its flag ``stop``; where `work` is long, so that Ctrl-C and other signals do not wait for it.

    Python's handlers run in the main thread, between two of its instructions, and a kernel is one. So a long one runs
    in a thread of its own. Whatever a handler raises meanwhile sets the flag, and is raised here once the kernel has
    ended.
    """
    global waiting
    stop = np.zeros(1, np.uint8)
    if work < LONG or threading.current_thread() is not threading.main_thread():
        kernel(stop)
        return
    n_threads = numba.get_num_threads()

    def run() -> None:
        # Numba counts threads for each caller.
        numba.set_num_threads(n_threads)
        kernel(stop)

    with ThreadPoolExecutor(1) as pool:
        try:
            waiting = True
            running = pool.submit(run)
            while True:
                try:
                    return running.result(timeout=POLL)
                except StillRuns:
                    pass
        except BaseException:
            stop[0] = 1
            raise
        finally:
            waiting = False
