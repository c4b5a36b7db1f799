"""Networks, losses and callbacks of one's own in the training loop, on data of one's own."""

import json
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from graphs import cases
from hypothesis import given, settings
from hypothesis import strategies as st

from ide_ref import IF, Connection, Dense, Network, Population, Readout, cross_entropy
from ide_ref.authors import Profile, edited
from ide_ref.datasets import Dataset
from ide_ref.presets import Preset, Recipe
from ide_ref.training import checkpoint, loop
from ide_ref.training.evaluation import evaluate, load_batch, load_data
from ide_ref.training.losses import check_loss
from ide_ref.training.step import training_step

RECIPE = Recipe("arrays", 3, epochs=2, batch_size=8, lr=0.1, tol=1e-3, max_iter=500, solver="gmres")


def own_data(shape, *, spikes=False, n=20, seed=0):
    rng = np.random.default_rng(seed)
    size = (n, 3, *shape) if spikes else (n, *shape)
    x = rng.integers(0, 2, size) if spikes else rng.normal(2, 3, size)
    return Dataset.from_arrays(x, rng.integers(0, 3, n), x[:5], np.arange(5) % 3, n_classes=3, spikes=spikes)


def chain(size=6):
    """A graph that is quick to train: two populations, feedback within and between them, dropout."""
    return Network(
        (4,),
        (Population("a", (size,)), Population("b", (5,))),
        (
            Connection("in", "input", "a", Dense((4,), (size,)), bias=True, batch_norm=True, dropout=0.25),
            Connection("up", "a", "b", Dense((size,), (5,))),
            Connection("down", "b", "a", Dense((5,), (size,)), dropout=0.5),
            Connection("self", "b", "b", Dense((5,), (5,))),
        ),
        Readout("b", Dense((5,), (3,))),
        IF(3.0),
    )


@given(case=st.one_of(cases(own_neurons=True), cases()), name=st.text(max_size=3))
def test_any_graph_comes_back_from_a_checkpoint(case, name):
    dtype = next(iter(case.params.values())).dtype.name
    preset = Preset.of(case.network, replace(RECIPE, dtype=dtype), name=name)
    assert Preset.from_dict(json.loads(json.dumps(preset.to_dict()))) == preset
    velocity = {part: np.full_like(case.params[part], 0.5) for part in case.network.trainable}
    state = checkpoint.Checkpoint(preset, 3, dict(case.params), velocity, 0, {}, ())
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(f"{folder}/c", state)
        loaded = checkpoint.load(f"{folder}/c")
    assert loaded.preset == preset
    assert loaded.preset.network == case.network
    assert tiny.same(loaded.params, case.params)
    assert tiny.same(loaded.velocity, velocity)


@settings(max_examples=3)
@given(case=cases(dtype=np.float32, contractive=True), stop=st.integers(0, 5))
def test_any_graph_on_own_data_resumes_to_the_last_bit(case, stop):
    data = own_data(case.network.input_shape, spikes=case.network.is_spike_input(case.x))
    recipe = replace(RECIPE, input="spikes" if data.spikes else "static", n_steps=3, lr=0.01, allow_unconverged=True)
    with tempfile.TemporaryDirectory() as folder:
        whole = loop.train(case.network, data, recipe, out=f"{folder}/whole", seed=4)
        calls = iter(range(100))
        stopped = loop.train(
            case.network, data, recipe, out=f"{folder}/parts", seed=4, callback=lambda *_: next(calls) == stop
        )
        assert stopped.stopped_by == "callback"
        resumed = loop.train(case.network, data, recipe, out=f"{folder}/parts", seed=4, resume=True)
        loaded = checkpoint.load(f"{folder}/parts/checkpoint.safetensors")
    assert loaded.preset.network == case.network
    for state in (resumed.checkpoint, loaded):
        assert tiny.same(state.params, whole.checkpoint.params)
        assert tiny.same(state.velocity, whole.checkpoint.velocity)


def test_the_callback_is_told_each_step_and_epoch_and_ends_the_training(tmp_path):
    told = []

    def callback(state, event):
        told.append((event, state.epoch, state.step))
        return len(told) == 5

    data = own_data((4,))
    first = loop.train(chain(), data, RECIPE, out=tmp_path, callback=callback)
    assert told == [("step", 0, 1), ("step", 0, 2), ("step", 0, 3), ("epoch", 1, 0), ("step", 1, 1)]
    assert (first.checkpoint.epoch, first.checkpoint.step) == (1, 1)
    assert checkpoint.load(tmp_path / loop.CHECKPOINT).step == 1
    assert json.loads((tmp_path / loop.RUN).read_text())["result"]["interrupted"]
    done = loop.train(chain(), data, RECIPE, out=tmp_path, callback=callback, resume=True)
    assert told[5:] == [("step", 1, 2), ("step", 1, 3), ("epoch", 2, 0)]
    assert done.stopped_by is None


