"""The documentation against the code: the equation index and the README's example."""

import importlib
import json
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rounding import is_rounded

from ide_ref import figures, presets, verify
from ide_ref.cli import main, parser
from ide_ref.training import checkpoint
from ide_ref.training.loop import begin

ROOT = Path(__file__).parent.parent
# fmt: off
LABELS = [
    "IF-C", "LIF-C", "STEP", "RATE", "BALANCE", "SPLIT", "FP", "ERR", "FLOOR", "LAYERS", "COND", "MASK", "BETA", "HEBB",
    "ACTIVE", "CERT", "READ", "NORM", "BN",
]
# fmt: on
ROWS = re.findall(
    r"^\(([\w-]+)\)=\n### \(([A-Z-]+)\) .*\n\n\$\$\n((?:.+\n)+)\$\$\n\n(?:.+\n)+\n`(.+)`\n\n"
    r"- Home: {at}`([\w.]+)`, {source}`([A-Z-]+)`\n- Fast: {at}`([\w.]+)`\n- Test: {at}`([\w./]+)::(\w+)`\n"
    r"- Read: \[.*\]\((.*)\), notebook",
    (ROOT / "docs/equations.md").read_text(),
    re.M,
)
# What LaTeX writes as a command and a docstring as a character. Brackets that only group are dropped on both sides.
CHARACTERS = {
    r"\lambda": "λ", r"\tau": "τ", r"\sigma": "σ", r"\gamma": "γ", r"\beta": "β", r"\alpha": "α", r"\varepsilon": "ε",
    r"\Delta": "Δ", r"\sum": "Σ", r"\nabla": "∇", r"\partial": "∂", r"\sup": "sup", r"\sqrt": "√", r"\cdots": "…",
    r"\cdot": "·", r"\le": "≤", r"\in": "∈", r"\lVert": "‖", r"\rVert": "‖", r"\bar{x}": "x̄", r"\bar{W}": "W̄",
    r"\top": "ᵀ", r"\text": "", r"\mathrm": "", r"\operatorname": "", r"\quad": "",
}  # fmt: skip


def in_characters(latex: str) -> str:
    """A formula without its grouping: LaTeX's in the characters of a docstring."""
    text = re.sub(r"\\(begin|end){\w+}|\\,|&|\n", "", latex).replace("\\\\", ";")
    group = r"({(?:[^{}]|{[^{}]*})*})"
    text = re.sub(rf"\\frac{group}{group}", r"\1/\2", text)
    text = re.sub(r"\\bar{\w}|\\[A-Za-z]+", lambda found: CHARACTERS[found[0]], text)
    return re.sub(",;", ",", ungrouped(text.replace("-", "−")))


def ungrouped(text: str) -> str:
    """Neither spaces nor grouping; exponents as characters, sums from below to above alike."""
    for character, plain in {"⁻¹": "^−1", "⁺": "^+", "ᵀ": "^ᵀ", "₂": "_2", "..": "^", "*": "^*"}.items():
        text = text.replace(character, plain)
    return re.sub(r"[(){}\s]", "", re.sub(r"\^+{?\^*", "^", text))


def stated(text: str) -> str:
    """A text with single spaces, as a table or a docstring may break it."""
    return re.sub(r"\s+", " ", text.replace("\\|", "|"))


def named(path: str):
    """What a dotted name below ide_ref means."""
    for i in range(len(path.split(".")), 0, -1):
        module, rest = ".".join(path.split(".")[:i]), path.split(".")[i:]
        try:
            thing = importlib.import_module(f"ide_ref.{module}")
        except ModuleNotFoundError:
            continue
        for name in rest:
            thing = getattr(thing, name)
        return thing
    raise AssertionError(f"ide_ref has no {path}")


def test_every_label_has_its_row_with_anchor_and_link():
    assert [row[1] for row in ROWS] == LABELS
    assert all(label == link and anchor == label.lower() for anchor, label, *_, link, _, _, _, _ in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[row[1] for row in ROWS])
