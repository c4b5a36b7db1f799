"""The command line with data and networks of one's own, from training to the last report."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import tiny

from ide_ref import LIF, figures, presets
from ide_ref.bench import machine
from ide_ref.cli import sweep
from ide_ref.datasets import load
from ide_ref.training import checkpoint, loop

STRUCTURE = ("--structure", "2C3s (F2C3)", "--epochs", 2, "--batch-size", 16)


def pack(path, shape=(8, 8), classes=3, **more):
    """Some embedded digits of the first few classes."""
    digits = load("digits")
    arrays = {}
    for split in ("train", "test"):
        x, y = digits.batch(split, range(100))
        chosen = y < classes
        arrays |= {f"x_{split}": x[chosen].reshape(-1, *shape), f"y_{split}": y[chosen]}
    np.savez(path, **arrays, scale=16.0, **more)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with own data; what is drawn there, other tests see."""
    monkeypatch.chdir(tmp_path)
    for name in ("training_curves", "convergence"):
        monkeypatch.setattr(figures, name, lambda *_, **__: None)
    # How fast the machine is takes a second to measure.
    monkeypatch.setattr(machine, "matrix_rate", lambda: 1e11)
    monkeypatch.setattr(machine, "event_limits", lambda: {})
    pack("mine.npz")
    return tmp_path


def test_from_training_to_the_last_report(run, here):
    status, text, log = run("train", *STRUCTURE, "--data", "mine.npz", "--leak", 0.9, "--v-th", 1.5, "--seed", 3)
    assert status == 0, log
    saved = here / "runs" / "mine-lif-s3" / "checkpoint.safetensors"
    preset = checkpoint.load(saved).preset
    assert (preset.name, preset.neuron, preset.dropout) == ("mine", LIF(0.9, 1.5), 0.2)
    assert (preset.recipe.dataset, preset.recipe.n_steps, preset.recipe.lr) == ("mine.npz", 10, 0.05)
    assert (preset.recipe.mean, preset.recipe.std) == load("mine.npz").statistics
    assert f"test accuracy {checkpoint.load(saved).history[-1]['test_accuracy']:.2%}" in text
    # Moved: the place in the checkpoint holds nothing now, and another is told.
    (here / "mine.npz").rename(here / "moved.npz")
    assert "mine.npz: no such file; say with --data where it is" in run("evaluate", saved)[2]
    moved = ("--data", here / "moved.npz")
    found = json.loads(run("evaluate", saved, *moved, "--json")[1])
    assert found["accuracy"] == checkpoint.load(saved).history[-1]["test_accuracy"]
    status, text, _ = run("gradcheck", saved, *moved, "--samples", 3, "--coordinates", 1, "--directions", 1)
    assert (status, "passed" in text) == (0, True)
    status, text, _ = run("equilibrium", saved, *moved, "--samples", 1, "--n-steps", 20, "--out", "e", "--json")
    assert (status, json.loads(text)["fresh"]) == (0, False)
    assert run("info", saved)[1].startswith("mine: 2C3s (F2C3), LIF (leak 0.9, V_th 1.5), T = 10")
    quick = ("--steps", 1, "--warm-up", 1, "--batch-size", 8, "--json")
    status, text, _ = run("bench", saved, *moved, *quick)
    assert (status, json.loads(text)["timings"][0]["data"]) == (0, "moved")
    assert "mine.npz: no such file" in run("bench", saved, *quick)[2]
    status, text, _ = run("train", "--resume", "--out", saved.parent, *moved, "--epochs", 3, "--json")
    assert (status, json.loads(text)["epochs"]) == (0, 3)
    assert checkpoint.load(saved).preset.recipe.dataset == "mine.npz"
    assert checkpoint.load(saved).seed == 3


