"""First use: while a training compiles what runs forward, another process compiles what runs backward.

Compiled kernels are kept on disk, so each of two processes that compile finds there what the other has done by then.
The other one makes a training step without its rollout, as if nothing had fired, which is thrown away; whatever becomes
of it, the training itself goes the same way.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numba
import numpy as np
from numpy.typing import NDArray

from ide_ref._kernels.rollout import rollout
from ide_ref.implicit import Backward
from ide_ref.maps import Frozen
from ide_ref.simulation import Rates
from ide_ref.training import checkpoint, step

_MAIN = "import sys; from ide_ref.training import _ahead; _ahead.main(sys.argv[1], int(sys.argv[2]))"


@contextmanager
def compiling(path: Path, x: NDArray, y: NDArray) -> Iterator[None]:
    """Compile ahead for the training of a checkpoint, until the end of the block at the latest.

    Parameters
    ----------
    path : Path
        The checkpoint.
    x, y : (B, *input_shape) or (B, T, *input_shape) array, (B,) integers
        A batch like those to come.
    """
    if rollout.is_compiled():
        yield
        return
    with tempfile.TemporaryFile() as batch:
        np.savez(batch, x=x, y=y)
        batch.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-c", _MAIN, str(path), str(numba.get_num_threads())],
            # The package may lie where only this process looks.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(place or os.getcwd() for place in sys.path)},
            stdin=batch,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is the training's
        )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main(path: str, n_threads: int) -> step.Step:
    """What the other process runs, for the batch that it finds on its standard input."""
    numba.set_num_threads(n_threads)
    state, batch = checkpoint.load(Path(path)), np.load(sys.stdin.buffer)
    step.simulate = silent  # type: ignore[attr-defined]
    done = step.training_step(
        state.preset, state.params, state.velocity, batch["x"], batch["y"], rate=0.0, rng=np.random.default_rng(0)
    )
    if isinstance(done.backward, Backward):
        done.backward.certificate.max()  # told at the end of an epoch
    return done


def silent(frozen: Frozen, x: NDArray, n_steps: int, *, record: bool = False) -> Rates:
    """What `simulate` returns for x (B, *input_shape) or (B, T, *input_shape) where nothing fires."""
    net, n_batch, dtype = frozen.network, len(x), frozen.dtype
    a, counts = np.zeros((n_batch, net.state_size), dtype), np.zeros((n_batch, len(net.populations)), np.int64)
    return Rates(net, a, a, frozen.mean_input(x), n_steps, counts, counts, np.zeros(n_batch, dtype))