def test_each_equation_is_stated_where_the_index_says_and_held_by_what_it_names(row):
    _, label, latex, formula, home, _, fast, file, test, page = row
    doc = stated(named(home).__doc__ or "")
    # The formula ends where a sentence or a clause does, so that nothing may follow it unseen.
    ending = r"[.,:]?( |$)"
    assert re.search(re.escape(f"({label}) {stated(formula)}") + ending, doc), f"{home} does not state {formula}"
    assert in_characters(latex) == ungrouped(formula)
    assert named(fast) is not None
    assert re.search(rf"^def {test}\(", (ROOT / "tests" / file).read_text(), re.M), f"{file} has no {test}"
    assert (ROOT / "docs" / page.split("#")[0]).is_file()


def test_links_lead_to_the_line_of_the_formula():
    pytest.importorskip("sphinx")
    import site_pages

    for _, label, _, formula, _, _, _, _, _, _ in ROWS:
        path, line = site_pages.homes()[label]
        assert f"({label}) {formula[:9]}" in path.read_text().splitlines()[line - 1]


def test_the_derivations_numbers_are_those_of_the_equations(capsys):
    page = (ROOT / "docs/derivation.md").read_text()
    names: dict = {}
    pairs = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, re.S)
    assert len(pairs) == page.count("```python")
    for code, said in pairs:
        exec(compile(code, "derivation.md", "exec"), names)
        assert capsys.readouterr().out == said
    # The same by hand, in the page's formulas.
    formulas = "".join(re.findall(r"\$\$\n(.*?)\$\$", page, re.S))
    by_hand = [*names["beta"].ravel(), *(names["beta"].T @ names["a_star"] / 2).ravel()]
    assert all(f"{number:.6f}" in formulas for number in by_hand)


def test_the_readmes_example_runs_and_learns(capsys):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["loss"] < 0.5
    assert "certified error" in capsys.readouterr().out


def test_check_your_own_layer_runs_as_written(capsys):
    page = (ROOT / "docs/check-your-own-layer.md").read_text()
    names: dict = {}
    exec(compile(re.search(r"```python\n(.*?)```", page, re.S)[1], "check-your-own-layer.md", "exec"), names)
    said = re.search(r"^    (9 directions.*)$", page, re.M)[1]
    assert said in capsys.readouterr().out
    assert names["report"].verdict == "right"


def test_the_equilibrium_pages_own_network_is_recorded_and_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/equilibrium.md").read_text()
    (tmp_path / "runs/digits-lif-s0").mkdir(parents=True)
    checkpoint.save("runs/digits-lif-s0/checkpoint.safetensors", begin(presets.load("digits"), 0))
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.S):
        assert len(code.splitlines()) <= 15
        exec(compile(code, "equilibrium.md", "exec"), names)
    assert names["spikes"].shape == (2, 60, 4, 6, 6)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["distance.png", "raster.png", "rates.png"]
    assert names["frozen"].dtype == np.float32
    assert names["bound"].violation <= 0
    assert np.isfinite(names["back"].certificate).all()


def test_the_equilibrium_pages_table_is_what_was_measured():
    page = (ROOT / "docs/equilibrium.md").read_text()
    table = re.search(r"^\| network \| \(COND\).*?\n\n", page, re.M | re.S)[0].strip().splitlines()[2:]
    assert len(table) == 12
    for row in table:
        name, condition, neuron, *numbers = (cell.strip() for cell in row.strip("|").split("|"))
        if name:
            found = json.loads((ROOT / "docs" / re.search(r"\((.*)\)", name)[1]).read_text())
            assert float(condition) == pytest.approx(found["conditions"]["paper"], rel=5e-3)
        panel = next(p for p in found["neurons"] if p["name"] == neuron)
        # JSON has null for a sum that has left the floats.
        ends = [[line[-1] for line in panel[curves]] for curves in ("error", "one_step", "iterated")]
        measured = [statistics.median(np.inf if v is None else v for v in values) for values in ends]
        measured += [np.nan if panel["limit"] is None else panel["limit"][-1], panel["tightness"]]
        for number, value in zip(numbers, measured, strict=True):
            if number in ("∞", "none"):
                assert np.isinf(value) if number == "∞" else np.isnan(value), row
            else:
                assert is_rounded(number, value), row