def test_a_graph_goes_through_every_command(run, here):
    network = tiny.preset().network
    data = load("digits", limit=40)
    own = tuple(replace(p, neuron=LIF(0.9, 1.0)) for p in network.populations)
    network = replace(network, neuron=LIF(0.8), populations=own)
    loop.train(network, data, tiny.preset(epochs=1).recipe, out="run")
    saved = "run/checkpoint.safetensors"
    told = f"digits: graph, LIF (leak 0.8, V_th 2), T = 3\nneuron of {own[0].name}: LIF (leak 0.9, V_th 1)\n"
    assert run("info", saved)[1].startswith(told)
    assert json.loads(run("info", saved, "--json")[1])["own_neurons"] == {own[0].name: {"leak": 0.9, "v_th": 1.0}}
    assert run("evaluate", saved)[0] == 0
    assert run("gradcheck", saved, "--samples", 3, "--coordinates", 1, "--directions", 1)[0] == 0
    text = run("equilibrium", saved, "--samples", 1, "--n-steps", 20, "--json")[1]
    assert [panel["name"] for panel in json.loads(text)["neurons"]] == ["IF", "LIF"]
    assert run("bench", saved, "--steps", 1, "--warm-up", 1, "--batch-size", 8)[0] == 0
    assert run("train", "--resume", "--out", "run", "--epochs", 2)[0] == 0
    assert checkpoint.load(saved).epoch == 2
    assert checkpoint.load(saved).preset.network == network


def test_the_options_of_a_structure_reach_the_recipe(run, here):
    options = ("--schedule", "one-cycle", "--nesterov", "--label-smoothing", 0.1, "--crop", 1, "--flip", "--dropout", 0)
    rest = ("--neuron", "if", "--n-steps", 2, "--norm", "kernel", "--limit", 20, "--lr", 0.2, "--tol", 0.01)
    rest += ("--weight-decay", 0.003, "--clip-norm", 2.5, "--readout-rate", 0.25)
    assert run("train", *STRUCTURE, "--data", "mine.npz", *options, *rest, "--out", "run")[0] == 0
    preset = checkpoint.load("run/checkpoint.safetensors").preset
    recipe = preset.recipe
    assert (recipe.schedule, recipe.nesterov, recipe.label_smoothing) == ("one-cycle", True, 0.1)
    assert (recipe.crop, recipe.flip, recipe.n_steps, recipe.limit) == (1, True, 2, 20)
    assert (recipe.lr, recipe.tol, recipe.weight_decay, recipe.clip_norm) == (0.2, 0.01, 0.003, 2.5)
    assert recipe.readout_rate == 0.25
    assert (preset.dropout, preset.norm, preset.neuron.name) == (0.0, "kernel", "if")


def test_the_fast_recipe_is_the_presets_and_options_change_it(run, here, monkeypatch):
    monkeypatch.setitem(presets._TABLE, "tiny", tiny.preset())
    fast = replace(tiny.preset(lr=0.01, epochs=1, first_steps=2), dropout=0.0)
    monkeypatch.setitem(presets._FAST, "tiny", fast)
    words = ("train", "tiny", "--limit", 20)
    assert run(*words, "--recipe", "fast", "--out", "fast")[0] == 0
    assert run(*words, "--recipe", "fast", "--lr", 0.02, "--dropout", 0.1, "--out", "own")[0] == 0
    assert run(*words, "--recipe", "paper", "--epochs", 1, "--out", "paper")[0] == 0
    found = [checkpoint.load(f"{out}/checkpoint.safetensors").preset for out in ("fast", "own", "paper")]
    plain = tiny.preset()
    given = [(p.recipe.lr, p.recipe.epochs, p.recipe.first_steps, p.dropout) for p in found]
    assert given == [(0.01, 1, 2, 0.0), (0.02, 1, 2, 0.1), (plain.recipe.lr, 1, None, plain.dropout)]
    assert run(*words, "--recipe", "fast", "--out", "fast", "--resume")[0] == 0


def test_a_preset_on_own_data_takes_their_statistics(run, here, monkeypatch):
    monkeypatch.setitem(presets._TABLE, "tiny", replace(tiny.preset(epochs=1, crop=0), n_classes=3))
    assert run("train", "tiny", "--data", "mine.npz", "--out", "run")[0] == 0
    recipe = checkpoint.load("run/checkpoint.safetensors").preset.recipe
    assert (recipe.dataset, recipe.mean, recipe.std) == ("mine.npz", *load("mine.npz", limit=50).statistics)


def test_a_sweep_on_own_data_takes_the_statistics_that_are_asked_for_and_else_theirs(run, here, monkeypatch):
    monkeypatch.setitem(presets._TABLE, "tiny", replace(tiny.preset(epochs=1, crop=0), n_classes=3))
    monkeypatch.setattr(sweep, "_executor", lambda args, n_jobs: lambda n: ThreadPoolExecutor(1))
    words = ("sweep", "tiny", "--data", "mine.npz", "--seeds", 0, "--recipe")
    own = load("mine.npz", limit=50).statistics
    for asked, expected in (("mean=[0.25]", ((0.25,), own[1])), ("epochs=1", own)):
        assert run(*words, asked, "--out", asked)[0] == 0
        recipe = checkpoint.load(f"{asked}/tiny-lif-s0/checkpoint.safetensors").preset.recipe
        assert (recipe.dataset, recipe.mean, recipe.std) == ("mine.npz", *expected)


