"""The process that compiles ahead: what it runs, and that a training does not depend on it."""

import io
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import numba
import numpy as np
import pytest

from ide_ref import presets
from ide_ref.datasets import load
from ide_ref.training import _ahead, checkpoint, loop, step
from ide_ref.training.evaluation import load_batch


@pytest.fixture
def digits():
    preset = presets.load("digits")
    return loop._prepared(replace(preset, recipe=replace(preset.recipe, epochs=1)), load("digits", limit=40), None)


def test_it_makes_a_step_without_a_rollout(digits, monkeypatch, tmp_path):
    checkpoint.save(tmp_path / "state", loop.begin(digits, 0))
    x, y = load_batch(digits, load("digits", limit=40), "train", range(16))
    given = io.BytesIO()
    np.savez(given, x=x, y=y)
    given.seek(0)
    threads = numba.get_num_threads()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=given))
    monkeypatch.setattr(step, "simulate", None)  # put back afterwards
    try:
        done = _ahead.main(str(tmp_path / "state"), 1)
    finally:
        numba.set_num_threads(threads)
    assert not done.rates.a.any()
    assert done.rates.x_mean.shape == x.shape
    assert done.backward.solution.converged
    assert done.backward.gradients["readout.bias"].any()
    assert any(np.any(done.velocity[name] != 0) for name in done.velocity)


def test_a_training_is_the_same_with_it_and_leaves_no_process(digits, tmp_path, monkeypatch):
    started, ends = [], []

    class Process(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(_ahead.subprocess, "Popen", Process)
    monkeypatch.setattr(numba, "get_num_threads", lambda: 2)
    for compiled in (True, False):
        monkeypatch.setattr(_ahead, "rollout", SimpleNamespace(is_compiled=lambda compiled=compiled: compiled))
        ends.append(loop.train(digits, load("digits", limit=40), out=tmp_path / str(compiled)).checkpoint.params)
        assert len(started) == (not compiled)
    assert started[0].returncode is not None
    for name, value in ends[0].items():
        assert np.array_equal(value, ends[1][name]), name
