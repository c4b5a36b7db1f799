"""What ``ide-ref bench`` times and derives; never how long it took."""

import json
from dataclasses import replace

import numba
import numpy as np
import pytest
import tiny
from graphs import cases
from hypothesis import assume, given
from hypothesis import strategies as st

from ide_ref import bench, build, figures, presets, simulate
from ide_ref.authors import profile_of
from ide_ref.cli import main
from ide_ref.neurons import IF


def test_timings_are_of_the_steps_described():
    preset = tiny.preset()
    threads = (1, bench.most_threads())
    before = numba.get_num_threads()
    found = bench.run(preset, warm_up=2, repeats=3, threads=threads, rate=1e9)
    assert numba.get_num_threads() == before
    assert [t.threads for t in found] == list(threads)
    for t in found:
        assert (t.preset, t.dtype, t.n_steps, t.batch_size) == ("tiny", "float32", 3, 16)
        assert set(t.stages) == set(bench.STAGES)
        assert 0 < t.fastest <= t.step <= t.slowest
        # 8 (F8) over 64 inputs: the drive once, three sweeps forward; with the gradient twice and 34 sweeps.
        assert t.dense_forward == pytest.approx(2 * 16 * (64 * 8 + 3 * 64) / 1e9)
        assert t.dense_equivalent == pytest.approx(2 * 16 * (2 * 64 * 8 + 34 * 64) / 1e9)
        document = t.to_dict()
        assert document["ratio"] == t.step / t.dense_equivalent
        assert document["forward_ratio"] == t.dense_forward / t.forward
        assert document["samples_per_second"] == 16 / t.step
        if t.threads == bench.most_threads():
            assert document["blas_ratio"] == t.dense_rollout / t.forward > 0
        else:
            assert document["blas_ratio"] is None


@given(case=cases(exact=True, dtype=np.float32), room=st.integers(1, 4000))
def test_the_rollout_with_blas_is_the_same_rollout(case, room):
    """On sums without rounding, whatever the share of the batch that one product takes."""
    assume(not case.network.is_train(case.x))
    assume(not any(c.synapse.depthwise and c.source != "input" for c in case.network.connections))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "COLUMNS_BYTES", room)
        found = bench.dense_rollout(case.frozen, case.x, case.n_steps)
    np.testing.assert_allclose(found, simulate(case.frozen, case.x, case.n_steps).a, rtol=0, atol=1e-6)


def test_the_steps_train_as_the_recipe_says(monkeypatch):
    """Warm-up of the rate and the profile count: they decide how much the network fires."""
    rates, profiles = [], []
    learning_rate, freeze = bench.learning_rate, bench.freeze

    def noted(*args, **options):
        rates.append(learning_rate(*args, **options))
        return rates[-1]

    def kept(*args, **options):
        if options.get("training"):
            profiles.append(profile_of(args[0]))
        return freeze(*args, **options)

    monkeypatch.setattr(bench, "learning_rate", noted)
    monkeypatch.setattr(bench, "freeze", kept)
    profile = replace(tiny.preset().profile, one_power_step=True)
    bench.run(replace(tiny.preset(), profile=profile), warm_up=1, repeats=3, threads=(1,), rate=1e9)
    np.testing.assert_allclose(rates, tiny.RECIPE.lr * np.arange(1, 5) / tiny.RECIPE.warmup_steps)
    assert profiles == [profile] * 4


def test_a_spike_counts_for_each_receiver():
    network = build("2C3 (F2C3)", input_shape=(1, 4, 4), n_classes=2, neuron=IF())
    # Nine taps, less those beyond the border: 100 pairs of 16 positions, two channels each.
    assert bench._events(network, np.array([[16], [16]])) == pytest.approx(2 * 16 * 100 * 2 / 16)


@pytest.mark.parametrize(("threads", "message"), [((0,), "threads is"), ((10**6,), "whole numbers from 1 to")])
def test_wrong_threads_are_named(threads, message):
    with pytest.raises(ValueError, match=message):
        bench.run(tiny.preset(), warm_up=1, repeats=1, threads=threads, rate=1e9)


def test_the_command_times_each_dtype_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(presets._TABLE, "tiny", tiny.preset())
    monkeypatch.setattr(bench, "matrix_rate", lambda: 1e11)
    path = tmp_path / "roofline.png"
    words = ["bench", "tiny", "--steps", "1", "--warm-up", "1", "--dtype", "float32", "float64", "--threads", "1"]
    assert main([*words, "--figure", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [t["dtype"] for t in document["timings"]] == ["float32", "float64"]
    assert document["event_limits"].keys() == bench.EVENT_LIMITS.keys()
    assert all(rate > 0 for rate in document["event_limits"].values())
    assert document["machine"]["threads"] == bench.most_threads()
    assert path.stat().st_size > 10_000
    assert main(words) == 0
    assert "synaptic events a second a thread at most" in capsys.readouterr().out


def test_a_roofline_takes_any_number_of_points(tmp_path):
    points = [(f"network {i}", 0.001 * (i + 1), 1e10) for i in range(15)]
    figures.roofline(points, limits={"16 KiB": 3e10, "4 MiB": 1e10}, dense=4e10, path=tmp_path / "r.svg")
    text = (tmp_path / "r.svg").read_text()
    assert "spikes a neuron and step" in text
