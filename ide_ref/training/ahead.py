"""First use: while a training compiles what runs forward, another process compiles what runs backward.

Compiled kernels are kept on disk, so each of two processes that compile takes from the other what that has done by
then. The other one runs a training step without its rollout, for no rates at all, and its result is thrown away;
whatever becomes of it, the training itself goes the same way.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from ide_ref._kernels.rollout import rollout
from ide_ref.implicit import backward
from ide_ref.maps import freeze, read_out
from ide_ref.network import Params
from ide_ref.presets import Preset
from ide_ref.simulation import Rates
from ide_ref.training.losses import cross_entropy
from ide_ref.training.step import optimiser


@contextmanager
def compiling(preset: Preset, params: Params, x: NDArray, y: NDArray) -> Iterator[None]:
    """Compile ahead for a training whose first batch is x, y; in vain after the block, so it is ended with it."""
    if preset.recipe.method != "ide" or rollout.is_compiled() or len(os.sched_getaffinity(0)) == 1:
        yield
        return
    process = subprocess.Popen(
        [sys.executable, "-c", "from ide_ref.training import ahead; ahead.main()"],
        # What was imported here may lie where only this process looks.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with process.stdin as stdin:  # type: ignore[union-attr]
            pickle.dump((preset.to_dict(), params, x, y, numba.get_num_threads()), stdin)
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """The other process: what `compiling` sends on standard input, to be compiled for."""
    preset, params, x, y, n_threads = pickle.load(sys.stdin.buffer)
    numba.set_num_threads(n_threads)
    backwards(Preset.from_dict(preset), params, x, y)


def backwards(preset: Preset, params: Params, x: NDArray, y: NDArray) -> Params:
    """The parameters after a training step whose rollout found no spikes."""
    recipe, network = preset.recipe, preset.network
    frozen = freeze(network, params, x, training=True, rng=np.random.default_rng(0))
    n, n_populations = network.state_size, len(network.populations)
    counts: Any = np.zeros((2, len(x), n_populations), np.int64)
    a, margin = np.zeros((len(x), n), frozen.dtype), np.zeros(len(x), frozen.dtype)
    rates = Rates(network, a, a[:, :0], frozen.mean_input(x), recipe.n_steps, *counts, margin)
    _, d_logits = cross_entropy(read_out(frozen, rates), y)
    back = backward(frozen, rates, d_logits, solver=recipe.solver, tol=recipe.tol, allow_unconverged=True)
    back.certificate.max()  # what the end of an epoch tells
    velocity = {name: np.zeros_like(value) for name, value in params.items()}
    new, _ = optimiser(recipe).step({**params, **back.statistics}, velocity, back.gradients, rate=0.0)
    return network.project(new)
