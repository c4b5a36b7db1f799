"""What ``ide-ref bench`` times and derives; never how long it took."""

import itertools
import json
import re
from dataclasses import fields, replace
from types import SimpleNamespace

import numba
import numpy as np
import pytest
import tiny
from graphs import cases
from hypothesis import assume, given
from hypothesis import strategies as st

from ide_ref import SGD, build, figures, presets, simulate
from ide_ref.authors import PAPER, Profile
from ide_ref.bench import dense, machine, steps
from ide_ref.cli import main
from ide_ref.neurons import IF
from ide_ref.training import loop
from ide_ref.training.step import STAGES
from ide_ref.verify import small


def test_timings_are_of_the_steps_described():
    preset = tiny.preset()
    threads = (1, machine.most_threads())
    before = numba.get_num_threads()
    found = steps.run(preset, warm_up=2, repeats=3, threads=threads, rate=1e9)
    assert numba.get_num_threads() == before
    assert [t.threads for t in found] == list(threads)
    for t in found:
        assert (t.preset, t.dtype, t.n_steps, t.batch_size) == ("tiny", "float32", 3, 16)
        assert set(t.stages) == set(STAGES)
        assert 0 < t.fastest <= t.step <= t.slowest
        # 8 (F8) over 64 inputs: the drive once, three sweeps forward; with the gradient twice and 34 sweeps.
        assert t.dense_forward == pytest.approx(2 * 16 * (64 * 8 + 3 * 64) / 1e9)
        assert t.dense_equivalent == pytest.approx(2 * 16 * (2 * 64 * 8 + 34 * 64) / 1e9)
        document = t.to_dict()
        assert document["ratio"] == t.step / t.dense_equivalent
        assert document["forward_ratio"] == t.dense_forward / t.forward
        assert document["samples_per_second"] == 16 / t.step
        if t.threads == machine.most_threads():
            assert document["blas_ratio"] == t.dense_rollout / t.forward > 0
        else:
            assert document["blas_ratio"] is None


@given(case=cases(exact=True, dtype=np.float32), room=st.integers(1, 4000))
def test_the_rollout_with_blas_is_the_same_rollout(case, room):
    """On sums without rounding, whatever the share of the batch that one product takes."""
    assume(not case.network.is_spike_input(case.x))
    assume(not any(c.synapse.depthwise and c.source != "input" for c in case.network.connections))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "COLUMNS_BYTES", room)
        found = dense.dense_rollout(case.frozen, case.x, case.n_steps)
    np.testing.assert_allclose(found, simulate(case.frozen, case.x, case.n_steps).a, rtol=0, atol=1e-6)


FAMILIES = ("digits", "mnist-64c5", "nmnist-64c5", "cifar10-alexnet-f", "cifar10-cifarnet-f")
SWITCHES = [field.name for field in fields(Profile)]


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        *itertools.product(FAMILIES, ("paper", "authors")),
        *itertools.product(("nmnist-64c5", "cifar10-alexnet-f"), SWITCHES),
    ],
)
def test_the_steps_that_are_timed_are_those_of_training(name, profile, monkeypatch):
    """The same gradients, parameters, velocities and rates to the last bit, step by step, whatever the profile."""
    preset = small.shrink(presets.load(name, n_steps=4, profile="authors" if profile == "authors" else "paper"))
    if profile not in ("paper", "authors"):
        preset = replace(preset, profile=replace(PAPER, **{profile: True}))
    preset = replace(preset, recipe=replace(preset.recipe, batch_size=4, allow_unconverged=True))
    _, x, y = small.draw(preset, 12)
    if len(preset.network.populations) > 1:  # spikes in the last one, too
        x, preset = 4 * x, replace(preset, neuron=replace(preset.neuron, v_th=0.5))
    data = SimpleNamespace(name="drawn", y_train=y)
    for module in (steps, loop):
        monkeypatch.setattr(module, "load_batch", lambda p, d, s, chosen, **_: (x[chosen].astype("f4"), y[chosen]))
    monkeypatch.setattr(steps, "find_data", lambda *_: data)
    original, made = SGD.step, []

    def noted(self, params, velocity, gradients, *, rate):
        found = original(self, params, velocity, gradients, rate=rate)
        made.append((rate, gradients, *found))
        return found

    monkeypatch.setattr(SGD, "step", noted)
    steps.run(preset, warm_up=1, repeats=2, threads=(1,), rate=1e9)
    state = loop.begin(preset, 0)
    for chosen in loop.generator(0, "order").permutation(12).reshape(3, 4):
        state = loop._train_batch(state, data, chosen, 3)
    assert len(made) == 6
    for timed, trained in zip(made[:3], made[3:], strict=True):
        assert timed[0] == trained[0]
        for ours, theirs in zip(timed[1:], trained[1:], strict=True):
            assert tiny.same(ours, theirs)
    assert made[2][1]["readout.weight"].any()


def test_a_spike_counts_for_each_receiver():
    network = build("2C3 (F2C3)", input_shape=(1, 4, 4), n_classes=2, neuron=IF())
    # Nine taps, less those beyond the border: 100 pairs of 16 positions, two channels each.
    assert steps._events(network, np.array([[16], [16]])) == pytest.approx(2 * 16 * 100 * 2 / 16)


@pytest.mark.parametrize(("threads", "message"), [((0,), "threads is"), ((10**6,), "whole numbers from 1 to")])
def test_wrong_threads_are_named(threads, message):
    with pytest.raises(ValueError, match=message):
        steps.run(tiny.preset(), warm_up=1, repeats=1, threads=threads, rate=1e9)


def test_the_command_times_each_dtype_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(presets._TABLE, "tiny", tiny.preset())
    monkeypatch.setattr(machine, "matrix_rate", lambda: 1e11)
    path = tmp_path / "roofline.png"
    words = ["bench", "tiny", "--steps", "1", "--warm-up", "1", "--dtype", "float32", "float64", "--threads", "1"]
    assert main([*words, "--figure", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [t["dtype"] for t in document["timings"]] == ["float32", "float64"]
    assert document["event_limits"].keys() == machine.EVENT_LIMITS.keys()
    assert all(rate > 0 for rate in document["event_limits"].values())
    assert document["machine"]["threads"] == machine.most_threads()
    assert path.stat().st_size > 10_000
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "synaptic events per second and thread at most" in text
    # What each column is has a line, in their order, and so have the stages below.
    columns = re.split(r" (?!ms|MiB) *", text.splitlines()[0])
    assert [re.split("  +", line)[0] for line in text.partition("\n\n")[2].splitlines()] == [*columns[1:], "ms:"]


def test_a_roofline_takes_any_number_of_points(tmp_path):
    points = [(f"network {i}", 0.001 * (i + 1), 1e10) for i in range(15)]
    figures.roofline(points, limits={"16 KiB": 3e10, "4 MiB": 1e10}, dense=4e10, path=tmp_path / "r.svg")
    text = (tmp_path / "r.svg").read_text()
    assert "spikes per neuron and step" in text
