"""The loop against the pipeline of public names, and what its bits may depend on."""

import json
import signal
from dataclasses import replace

import numba
import numpy as np
import pytest
import tiny

import ide_ref
from ide_ref.datasets import load, make_recordings
from ide_ref.presets import Preset
from ide_ref.training import checkpoint, evaluation, loop, step


def conv(**changes):
    recipe = tiny.preset(**{"flip": True, "solver": "anderson", **changes}).recipe
    return Preset("tiny-conv", "2C3s-3C3 (F2C3)", (1, 8, 8), 10, ide_ref.LIF(0.9), 0.2, recipe)


both = pytest.mark.parametrize("make", [tiny.preset, conv])


@both
@pytest.mark.parametrize("readout_rate", [1.0, 0.25])
def test_an_epoch_of_one_batch_is_the_pipeline(tmp_path, make, readout_rate):
    preset = make(epochs=1, batch_size=64, warmup_steps=0, dtype="float64", tol=1e-9, readout_rate=readout_rate)
    network, recipe, data = preset.network, preset.recipe, tiny.data(20)
    result = loop.train(preset, data, out=tmp_path, seed=5)

    params = network.init(loop.generator(5, "init"))
    rng = loop.generator(5, "batch", 0, 0)
    x, y = evaluation.load_batch(preset, data, "train", loop.generator(5, "order", 0).permutation(20), rng=rng)
    frozen = ide_ref.freeze(network, params, x, training=True, rng=rng)
    rates = ide_ref.simulate(frozen, x, recipe.n_steps)
    logits = ide_ref.read_out(frozen, rates)
    loss, d_logits = ide_ref.cross_entropy(logits, y)
    back = ide_ref.backward(frozen, rates, d_logits, solver="direct")
    # The first step of momentum is a plain one.
    for name in network.trainable:
        v = back.gradients[name] + 5e-4 * params[name]
        np.testing.assert_allclose(result.checkpoint.velocity[name], v, rtol=1e-6, atol=1e-9)
        moved = params[name] - 0.1 * (readout_rate if name in ("readout.weight", "readout.bias") else 1) * v
        expected = np.clip(moved, -1, 1) if name == "feedback.alpha" else moved
        np.testing.assert_allclose(result.checkpoint.params[name], expected, rtol=1e-9, atol=1e-9)
    assert tiny.same(back.statistics, {name: result.checkpoint.params[name] for name in back.statistics})

    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    expected = {
        "epoch": 1,
        "lr": 0.1,
        "train_loss": loss,
        "train_accuracy": np.mean(logits.argmax(axis=1) == y),
        "firing_rate": rates.n_spikes.sum() / (20 * recipe.n_steps * network.state_size),
        "contraction": back.contraction,
    }
    assert {name: line[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert line["solver_residual"] <= 1e-9


def test_convolutions_resume_to_the_last_bit(tmp_path, monkeypatch):
    data, calls = tiny.data(40), iter(range(100))
    whole = loop.train(conv(epochs=2), data, out=tmp_path / "whole")
    backward = step.backward

    def interrupted(*args, **options):
        if next(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return backward(*args, **options)

    monkeypatch.setattr(step, "backward", interrupted)
    stopped = loop.train(conv(epochs=2), data, out=tmp_path / "parts").checkpoint
    assert (stopped.epoch, stopped.step) == (1, 2)
    resumed = loop.train(conv(epochs=2), data, out=tmp_path / "parts", resume=True)
    assert tiny.same(resumed.checkpoint.params, whole.checkpoint.params)
    assert tiny.same(resumed.checkpoint.velocity, whole.checkpoint.velocity)


def test_every_batch_has_random_numbers_of_its_own(tmp_path, monkeypatch):
    masks = []

    def spy(network, params, x=None, **options):
        frozen = ide_ref.freeze(network, params, x, **options)
        masks.extend(c.keep.tobytes() for c in frozen.maps if x is not None)
        return frozen

    monkeypatch.setattr(step, "freeze", spy)
    loop.train(tiny.preset(epochs=2, batch_size=25), tiny.data(), out=tmp_path)
    # A mask each for input and feedback, in each of two batches of each of two epochs.
    assert len(set(masks)) == len(masks) == 8


def test_alpha_stays_within_its_bounds(tmp_path, monkeypatch):
    backward = step.backward

    def upwards(*args, **options):
        result = backward(*args, **options)
        return replace(result, gradients={**result.gradients, "feedback.alpha": np.float32(-100)})

    monkeypatch.setattr(step, "backward", upwards)
    assert loop.train(tiny.preset(epochs=1), tiny.data(), out=tmp_path).checkpoint.params["feedback.alpha"] == 1


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one processor")
@both
def test_the_weights_do_not_depend_on_the_threads(tmp_path, make):
    before = numba.get_num_threads()
    results = []
    try:
        for n in (1, 2):
            numba.set_num_threads(n)
            results.append(loop.train(make(epochs=1), tiny.data(), out=tmp_path / str(n)).checkpoint.params)
    finally:
        numba.set_num_threads(before)
    assert tiny.same(*results)


@both
def test_the_rates_do_not_depend_on_the_batches_and_nothing_is_written_into(make):
    preset, data = make(), tiny.data()
    params = loop.begin(preset, 0).params
    for array in params.values():
        array.flags.writeable = False
    frozen = ide_ref.freeze(preset.network, params)

    def rates(first, last):
        x, _ = evaluation.load_batch(preset, data, "test", np.arange(first, last))
        return ide_ref.simulate(frozen, x, preset.recipe.n_steps).a

    parts = [rates(first, min(first + 7, 50)) for first in range(0, 50, 7)]
    assert np.concatenate(parts).tobytes() == rates(0, 50).tobytes()
    whole = evaluation.evaluate(preset, params, data)
    for batch_size in (1, 7, 50):
        tested = evaluation.evaluate(preset, params, data, batch_size=batch_size)
        assert (tested.accuracy, tested.firing_rates) == (whole.accuracy, whole.firing_rates)
        assert tested.loss == pytest.approx(whole.loss, rel=1e-6)


def test_the_first_number_that_is_not_finite_is_named(tmp_path, monkeypatch):
    """The loss, or the weights; in the second epoch's third batch."""
    data, original = tiny.data(), step.cross_entropy
    calls = iter(range(100))

    def broken(logits, y, **options):
        loss, gradient = original(logits, y, **options)
        return (np.nan if next(calls) == tiny.N_BATCHES + 2 else loss), gradient

    monkeypatch.setattr(step, "cross_entropy", broken)
    with pytest.raises(loop.Diverged, match=r"^epoch 2, batch 3: the loss is nan; the checkpoint after epoch 1 is"):
        loop.train(tiny.preset(), data, out=tmp_path / "loss")
    monkeypatch.undo()
    with pytest.raises(loop.Diverged, match=r"^epoch 1, batch 1: input.weight has left the range of float32"):
        loop.train(tiny.preset(lr=1e30, warmup_steps=0), data, out=tmp_path / "weight")
    assert [checkpoint.load(tmp_path / name / loop.CHECKPOINT).epoch for name in ("loss", "weight")] == [1, 0]


def test_each_file_alone_protects_a_folder(tmp_path):
    for name in (loop.CHECKPOINT, loop.METRICS, loop.RUN):
        out = tmp_path / name
        out.mkdir()
        (out / name).write_text("precious")
        with pytest.raises(ValueError, match="holds a training already"):
            loop.train(tiny.preset(), tiny.data(), out=out)
        assert [(p.name, p.read_text()) for p in out.iterdir()] == [(name, "precious")]


def test_spike_trains_are_trained_on(tmp_path):
    images = np.zeros((12, 28, 28), np.uint8)
    labels = np.arange(12) % 2
    images[labels == 0, 4:24, 4:12] = 255
    images[labels == 1, 16:24, 4:24] = 255
    folder = tmp_path / "nmnist"
    for split in ("train", "test"):
        make_recordings(images, labels, folder, split=split)
    data = load("nmnist", data_dir=tmp_path, n_frames=4)
    two = {"mean": (0.0, 0.0), "std": (1.0, 1.0)}
    recipe = replace(tiny.RECIPE, dataset="nmnist", n_steps=4, **two, input="spikes", limit=None, crop=0)
    preset = Preset("tiny-events", "1C5s (F1C5)", (2, 34, 34), 10, ide_ref.IF(), 0.0, recipe)
    history = loop.train(preset, data, out=tmp_path / "run").checkpoint.history
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    x, y = evaluation.load_batch(preset, data, "train", [0, 11])
    assert x.shape == (2, 4, 2, 34, 34)
    assert x.dtype == np.float32
    assert set(np.unique(x)) == {0.0, 1.0}
    assert y.tolist() == data.y_train[[0, 11]].tolist()


def test_accuracy_and_loss_of_known_logits(monkeypatch):
    """Of a readout that says the same of every image: p of class k is (k + 1)/55."""
    preset, data = tiny.preset(), tiny.data()
    params = dict(loop.begin(preset, 0).params)
    params["readout.weight"] = np.zeros_like(params["readout.weight"])
    params["readout.bias"] = np.log(np.arange(1, 11)).astype(np.float32)
    result = evaluation.evaluate(preset, params, data)
    assert result.accuracy == np.mean(data.y_test == 9)
    assert result.loss == pytest.approx(np.mean(np.log(55 / (data.y_test + 1))), rel=1e-6)
    assert result.n_samples == 50


def test_the_readouts_rate_is_that_of_nothing_named_like_it(tmp_path):
    """A connection may be called "readout.in": its parameters move as at the rate of all."""
    preset = conv(epochs=1, batch_size=64, warmup_steps=0, dtype="float64")
    c, *rest = preset.network.connections
    network = replace(preset.network, connections=(replace(c, name="readout.in"), *rest))
    recipes = [replace(preset.recipe, readout_rate=rate) for rate in (1.0, 0.25)]
    trained = [loop.train(network, tiny.data(20), r, out=tmp_path / str(r.readout_rate)) for r in recipes]
    plain, slow = (t.checkpoint.params for t in trained)
    differing = {name for name in plain if not np.array_equal(plain[name], slow[name])}
    assert "readout.in.weight" in plain
    assert differing == {"readout.weight", "readout.bias"}