def test_a_network_is_trained_as_the_preset_that_builds_it(tmp_path):
    """Structure string or graph, recipe in the preset or beside it: the same bits; a profile stays with its network."""
    preset, data = tiny.preset(epochs=1), tiny.data()
    by_name = loop.train(preset, data, out=tmp_path / "a")
    by_graph = loop.train(preset.network, data, preset.recipe, out=tmp_path / "b")
    assert tiny.same(by_name.checkpoint.params, by_graph.checkpoint.params)
    assert by_graph.checkpoint.preset.name == "digits"
    other = loop.train(tiny.preset(lr=0.3), data, preset.recipe, out=tmp_path / "c")
    assert tiny.same(by_name.checkpoint.params, other.checkpoint.params)
    profile = Profile(statistics_twice=True)
    assert Preset.of(edited(preset.network, profile), RECIPE).network == edited(preset.network, profile)


def test_neuron_and_dropout_of_a_graph_can_be_replaced():
    preset = Preset.of(chain(), RECIPE)
    assert [c.dropout for c in preset.network.connections] == [0.25, 0.0, 0.5, 0.0]
    assert preset.network.neuron == IF(3.0)
    changed = replace(preset, dropout=0.0, neuron=IF(1.0)).network
    assert [c.dropout for c in changed.connections] == [0.0] * 4
    assert changed.neuron == IF(1.0)
    assert changed.populations == chain().populations
    with pytest.raises(ValueError, match=r"input_shape is \(5,\) and n_classes 3, but the graph has \(4,\) and 3"):
        replace(preset, input_shape=(5,))
    with pytest.raises(ValueError, match="dropout is None; expected a number, as no graph says it"):
        _ = replace(preset, graph=None).network


def test_numbers_of_numpy_are_saved_as_plain_ones(tmp_path):
    six = np.int64(6)
    network = replace(chain(six), neuron=IF(np.float32(3)))
    recipe = replace(RECIPE, n_steps=np.int64(3), lr=np.float32(0.1), epochs=1)
    loop.train(network, own_data((4,)), recipe, out=tmp_path)
    found = checkpoint.load(tmp_path / loop.CHECKPOINT).preset
    assert found.network == chain()
    assert loop.train(network, own_data((4,)), recipe, out=tmp_path, resume=True).checkpoint.epoch == 1


def test_the_recipe_holds_the_data_s_own_statistics_once_trained(tmp_path):
    data = own_data((2, 2, 1), n=9)
    preset = Preset("own", "3 (F3)", (4,), 3, IF(), 0.0, replace(RECIPE, epochs=1))
    found = loop.train(preset, data, out=tmp_path).checkpoint.preset.recipe
    assert (found.mean, found.std) == data.statistics
    given = loop.train(preset, data, replace(preset.recipe, mean=(1.0, 2.0)), out=tmp_path / "given").checkpoint
    assert (given.preset.recipe.mean, given.preset.recipe.std) == ((1.0, 2.0), data.statistics[1])
    assert loop.train(preset, data, out=tmp_path, resume=True).checkpoint.epoch == 1
    with pytest.raises(ValueError, match=r"is of another training \(mean \("):
        loop.train(preset, own_data((2, 2, 1), n=9, seed=1), out=tmp_path, resume=True)
    x, _ = load_batch(replace(preset, recipe=found), own_data((2, 2, 1), n=9, seed=1), "train", [0])
    raw = own_data((2, 2, 1), n=9, seed=1).x_train[0]
    by_hand = (raw - np.reshape(found.mean, (2, 1, 1))) / np.reshape(found.std, (2, 1, 1))
    np.testing.assert_allclose(x[0], by_hand.ravel(), rtol=1e-5)


def squared(logits, y):
    """Half the mean squared distance from the label's unit vector, and its gradient."""
    off = logits - np.eye(logits.shape[1])[y]
    return 0.5 * float(np.mean(np.sum(np.square(off), axis=1))), off / len(y)


def hinge(logits, y):
    """Kinks at margins of 1, where the batch may well stand: any slope between both sides is right."""
    rows = np.arange(len(y))
    margins = 1 + logits - logits[rows, y][:, None]
    margins[rows, y] = 0
    gradient = (margins > 0) / len(y)
    gradient[rows, y] -= gradient.sum(axis=1)
    return float(np.mean(np.maximum(margins, 0).sum(axis=1))), gradient


