"""``--json``: one document that every reader of JSON takes, and nothing else on standard output."""

import json
import shlex
import signal

import numpy as np
import pytest
import tiny

from ide_ref.bench import machine
from ide_ref.cli import main, parser
from ide_ref.solvers import NotConverged
from ide_ref.training import checkpoint, evaluation, loop


@pytest.fixture
def words(tmp_path, monkeypatch, named, drawn):
    """A quick call of each command."""
    monkeypatch.setattr(machine, "matrix_rate", lambda: 1e11)
    return {
        "info": ["info", "tiny"],
        "train": ["train", "tiny", "--out", str(tmp_path / "run")],
        "evaluate": ["evaluate", str(drawn), "--limit", "20"],
        "gradcheck": ["gradcheck", "tiny", "--samples", "2", "--coordinates", "1", "--directions", "1"],
        "bench": ["bench", "tiny", "--steps", "1", "--warm-up", "1", "--batch-size", "8"],
        "data": ["data"],
    }


def strict(text):
    """A document of RFC 8259, which has no NaN and no Infinity."""

    def refuse(name):
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        ("info", {"structure", "neurons", "parameters", "operator_norms", "contraction"}),
        ("train", {"last_accuracy", "best_accuracy", "seconds_per_epoch", "out"}),
        ("evaluate", {"accuracy", "firing_rates", "distance_to_equilibrium_rms"}),
        ("gradcheck", {"passed", "checked", "set_aside", "certificate", "parameters"}),
        ("bench", {"timings", "machine"}),
        ("data", {"digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "nmnist"}),
    ],
)
def test_one_document_and_nothing_else(capsys, words, command, keys):
    assert main([*words[command], "--json"]) == 0
    text = capsys.readouterr().out
    assert text.count("\n") == 1
    assert keys <= strict(text).keys()
    # Without it the same goes to readers.
    if command != "train":
        assert main(words[command]) == 0
        with pytest.raises(json.JSONDecodeError):
            json.loads(capsys.readouterr().out)


def test_every_command_has_the_option():
    (commands,) = (action.choices for action in parser()._actions if action.choices)
    for name, sub in commands.items():
        leaves = next((action.choices for action in sub._actions if isinstance(action.choices, dict)), None)
        for leaf in (leaves or {name: sub}).values():
            assert "--json" in leaf.format_help(), name


def test_what_is_not_finite_is_null(capsys, words, monkeypatch):
    """Where γ ≥ 1 there is no certificate; where every difference was set aside, no error."""
    monkeypatch.setattr("ide_ref.implicit.contraction", lambda _: 1.5)
    norms = [[0.0]], [[1.5]]
    monkeypatch.setattr("ide_ref.certificates.population_norms", lambda *_, **__: tuple(map(np.array, norms)))
    main([*words["gradcheck"], "--json"])
    document = strict(capsys.readouterr().out)
    assert document["certificate"] is None
    assert "(CERT) asks for less" in document["why_not_certified"]
    assert document["contraction"] == 1.5


def test_accuracy_is_told_where_there_is_no_equilibrium(capsys, words, monkeypatch):
    def lost(*_):
        raise NotConverged("equilibrium: residual 3.0")

    monkeypatch.setattr(evaluation, "equilibrium_distance", lost)
    assert main([*words["evaluate"], "--json"]) == 0
    document = strict(capsys.readouterr().out)
    assert 0 <= document["accuracy"] <= 1
    assert document["distance_to_equilibrium_rms"] is None
    assert document["equilibrium_problem"] == "equilibrium: residual 3.0"
    main(words["evaluate"])
    assert "unknown (equilibrium: residual 3.0)" in capsys.readouterr().out


def test_an_interrupted_training_tells_its_state(capsys, words, monkeypatch):
    """And the line it prints does go on, to the weights of a training that was not interrupted."""
    assert main(words["train"]) == 0
    whole = checkpoint.load(words["train"][-1] + "/checkpoint.safetensors")
    again = [*words["train"][:-1], words["train"][-1] + " again"]
    original, calls = loop._train_batch, iter(range(100))

    def interrupted(*args):
        if next(calls) in (5, 7):
            signal.raise_signal(signal.SIGINT)
        return original(*args)

    monkeypatch.setattr(loop, "_train_batch", interrupted)
    capsys.readouterr()
    assert main([*again, "--json"]) == 130
    text, log = capsys.readouterr()
    document = strict(text)
    assert document["interrupted"]
    assert document["epochs"] == 1
    assert "stopping after this batch; Ctrl-C again to stop at once" in log
    command = shlex.split(log.splitlines()[-1].partition("stopped and saved; go on with: ")[2])
    assert command[0] == "ide-ref"
    assert main(command[1:]) == 130
    assert shlex.split(capsys.readouterr().err.splitlines()[-1].partition("go on with: ")[2]) == command
    assert main(command[1:]) == 0
    resumed = checkpoint.load(again[-1] + "/checkpoint.safetensors")
    assert tiny.same(resumed.params, whole.params)
