"""``ide-ref equilibrium``: figure, numbers, verdict."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from ide_ref import LIF, figures, presets
from ide_ref.cli import _common, main
from ide_ref.training import checkpoint, loop


def test_the_command_writes_what_it_prints(named, tmp_path, capsys):
    out = tmp_path / "figure"
    assert main(["equilibrium", "tiny", "--n-steps", "60", "--samples", "2", "--out", str(out), "--json"]) == 0
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
        assert neuron["slope_from"] == 10
        # One a* for both, found from different rates.
        for name, found in neuron["populations"].items():
            assert found == pytest.approx(printed["neurons"][0]["populations"][name], rel=1e-12)
        a1 = neuron["populations"]["a1"]
        assert 0 < a1["mean_rate"] < 1 - a1["silent"]
        assert a1["saturated"] < a1["mean_rate"]
    assert printed["neurons"][0]["slope"] == pytest.approx(-1, abs=0.2)
    assert np.all(np.array(printed["neurons"][0]["limit"]) >= np.array(printed["neurons"][0]["iterated"]).max(axis=0))


def test_the_table_says_what_holds(named, tmp_path, capsys):
    assert main(["equilibrium", "tiny", "--n-steps", "20", "--samples", "1", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "tiny, freshly drawn" in text
    assert "a condition holds: the theorems apply" in text
    # Too short for a slope; the one of one step is not shown as a number, nor drawn as one.
    assert [line.split()[5] for line in text.splitlines() if line.startswith(("IF", "LIF"))] == ["none", "none"]
    assert "slope" not in (tmp_path / "equilibrium.svg").read_text()
    assert "T = 20; written:" in text
    assert "population  mean a*   silent  every step\na1 " in text


@pytest.mark.parametrize(
    ("v_th", "title"),
    [
        (2.0, "tiny, freshly drawn\n(COND) 0.45: the theorems apply"),
        (0.3, "tiny, freshly drawn\n(COND) 3: the theorems do not apply, this is what was observed"),
    ],
)
def test_beyond_cond_the_report_and_the_figure_say_so(named, tmp_path, capsys, monkeypatch, v_th, title):
    def network(args, name):
        preset = replace(presets.load(name), neuron=LIF(0.95, v_th))
        return preset, loop.begin(preset, 0).params

    monkeypatch.setattr(_common, "load_network", network)
    titles = []
    draw = figures.convergence
    monkeypatch.setattr(figures, "convergence", lambda p, **named: (titles.append(named["title"]), draw(p, **named)))
    assert main(["equilibrium", "tiny", "--n-steps", "50", "--samples", "1", "--out", str(tmp_path)]) == 0
    assert titles == [title]
    text = capsys.readouterr().out
    assert ("no condition holds: the theorems do not apply" in text) == (v_th < 0.9)
    written = json.loads((tmp_path / "equilibrium.json").read_text())
    assert written["conditions"]["applies"] == (v_th > 0.9)
    assert (written["neurons"][0]["limit"] is None) == (v_th < 0.9)
    for neuron in written["neurons"]:
        assert np.all(np.array(neuron["error"]) <= np.array(neuron["one_step"]) + 1e-11)


def test_where_no_equilibrium_is_found_the_report_says_what_was_observed(tmp_path, capsys):
    """γ = 90: neither theorem nor a*, and still a report, a figure and exit status 0."""
    preset = replace(presets.load("digits"), neuron=LIF(0.95, 0.01))
    checkpoint.save(tmp_path / "c.safetensors", loop.begin(preset, 0))
    words = ["--n-steps", "50", "--samples", "2", "--out", str(tmp_path)]
    assert main(["equilibrium", str(tmp_path / "c.safetensors"), *words]) == 0
    text = capsys.readouterr().out
    assert "no condition holds: the theorems do not apply" in text
    for name in ("IF", "LIF"):
        said = r"no a\* was found \(equilibrium: residual .*\)\. Observed: ‖f\(a\[t\]\)"
        assert re.search(rf"^{name}: {said}", text, re.M)
    assert "population  mean a*" not in text
    written = json.loads((tmp_path / "equilibrium.json").read_text())
    assert written["conditions"]["paper"] == pytest.approx(90, rel=1e-3)
    for neuron in written["neurons"]:
        assert np.shape(neuron["residual"]) == (2, len(neuron["times"]))
        assert neuron["residual"][0][-1] < 0.2 * neuron["residual"][0][0]
        assert 0 < neuron["firing_rates"]["a1"] < 1
    drawn = (tmp_path / "equilibrium.svg").read_text()
    assert "(COND) 90: the theorems do not apply, this is what was observed; no a* was found for IF and LIF" in drawn
    assert "residual of (FP), in spikes per step" in drawn