@pytest.mark.parametrize("loss", [squared, hinge, cross_entropy])
def test_a_right_loss_passes_its_check(loss):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 7)
    # The label's unit vector has all margins of the hinge at its kink.
    for logits in (np.zeros((7, 3)), np.eye(3)[y], rng.normal(size=(7, 3)), rng.normal(0, 100, (7, 3))):
        single = logits.astype(np.float32)
        single.flags.writeable = False
        check_loss(loss, single, y)


@pytest.mark.parametrize("size", [1.0, 100.0])
def test_a_loss_that_is_a_thousandth_off_is_told(size):
    """At logits of any size: differences are taken close by, where a curved loss has no other slope."""
    rng = np.random.default_rng(0)
    logits, y = size * rng.normal(size=(7, 3)), rng.integers(0, 3, 7)

    def off(logits, y):
        value, gradient = squared(logits, y)
        return value, 1.001 * gradient

    with pytest.raises(ValueError, match=r"by hand and .* by differences; \d+ of 21"):
        check_loss(off, logits, y)


def test_a_loss_of_one_s_own_is_trained_and_tested_with(tmp_path):
    data = own_data((4,))
    whole = loop.train(chain(), data, RECIPE, out=tmp_path / "a", loss=squared, check_loss=True)
    plain = loop.train(chain(), data, RECIPE, out=tmp_path / "b")
    assert not tiny.same(whole.checkpoint.params, plain.checkpoint.params)
    state = whole.checkpoint
    tested = evaluate(state.preset, state.params, data, loss=squared)
    assert state.history[-1]["test_loss"] == tested.loss != evaluate(state.preset, state.params, data).loss
    same = loop.train(chain(), data, RECIPE, out=tmp_path / "c", loss=cross_entropy, check_loss=True)
    assert tiny.same(same.checkpoint.params, plain.checkpoint.params)
    # Without a loss, it is the recipe's that is checked.
    smoothed = replace(RECIPE, label_smoothing=0.25)
    assert loop.train(chain(), data, smoothed, out=tmp_path / "d", check_loss=True).checkpoint.epoch == 2
    x, y = load_batch(state.preset, data, "train", [0, 1, 2])
    rest = {"rate": 0.1, "rng": np.random.default_rng(0)}
    step = training_step(state.preset, state.params, state.velocity, x, y, loss=lambda o, y: (7.0, 0 * o), **rest)
    assert step.loss == 7.0
    assert not step.backward.gradients["in.weight"].any()


def broken(logits, y):
    """One number of the gradient has the wrong sign."""
    value, gradient = squared(logits, y)
    gradient[2, 1] *= -1
    return value, gradient


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"loss": broken, "check_loss": True},
            r"loss: ∂L/∂o\[2, 1\] is (\S+) by hand and (\S+) by differences; 1 of 24",
        ),
        ({"loss": lambda o, y: (0.0, o + np.nan), "check_loss": True}, "is nan by hand and 0 by differences; 24 of 24"),
        ({"loss": 3}, "loss is of type int; expected a function of logits and labels"),
        ({"loss": lambda o, y: 0.5}, "loss returned a float; expected a number and its gradient, floats of shape"),
        ({"loss": lambda o, y: (o, o)}, r"loss returned float32 of shape \(8, 3\); expected a number and"),
        ({"loss": lambda o, y: (0.5, o[0])}, r"loss returned float32 of shape \(3,\); expected a number"),
        ({"loss": lambda o, y: (0.5, o > 0)}, r"loss returned bool of shape \(8, 3\); expected a number"),
        (
            {"loss": squared, "recipe": replace(RECIPE, label_smoothing=0.1)},
            "label_smoothing is 0.1, but that is of the",
        ),
        ({"callback": 3}, "callback is of type int; expected a function of state and event"),
        ({"recipe": None}, "recipe is missing; a network of one's own needs an ide_ref.presets.Recipe"),
        ({"recipe": {}}, "recipe is of type dict; expected Recipe"),
        ({"preset": 3}, "preset is of type int; expected Preset or Network"),
    ],
)
def test_what_is_wrong_is_refused(tmp_path, options, message):
    given = {"preset": chain(), "data": own_data((4,)), "recipe": RECIPE, "out": tmp_path / "run", **options}
    with pytest.raises(ValueError, match=message) as caught:
        loop.train(given.pop("preset"), given.pop("data"), given.pop("recipe"), **given)
    if options.get("loss") is broken:
        by_hand, by_differences = map(float, re.search(message, str(caught.value)).groups())
        assert by_hand == pytest.approx(-by_differences, rel=1e-5)
    assert not (tmp_path / "run").exists()


