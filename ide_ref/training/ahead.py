"""First use: while a training compiles what runs forward, another process compiles what runs backward.

Compiled kernels are kept on disk, so each of two processes that compile finds there what the other has done by then.
The other one makes a training step without its rollout, as if nothing had fired, which is thrown away; whatever becomes
of it, the training itself goes the same way.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numba
import numpy as np
from numpy.typing import NDArray

from ide_ref._kernels.rollout import rollout
from ide_ref.implicit import Backward
from ide_ref.maps import Frozen
from ide_ref.network import Params
from ide_ref.presets import Preset
from ide_ref.simulation import Rates
from ide_ref.training import step


@contextmanager
def compiling(preset: Preset, params: Params, velocity: Params, x: NDArray, y: NDArray) -> Iterator[None]:
    """Compile ahead for a training whose first batch is like x, y, until the end of the block at the latest."""
    if preset.recipe.method != "ide" or rollout.is_compiled():
        yield
        return
    with tempfile.TemporaryFile() as given:
        pickle.dump((preset.to_dict(), params, velocity, x, y, numba.get_num_threads()), given)
        given.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-c", "from ide_ref.training import ahead; ahead.main()"],
            # The package may lie where only this process looks.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            stdin=given,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is the training's
        )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> step.Step:
    """What the other process runs, on what `compiling` gives it as standard input."""
    preset, params, velocity, x, y, n_threads = pickle.load(sys.stdin.buffer)
    numba.set_num_threads(n_threads)
    step.simulate = silent  # type: ignore[attr-defined]
    done = step.training_step(Preset.from_dict(preset), params, velocity, x, y, rate=0.0, rng=np.random.default_rng(0))
    if isinstance(done.backward, Backward):
        done.backward.certificate.max()  # told at the end of an epoch
    return done


def silent(frozen: Frozen, x: NDArray, n_steps: int, *, record: bool = False) -> Rates:
    """What `simulate` returns where nothing fires."""
    net, n_batch, dtype = frozen.network, len(x), frozen.dtype
    a, counts = np.zeros((n_batch, net.state_size), dtype), np.zeros((n_batch, len(net.populations)), np.int64)
    return Rates(net, a, a, frozen.mean_input(x), n_steps, counts, counts, np.zeros(n_batch, dtype))
