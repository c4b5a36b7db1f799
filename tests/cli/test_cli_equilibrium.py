"""``ide-ref equilibrium``: figure, numbers, verdict."""

import json

import numpy as np
import pytest

from ide_ref.cli import main


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    out = tmp_path / "figure"
    assert main(["equilibrium", "digits", "--n-steps", "60", "--samples", "2", "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "equilibrium.json").read_text())
    assert (out / "equilibrium.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (out / "equilibrium.svg").read_text()
    assert printed["conditions"]["applies"]
    assert printed["conditions"]["paper"] == pytest.approx(0.45)
    assert [n["name"] for n in printed["neurons"]] == ["IF", "LIF"]
    for neuron in printed["neurons"]:
        error, one_step, iterated = (np.array(neuron[name]) for name in ("error", "one_step", "iterated"))
        assert error.shape == (2, len(neuron["times"]))
        assert np.all(error <= one_step + 1e-11)
        assert np.all(one_step <= iterated + 1e-11)
        assert neuron["times"][-1] == 60
    assert printed["neurons"][0]["slope"] == pytest.approx(-1, abs=0.2)
    assert np.all(np.array(printed["neurons"][0]["limit"]) >= np.array(printed["neurons"][0]["iterated"]).max(axis=0))


def test_the_table_says_what_holds(tmp_path, capsys):
    assert main(["equilibrium", "digits", "--n-steps", "20", "--samples", "1", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "digits, freshly drawn" in text
    assert "a condition holds: the theorems apply" in text
    assert "T = 20; written:" in text


def test_wrong_use_is_one_line(tmp_path, capsys):
    assert main(["equilibrium", "digitz", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