def test_the_graph_of_the_networks_page_builds_learns_and_its_gradient_is_right(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    graph, own, use, learn = _blocks("networks.md")
    names: dict = {}
    exec(compile(graph, "networks.md", "exec"), names)
    network = names["network"]
    assert network.n_neurons == 64 + 8 * 64 + 8 * 16 + 10
    # Two feedback paths and a skip, as the page says.
    assert network.feedback_sources == (1, 2)
    assert (0, 2) in network.edges
    exec(compile(own, "networks.md", "exec"), names)
    assert "LIF (leak 0.7, V_th 1)" in capsys.readouterr().out
    exec(compile(use, "networks.md", "exec"), names)
    assert names["result"].solution.converged
    assert "passed" in capsys.readouterr().out
    assert len(learn.splitlines()) <= 15
    exec(compile(learn, "networks.md", "exec"), names)
    assert int(re.fullmatch(r"accuracy (\d+)%\n", capsys.readouterr().out)[1]) > 80
    assert main(["info", "runs/quarters/checkpoint.safetensors"]) == 0


def test_own_data_from_the_script_to_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (script,) = _blocks("data.md")
    assert len(script.splitlines()) <= 15
    exec(compile(script, "data.md", "exec"), {})
    assert int(re.fullmatch(r"accuracy (\d+)%\n", capsys.readouterr().out)[1]) > 80
    monkeypatch.setattr(figures, "training_curves", lambda *_, **__: None)
    for line in _blocks("data.md", "shell"):
        assert main(shlex.split(line)[1:]) == 0, line


def _blocks(page, language="python"):
    """The page's code blocks, in one namespace as a reader pastes them."""
    text = (ROOT / "docs" / page).read_text()
    if language == "shell":
        return [line.strip() for line in re.findall(r"^    (ide-ref .*)$", text, re.M)]
    return re.findall(r"```python\n(.*?)```", text, re.S)


def test_check_your_gradient_from_start_to_end(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    # As a reader runs them, but for how many differences are taken where the page does not say.
    monkeypatch.setitem(verify.check_gradient.__kwdefaults__, "n_coordinates", 1)
    monkeypatch.setitem(verify.check_gradient.__kwdefaults__, "n_directions", 1)
    monkeypatch.setitem(verify.sweep_steps.__kwdefaults__, "steps", (1e-2, 1e-4))
    names: dict = {}
    said = []
    for block in _blocks("check-your-gradient.md"):
        exec(compile(block, "check-your-gradient.md", "exec"), names)
        said.append(capsys.readouterr().out)
    assert "tolerance 1e-09: passed" in said[0]
    assert "linear region" in said[1]
    assert "looks like: half of beta: beta is half as large as it should be" in said[2]
    assert "looks like: sign: the sign is wrong" in said[3]
    assert said[4].count("the parts add up to") == 2
    assert "fixed_point  converged" in said[5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["budget.png", "steps.png"]
    # What the commands do is tested with the command line.
    for line in _blocks("check-your-gradient.md", "shell"):
        parser().parse_args(line.split()[1:])


def test_port_to_a_gpu_from_start_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make, compare, _ = _blocks("port-to-a-gpu.md", "shell")
    assert main(make.split()[1:]) == 0
    page = (ROOT / "docs/port-to-a-gpu.md").read_text()
    cases, megabytes = re.search(r"writes (\d+) cases \(([\d.]+) MB", page).groups()
    assert capsys.readouterr().out.startswith(f"{cases} cases, {megabytes} MB")
    in_process, through_files, conftest, test = _blocks("port-to-a-gpu.md")
    names: dict = {}
    exec(compile(in_process, "port-to-a-gpu.md", "exec"), names)
    printed = capsys.readouterr().out
    assert all(f"    {line}\n" in page for line in printed.splitlines())
    exec(compile(through_files, "port-to-a-gpu.md", "exec"), names)
    assert main(compare.split()[1:]) == 0
    assert "87 of 87 cases agree" in capsys.readouterr().out
    # As a suite of its own, in a process of its own: a whole port is asked for, and this one has a single stage.
    (tmp_path / "conftest.py").write_text(conftest)
    port = in_process.split("report =")[0]
    (tmp_path / "test_whole.py").write_text(port + test)
    (tmp_path / "test_stage.py").write_text(port + test.replace("_case))", '_case), stages=["x_mean"])'))
    words = [sys.executable, "-m", "pytest", "-q", "--conformance-pack=pack", "-k", "dropout", "-rpf"]
    found = subprocess.run(words, capture_output=True, text=True)
    assert found.returncode == 1
    assert "stage weight, feedback: 'weight/feedback' is missing" in found.stdout
    assert "2 failed, 2 passed, 170 deselected" in found.stdout
    assert (found.stdout.count("PASSED test_stage.py"), found.stdout.count("FAILED test_whole.py")) == (2, 2)


def test_the_budgets_of_the_gradient_page_are_what_was_measured():
    page = (ROOT / "docs/check-your-gradient.md").read_text()
    rows = re.findall(r"^\| (\d+) \|(.*)\|$", page.split("| IF: finite T")[1].split("With IF neurons")[0], re.M)
    assert [int(n_steps) for n_steps, _ in rows] == [1, 2, 5, 10, 20, 50, 100, 200]
    finite = {}
    for column, neuron in enumerate(("if", "lif")):
        file = ROOT / f"docs/results/gradient-budget/fashion-mnist-400-{neuron}.json"
        budgets = {b["n_steps"]: b for b in json.loads(file.read_text())["budget"]["over_time"]}
        for n_steps, cells in rows:
            b = budgets[int(n_steps)]
            norms = {part["name"]: part["norm"] for part in b["parts"]}
            written = [float(cell) for cell in cells.split("|")][4 * column : 4 * column + 4]
            assert written[:3] == pytest.approx([norms[k] for k in ("finite T", "masks", "solver")], rel=5.1e-2)
            assert written[3] == pytest.approx(b["cosine"], abs=5.1e-5)
        assert max(b["closure"] for b in budgets.values()) <= 3e-16
        finite[neuron] = [budgets[t]["parts"][1]["norm"] for t in (1, 5, 20, 200)]
        assert budgets[1]["parts"][1]["name"] == "finite T"
    # The part of finite T falls, for IF to nothing and for LIF to its floor.
    for values in finite.values():
        assert values == sorted(values, reverse=True)
    assert finite["if"][-1] < 1e-2 * finite["if"][0]
    assert finite["lif"][-1] > 5 * finite["if"][-1]


def test_long_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "training_curves", lambda *_, **__: None)
    page = (ROOT / "docs/long-runs.md").read_text()
    for line in _blocks("long-runs.md", "shell"):
        assert main(shlex.split(line)[1:]) == 0, line
    assert main(shlex.split("train digits --epochs 2 --limit 200 --out runs/long --resume --lr 0.01")) == 2
    assert re.search(r"```text\n(.*)\n```", page)[1] in capsys.readouterr().err
    watch, budget = _blocks("long-runs.md")
    exec(compile(watch, "long-runs.md", "exec"), {})
    assert len(re.findall(r"^epoch \d: loss \d\.\d+, test accuracy", capsys.readouterr().out, re.M)) == 3
    # Every field of a line is explained.
    fields = json.loads((tmp_path / "runs/long/metrics.jsonl").read_text().splitlines()[0])
    explained = {name for row in re.findall(r"^\| (`.*?) \|", page, re.M) for name in re.findall(r"`(\w+)`", row)}
    assert set(fields) <= explained
    exec(compile(budget.replace("> 5", "> 0"), "long-runs.md", "exec"), {})
    assert capsys.readouterr().out == "callback 0 epochs\n"


def test_the_start_pages_example_runs(capsys):
    (code,) = _blocks("index.md")
    names: dict = {}
    exec(compile(code, "index.md", "exec"), names)
    assert "gradients of readout.weight" in capsys.readouterr().out
    assert names["result"].solution.converged


@pytest.mark.parametrize("page", ["trust", "threats"])
def test_the_tests_that_hold_a_promise_are_there(page):
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", (ROOT / f"docs/{page}.md").read_text())
    assert len(named) > 5
    for file, test in named:
        assert f"def {test}" in (ROOT / "tests" / file).read_text(), (file, test)
