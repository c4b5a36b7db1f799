import io
import itertools
import json
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import tiny
from safetensors import safe_open

from ide_ref import LIF, cross_entropy, freeze, read_out, simulate
from ide_ref.datasets import augment
from ide_ref.equilibrium import contraction
from ide_ref.presets import Preset
from ide_ref.training import checkpoint, loop, step
from ide_ref.training.evaluation import equilibrium_distance, evaluate, load_batch

TIMES = ("seconds", "test_seconds")


def lines(history):
    """Metrics without the clock."""
    return [{name: value for name, value in line.items() if name not in TIMES} for line in history]


@pytest.fixture(scope="module")
def data():
    return tiny.data()


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """A training that nothing interrupted, and its folder."""
    out = tmp_path_factory.mktemp("straight")
    return loop.train(tiny.preset(), data, out=out, seed=1), out


def signal_in(monkeypatch, name, call, *signals):
    """Send signals to this process during one call of a function of the loop."""
    original, calls = getattr(loop, name), iter(range(1000))

    def wrapped(*args, **kwargs):
        if next(calls) == call:
            for signum in signals:
                signal.raise_signal(signum)
        return original(*args, **kwargs)

    monkeypatch.setattr(loop, name, wrapped)


@pytest.mark.parametrize(
    ("place", "call", "epoch", "step"),
    [
        *(("_train_batch", k, *divmod(k + 1, tiny.N_BATCHES)) for k in range(3 * tiny.N_BATCHES) if k % 4 != 3),
        # In the last batch of an epoch or while testing: the batches are done, the epoch is not.
        *(("_train_batch", k, k // 4, 4) for k in (3, 7, 11)),
        *(("evaluate", k, k, 4) for k in range(3)),
    ],
)
def test_interrupted_and_resumed_is_as_never_interrupted(
    straight, data, tmp_path, monkeypatch, place, call, epoch, step
):
    signal_in(monkeypatch, place, call, signal.SIGINT)
    stopped = loop.train(tiny.preset(), data, out=tmp_path, seed=1)
    monkeypatch.undo()
    assert stopped.stopped_by == signal.SIGINT
    assert (stopped.checkpoint.epoch, stopped.checkpoint.step) == (epoch, step)
    assert json.loads((tmp_path / "run.json").read_text())["result"]["interrupted"]
    resumed = loop.train(tiny.preset(), data, out=tmp_path, seed=1, resume=True)
    whole = straight[0].checkpoint
    on_disk = checkpoint.load(tmp_path / loop.CHECKPOINT)
    for state in (resumed.checkpoint, on_disk):
        assert tiny.same(state.params, whole.params)
        assert tiny.same(state.velocity, whole.velocity)
        assert lines(state.history) == lines(whole.history)
    written = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines(map(json.loads, written)) == lines(whole.history)


def test_epochs_added_later_are_as_planned_from_the_start(straight, data, tmp_path):
    first = loop.train(tiny.preset(epochs=1), data, out=tmp_path, seed=1)
    # A finished training resumed stays as it is.
    again = loop.train(tiny.preset(epochs=1), data, out=tmp_path, seed=1, resume=True)
    assert tiny.same(again.checkpoint.params, first.checkpoint.params)
    assert again.checkpoint.history == first.checkpoint.history
    more = loop.train(tiny.preset(), data, out=tmp_path, seed=1, resume=True)
    assert tiny.same(more.checkpoint.params, straight[0].checkpoint.params)
    assert checkpoint.load(tmp_path / loop.CHECKPOINT).preset == tiny.preset()


def test_termination_stops_as_ctrl_c_does(data, tmp_path, monkeypatch):
    signal_in(monkeypatch, "_train_batch", 1, signal.SIGTERM)
    assert loop.train(tiny.preset(), data, out=tmp_path).stopped_by == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_run_json_is_enough_to_repeat_the_training(straight, data, tmp_path):
    result, out = straight
    run = json.loads((out / "run.json").read_text())
    again = loop.train(Preset.from_dict(run["preset"]), data, out=tmp_path, seed=run["seed"])
    assert tiny.same(again.checkpoint.params, result.checkpoint.params)
    assert run["result"]["last_accuracy"] == result.checkpoint.history[-1]["test_accuracy"]
    assert run["result"]["best_accuracy"] == max(line["test_accuracy"] for line in result.checkpoint.history)
    assert {"python", "numpy", "scipy", "numba", "ide_ref"} == set(run["versions"])
    assert run["data"]["train"] == 50
    assert run["machine"]["cpu"]


def test_the_metrics_are_what_the_files_give(straight, data):
    result, out = straight
    last = result.checkpoint.history[-1]
    state = checkpoint.load(out / loop.CHECKPOINT)
    tested = evaluate(state.preset, state.params, data)
    assert (last["test_loss"], last["test_accuracy"]) == (tested.loss, tested.accuracy)
    x, y = load_batch(state.preset, data, "test", np.arange(50))
    frozen = freeze(state.preset.network, state.params)
    logits = read_out(frozen, simulate(frozen, x, state.preset.recipe.n_steps))
    assert tested.loss == pytest.approx(cross_entropy(logits, y)[0], rel=1e-6)
    assert tested.accuracy == np.mean(logits.argmax(axis=1) == y)
    assert [line["lr"] for line in result.checkpoint.history] == pytest.approx([0.1 * 4 / 6, 0.1, 0.01])
    assert 0 < last["firing_rate"] < 1
    assert last["solver_residual"] <= state.preset.recipe.tol
    # α is at most 1 and V_th is 2; a kept neuron's mask is 1/(1 - 0.2).
    assert 0 < last["contraction"] <= 0.625 * (1 + 1e-4)
    gamma = contraction(freeze(state.preset.network, state.params))
    assert last["contraction_without_dropout"] == gamma <= 0.5 * (1 + 1e-4)
    assert last["condition_holds"] is True
    assert set(last) == {
        *("epoch", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "firing_rate", "contraction"),
        *("n_steps", "solver_iterations", "solver_residual", "certificate", *TIMES),
        *("contraction_without_dropout", "condition_holds"),
    }


def test_each_epoch_meets_every_sample_once_in_a_new_order(data, tmp_path, monkeypatch):
    seen = []

    def spy(preset, data, split, indices, *, rng=None):
        if rng is not None:
            seen.append(np.array(indices))
        return load_batch(preset, data, split, indices, rng=rng)

    monkeypatch.setattr(loop, "load_batch", spy)
    loop.train(tiny.preset(epochs=2), data, out=tmp_path)
    assert [len(batch) for batch in seen] == [16, 16, 16, 2] * 2
    first, second = np.concatenate(seen[:4]), np.concatenate(seen[4:])
    np.testing.assert_array_equal(np.sort(first), np.arange(50))
    np.testing.assert_array_equal(np.sort(second), np.arange(50))
    assert (first != second).any()


def test_the_training_loss_is_the_mean_over_the_epoch_s_samples(data, tmp_path, monkeypatch):
    losses = []

    def spy(logits, y, **options):
        result = cross_entropy(logits, y, **options)
        losses.append(result[0] * len(y))
        return result

    monkeypatch.setattr(step, "cross_entropy", spy)
    result = loop.train(tiny.preset(), data, out=tmp_path)
    means = np.reshape(losses, (3, tiny.N_BATCHES)).sum(axis=1) / 50
    assert [line["train_loss"] for line in result.checkpoint.history] == pytest.approx(means)


def test_every_purpose_has_random_numbers_of_its_own_at_every_place():
    places = itertools.product((0, 1), ("init", "order", "batch"), range(3), range(3))
    drawn = [loop.generator(*place).random() for place in places]
    assert len(set(drawn)) == len(drawn) == 54


def test_it_learns(tmp_path):
    preset = replace(tiny.preset(epochs=12, limit=400, milestones=(), crop=0), structure="32 (F32)")
    result = loop.train(preset, tiny.data(400), out=tmp_path)
    assert result.summary()["last_accuracy"] > 0.85
    history = result.checkpoint.history
    assert history[-1]["train_loss"] < 0.3 * history[0]["train_loss"]


def test_the_rates_of_more_steps_are_nearer_to_the_equilibrium(straight, data):
    preset, params = straight[0].checkpoint.preset, straight[0].checkpoint.params
    preset = replace(preset, neuron=replace(preset.neuron, leak=1.0))
    x, _ = load_batch(preset, data, "test", np.arange(10))
    distances = [
        equilibrium_distance(replace(preset, recipe=replace(preset.recipe, n_steps=t)), params, x) for t in (10, 1000)
    ]
    assert distances[1].rms < 0.05 * distances[0].rms
    assert distances[0].rms == pytest.approx(np.sqrt(np.mean(np.square(distances[0].distance)) / 8))


def test_only_training_batches_are_augmented(data):
    preset = tiny.preset(crop=1, flip=True)
    plain, _ = load_batch(preset, data, "train", np.arange(5))
    shifted, _ = load_batch(preset, data, "train", np.arange(5), rng=np.random.default_rng(0))
    rng = np.random.default_rng(0)
    raw = data.batch("train", np.arange(5))[0]
    raw = augment.random_flip(augment.random_crop(raw, rng, padding=1), rng)
    expected = augment.normalise(raw, (0.305,), (0.376,), scale=16.0).reshape(5, 64)
    np.testing.assert_array_equal(shifted, expected)
    assert (shifted != plain).any()


def test_a_solver_that_does_not_converge_stops_with_its_place(data, tmp_path):
    remedies = {"float32": "dtype float64, as rounding in float32 leaves more than", "float64": "a larger tol"}
    for (dtype, remedy), tol in zip(remedies.items(), (5e-7, 1e-14), strict=True):
        with pytest.raises(
            loop.Diverged, match=rf"^epoch 1, batch 1: \(BETA\): fixed_point stopped after.* is kept, try {remedy}"
        ):
            loop.train(tiny.preset(tol=tol, max_iter=3, dtype=dtype), data, out=tmp_path / dtype)


def test_the_logs_and_the_checkpoint_say_in_words_whether_cond_holds(data, tmp_path):
    # α starts at 0.9, so γ is 0.9/V_th or more until it falls.
    words = {2.0: "(COND) holds: the average rates", 0.3: "(COND) does not hold: the theorems promise no equilibrium"}
    for v_th, said in words.items():
        log, out = io.StringIO(), tmp_path / str(v_th)
        preset = replace(tiny.preset(epochs=1, lr=1e-3, solver="direct"), neuron=LIF(0.9, v_th))
        result = loop.train(preset, data, out=out, log=log)
        gamma = contraction(freeze(preset.network, result.checkpoint.params))
        assert gamma == pytest.approx(0.9 / v_th, rel=0.01)
        (line,) = log.getvalue().splitlines()
        assert f"gamma {gamma:.3f}" in line
        # A line that says it at each epoch would only be noise where it holds.
        assert ("(COND)" in line) == (gamma >= 1) == line.endswith("no equilibrium for these weights")
        assert result.checkpoint.history[-1]["condition_holds"] is (gamma < 1)
        run = json.loads((out / "run.json").read_text())["result"]
        assert run["contraction"] == gamma
        assert run["condition"].startswith(said)
        with safe_open(out / loop.CHECKPOINT, framework="numpy") as file:
            assert json.loads(file.metadata()["ide_ref"])["condition"] == run["condition"]


def test_a_training_whose_lines_lack_the_contraction_goes_on(straight, data, tmp_path):
    """Checkpoints of earlier versions did not note γ without dropout."""
    state = straight[0].checkpoint
    new = {"contraction_without_dropout", "condition_holds"}
    old = tuple({name: line[name] for name in line.keys() - new} for line in state.history)
    checkpoint.save(tmp_path / loop.CHECKPOINT, replace(state, history=old))
    result = loop.train(tiny.preset(), data, out=tmp_path, seed=1, resume=True)
    assert result.summary()["contraction"] is None
    assert result.summary()["condition"] is None
    more = loop.train(tiny.preset(epochs=4), data, out=tmp_path, seed=1, resume=True)
    assert more.summary()["condition"].startswith("(COND) holds")


def test_wrong_arguments(straight, data, tmp_path):
    out = straight[1]
    for message, preset, options in (
        ("holds a training already; continue it with --resume or choose another --out", tiny.preset(), {"out": out}),
        ("is of another training", tiny.preset(lr=0.3), {"out": out, "seed": 1, "resume": True}),
        ("holds no checkpoint.safetensors to resume", tiny.preset(), {"out": tmp_path, "resume": True}),
        (r"images of shape \(1, 8, 8\), preset 'tiny' e", replace(tiny.preset(), input_shape=(65,)), {"out": tmp_path}),
        ("'digits' has 10 classes, the network 9", replace(tiny.preset(), n_classes=9), {"out": tmp_path}),
    ):
        with pytest.raises(ValueError, match=message):
            loop.train(preset, data, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("patience", "says"), [(0.0, True), (1e3, False)])
def test_a_first_batch_that_takes_long_says_why(tmp_path, monkeypatch, patience, says):
    preset, log = tiny.preset(epochs=1), io.StringIO()
    monkeypatch.setattr(loop, "PATIENCE", patience)
    batch = loop._train_batch

    def slow(*args):
        time.sleep(0.05)
        return batch(*args)

    monkeypatch.setattr(loop, "_train_batch", slow)
    loop.train(preset, tiny.data(), out=tmp_path / "run", log=log)
    assert log.getvalue().count("also compiles what this machine has not run yet") == says
    # Nothing is left that could speak later.
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