class Odd(Dense):
    """A synapse of a user's own."""


def test_a_synapse_that_cannot_be_saved_is_refused_before_training(tmp_path):
    odd = replace(chain(), readout=Readout("b", Odd((5,), (3,))))
    with pytest.raises(
        ValueError, match="a synapse is of class Odd, which cannot be saved; expected one of Dense, Conv2d"
    ):
        loop.train(odd, own_data((4,)), RECIPE, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_graph_or_another_plan_of_the_rate_is_not_resumed(tmp_path):
    data = own_data((4,))
    for schedule in ("steps", "cosine"):
        recipe, out = replace(RECIPE, schedule=schedule), tmp_path / schedule
        loop.train(chain(), data, recipe, out=out)
        with pytest.raises(ValueError, match=r"is of another training \(another graph\); repeat") as caught:
            loop.train(chain(7), data, recipe, out=out, resume=True)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="epochs 2 there, 3 here"):
        loop.train(chain(), data, replace(recipe, epochs=3), out=out, resume=True)


def test_a_checkpoint_of_the_first_format_is_read_and_resumed(tmp_path):
    """It knew neither graphs nor the later fields of a recipe."""
    whole = loop.train(tiny.preset(), tiny.data(), out=tmp_path / "whole")
    loop.train(tiny.preset(epochs=1), tiny.data(), out=tmp_path / "old")
    path = tmp_path / "old" / loop.CHECKPOINT

    def as_it_was(about):
        about["format_version"] = 1
        del about["preset"]["graph"]
        for name in ("schedule", "nesterov", "label_smoothing"):
            del about["preset"]["recipe"][name]

    tiny.rewritten(path, as_it_was, digest=False)
    with pytest.warns(RuntimeWarning, match=r"has format 1, which has no digest"):
        assert checkpoint.load(path).preset == tiny.preset(epochs=1)
    with pytest.warns(RuntimeWarning, match="no digest"):
        resumed = loop.train(tiny.preset(), tiny.data(), out=tmp_path / "old", resume=True)
    assert tiny.same(resumed.checkpoint.params, whole.checkpoint.params)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda g: g["connections"][0]["synapse"].update({"class": "os.system"}), "class of a synapse is 'os.system'"),
        (lambda g: g["connections"][0]["synapse"].update({"class": ["Dense"]}), "class of a synapse is"),
        (lambda g: g["connections"][0]["synapse"].pop("class"), "'class'"),
        (lambda g: g["readout"]["synapse"].update({"in_shape": [9]}), "connection 'readout' goes from 'b' with shape"),
        (lambda g: g.pop("neuron"), "'neuron'"),
    ],
)
def test_damaged_graphs_are_refused(tmp_path, damage, message):
    state = loop.begin(Preset.of(chain(), RECIPE), 0)
    checkpoint.save(tmp_path / "c", state)
    tiny.rewritten(tmp_path / "c", lambda about: damage(about["preset"]["graph"]))
    with pytest.raises(checkpoint.CheckpointError, match=re.escape(f"content does not fit together ({message}")):
        checkpoint.load(tmp_path / "c")


def test_a_function_that_a_checkpoint_names_runs_when_asked_for_alone(tmp_path, monkeypatch):
    """A checkpoint may be somebody else's, and the function anything that can be imported."""
    monkeypatch.chdir(tmp_path)
    name = f"data_of_{tmp_path.name}"
    Path(f"{name}.py").write_text(
        "import numpy as np\nfrom pathlib import Path\nfrom ide_ref.datasets import Dataset\n\n\ndef make():\n"
        "    Path('ran').touch()\n    x, y = np.ones((4, 4)), np.arange(4) % 3\n"
        "    return Dataset.from_arrays(x, y, x, y)\n"
    )
    preset = Preset.of(chain(), replace(RECIPE, dataset=f"{name}:make"))
    checkpoint.save("c.safetensors", loop.begin(preset, 0))
    theirs = checkpoint.load("c.safetensors").preset
    with pytest.raises(ValueError, match=rf"a function, .* --data {name}:make"):
        load_data(theirs)
    assert not Path("ran").exists()
    assert len(load_data(theirs, source=f"{name}:make").y_train) == 4
    assert Path("ran").exists()
