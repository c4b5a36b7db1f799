"""The documentation against the code: the equation index and the README's example."""

import importlib
import json
import re
import statistics
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
ROWS = re.findall(r"^\| (\([A-Z-]+\)) \|.*\| (`[^|]+) \|$", (ROOT / "docs/equations.md").read_text(), re.M)


@pytest.mark.parametrize(("label", "homes"), ROWS, ids=[row[0] for row in ROWS])
def test_each_equation_is_stated_where_the_index_says(label, homes):
    for home in re.findall(r"`([^`]+)`", homes):
        module, *path = home.split(".")
        thing = importlib.import_module(f"ide_ref.{module}")
        for name in path:
            thing = getattr(thing, name)
        assert label in (thing.__doc__ or ""), f"{home} does not state {label}"


def test_the_index_is_not_empty():
    assert len(ROWS) >= 19


def test_the_readmes_example_runs_and_learns(capsys):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["loss"] < 0.5
    assert "certified error" in capsys.readouterr().out


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
            half_a_digit = 0.5001 * 10.0 ** -len(number.partition(".")[2])
            written = {"∞": np.inf, "none": np.nan}.get(number) or float(number)
            assert written == pytest.approx(value, rel=0, abs=half_a_digit, nan_ok=True), row


def test_the_graph_of_the_networks_page_builds_and_its_gradient_is_right(capsys):
    graph, use = re.findall(r"```python\n(.*?)```", (ROOT / "docs/networks.md").read_text(), re.S)
    names: dict = {}
    exec(compile(graph, "networks.md", "exec"), names)
    network = names["network"]
    assert network.n_neurons == 256 + 8 * 256 + 8 * 64 + 10
    # Two feedback paths and a skip, as the page says.
    assert network.feedback_sources == (1, 2)
    assert (0, 2) in network.ends
    exec(compile(use, "networks.md", "exec"), names)
    assert names["result"].solution.converged
    assert "passed" in capsys.readouterr().out
