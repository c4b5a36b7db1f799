"""Memory of training steps over T, for both gradients: of a whole process, and of the arrays in it.

Source: ``docs/backpropagation-through-time.md``.
"""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ide_ref import _checks
from ide_ref.presets import Preset
from ide_ref.training.loop import begin
from ide_ref.training.step import training_step

METHODS = ("ide", "stbp")


@dataclass(frozen=True)
class StepMemory:
    """What training steps of one kind took, in bytes."""

    method: str
    n_steps: int
    """T."""
    batch_size: int
    resident: int
    """The most that the process had of the machine's memory, Python and its libraries included."""
    idle: int
    """The same before the first step."""
    arrays: int
    """The most that NumPy's arrays took at once: parameters, input, and what is kept for the next array included."""
    recording: int
    """Of the arrays, spikes and potentials of all steps: B T n (1 + itemsize) of "stbp", 0 of "ide"."""


def step_memory(
    preset: Preset,
    n_steps: Sequence[int],
    *,
    batch_size: int = 128,
    methods: Sequence[str] = METHODS,
    seed: int = 0,
) -> tuple[StepMemory, ...]:
    """Memory of training steps on drawn inputs, for each method and T.

    Each is measured in processes of its own: one for the resident size, as the system tells it, and one in which every
    array is counted, which takes memory itself (and counts some ten kB of Python's other objects, which come and go).

    Parameters
    ----------
    preset : Preset
        Its recipe says the dtype and all else.
    n_steps : sequence of int
        Numbers T.
    methods : sequence of str
        Some of :data:`METHODS`.

    Raises
    ------
    ValueError
        For an argument that makes no sense.
    RuntimeError
        A process ended early; with its last line.
    """
    _checks.kind("preset", preset, Preset)
    times = [_checks.whole("n_steps", t) for t in n_steps]
    _checks.whole("batch_size", batch_size)
    _checks.whole("seed", seed, 0)
    if not methods or not all(_checks.is_one_of(name, METHODS) for name in methods):
        raise ValueError(f"methods is {methods!r}; expected some of {', '.join(METHODS)}")
    found: list[StepMemory] = []
    for method in methods:
        for t in times:
            changes: dict[str, Any] = {"method": method, "n_steps": t, "first_steps": None, "allow_unconverged": True}
            recipe = replace(preset.recipe, **changes)
            about = {"preset": replace(preset, recipe=recipe).to_dict(), "batch_size": batch_size, "seed": seed}
            # The first may have to compile.
            if not found:
                _in_its_own_process({**about, "batch_size": 2, "count_arrays": False})
            resident = _in_its_own_process({**about, "count_arrays": False})
            arrays = _in_its_own_process({**about, "count_arrays": True})
            n_bytes = np.dtype(recipe.dtype).itemsize + 1
            recording = batch_size * t * preset.network.state_size * n_bytes if method == "stbp" else 0
            found.append(StepMemory(method, t, batch_size, **resident, **arrays, recording=recording))
    return tuple(found)


def _in_its_own_process(about: dict[str, Any]) -> dict[str, int]:
    command = [sys.executable, "-m", "ide_ref.measure.memory"]
    done = subprocess.run(command, input=json.dumps(about), capture_output=True, text=True)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(f"a training step in a process of its own: {said[-1]}")
    return dict(json.loads(done.stdout))


def _measure(about: dict[str, Any]) -> dict[str, int]:
    """Of this process: three training steps, the first of two samples."""
    preset, rng = Preset.from_dict(about["preset"]), np.random.default_rng(about["seed"])
    if about["count_arrays"]:
        tracemalloc.start()
    state = begin(preset, about["seed"])
    recipe, size = preset.recipe, about["batch_size"]
    spikes = recipe.input == "spikes"
    shape = (size, recipe.n_steps, *preset.input_shape) if spikes else (size, *preset.input_shape)
    x = (rng.random(shape) < 0.05 if spikes else rng.normal(size=shape)).astype(recipe.dtype)
    y = rng.integers(0, preset.n_classes, size)
    params, velocity = state.params, state.velocity
    # A training does not keep what it began with.
    del state
    idle = others = 0
    for samples in (slice(2), slice(None), slice(None)):
        done = training_step(preset, params, velocity, x[samples], y[samples], rate=recipe.lr, rng=rng)
        params, velocity = done.params, done.velocity
        del done
        if not idle:
            # By now all kernels are loaded.
            idle = _peak()
            if about["count_arrays"]:
                gc.collect()
                only = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
                arrays = tracemalloc.take_snapshot().filter_traces([only]).traces
                others = tracemalloc.get_traced_memory()[0] - sum(trace.size for trace in arrays)
                tracemalloc.reset_peak()
    if about["count_arrays"]:
        return {"arrays": tracemalloc.get_traced_memory()[1] - others}
    return {"resident": _peak(), "idle": idle}


def _peak() -> int:
    """The largest resident size of this process so far, in bytes."""
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def to_dict(found: Sequence[StepMemory]) -> list[dict[str, Any]]:
    """Fit for JSON."""
    return [asdict(one) for one in found]


def table(found: Sequence[StepMemory]) -> str:
    """As text, in MiB, with ratios to the first T of the same method."""
    lines = [
        f"{'method':<8}{'T':>5}{'B':>5}{'resident':>10}{'idle':>8}{'arrays':>10}{'recording':>11}{'arrays, ratio':>15}"
    ]
    for one in found:
        first = next(other for other in found if other.method == one.method)
        sizes = (size / 2**20 for size in (one.resident, one.idle, one.arrays, one.recording))
        numbers = "{:>10.0f}{:>8.0f}{:>10.0f}{:>11.0f}".format(*sizes)
        lines.append(f"{one.method:<8}{one.n_steps:>5}{one.batch_size:>5}{numbers}{one.arrays / first.arrays:>15.2f}")
    return "\n".join(
        [*lines, "MiB: the process at most, before its steps, NumPy's arrays at most, of these the recording"]
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measure(json.load(sys.stdin))))