def test_own_trains_are_trained_on(run, here):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 2, (20, 4, 6)), np.arange(20) % 2
    np.savez("trains.npz", x_train=x, y_train=y, x_test=x[:5], y_test=y[:5], spikes=True)
    assert run("train", "--structure", "5 (F5)", "--data", "trains.npz", "--epochs", 1, "--out", "run")[0] == 0
    recipe = checkpoint.load("run/checkpoint.safetensors").preset.recipe
    assert (recipe.input, recipe.n_steps) == ("spikes", 4)
    assert run("evaluate", "run/checkpoint.safetensors")[0] == 0


def test_a_structure_under_the_authors_profile(run, here):
    words = ("--structure", "3 (F3)", "--data", "mine.npz", "--epochs", 1, "--profile", "authors", "--out", "run")
    assert run("train", *words)[0] == 0
    preset = checkpoint.load("run/checkpoint.safetensors").preset
    assert (preset.recipe.solver, preset.norm, preset.profile.one_power_step) == ("broyden", "kernel", True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train", "expected a preset, --structure with --data, or --resume with --out"),
        ("train --resume", "expected a preset, --structure with --data, or --resume with --out"),
        ("train --resume --out none", "none: holds no checkpoint.safetensors to resume; leave out"),
        ("train --structure 3", "--structure stands in place of a preset and needs --data"),
        ("train digits --structure 3 --data mine.npz", "--structure stands in place of a preset"),
        ("train --structure 3 --data none.npz", "none.npz: no such file; say with --data where it is"),
        ("train --structure 3 --data mnits", "expected a data set: digits, mnist"),
        ("train --structure 3(F4) --data mine.npz", "connection 'feedback' arrives with shape (4,), but the first"),
        ("train --structure 3C3 --data flat.npz", "'3C3' needs a picture to read, but what is sent has shape (64,)"),
        (
            "train --structure 3 --data flat.npz --flip",
            "flip True, but data set 'flat' holds no pictures to shift or mir",
        ),
        (
            "train --structure 3 --data flat.npz --crop 2",
            "crop is 2 and flip False, but data set 'flat' holds no pictu",
        ),
        ("train --structure 3 --data mine.npz --leak 1.5", "leak is 1.5; expected a number in (0, 1]"),
        ("train --structure 3 --data mine.npz --leak 0.5 --neuron if", "--leak is that of LIF neurons"),
        ("train --structure 3 --data mine.npz --dropout 2", "dropout is 2.0; expected a number in [0, 1)"),
        ("train --structure 3 --data mine.npz --label-smoothing 1", "label_smoothing is 1.0; expected a number in"),
        ("train --structure 3 --data mine.npz --schedule linear", "invalid choice: 'linear'"),
        (
            "train digits --recipe fast",
            "digits has no fast recipe; expected recipe paper, or one of fashion-mnist-400, mnist-64c5",
        ),
        ("train --structure 3 --data mine.npz --recipe fast", "--recipe is of a preset; name one, or leave it out"),
        ("train mnist-64c5 --recipe fast --n-steps 3", "first_steps is 6; expected at most n_steps, 3"),
        ("train digits --weight-decay -1", "weight_decay is -1.0; expected a finite number of at least 0"),
        ("train digits --data mine.npz", "data set 'mine' has 3 classes, the network 10"),
        ("train mnist-64c5 --data mine.npz", "data set 'mine' has images of shape (1, 8, 8), preset 'mnist-64c5' exp"),
        ("gradcheck digits --data one.npz", "labels reach from 1 to 3, expected them to begin at 0: take 1 off"),
        ("equilibrium digits --data none.npz", "none.npz: no such file"),
        ("bench digits --data none.npz", "none.npz: no such file"),
    ],
)
def test_wrong_use_is_one_line_and_leaves_nothing(run, here, words, message):
    pack("flat.npz", (64,))
    with np.load("mine.npz") as file:
        np.savez("one.npz", **{name: file[name] + (name[0] == "y") for name in file})
    before = sorted(here.rglob("*"))
    status, text, log = run(*words.split())
    assert (status, text) == (2, "")
    assert message in log
    assert len(log.splitlines()) == 1
    assert sorted(here.rglob("*")) == before
