"""The documentation against the code: the equation index and the README's example."""

import importlib
import re
from pathlib import Path

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


def test_the_graph_of_the_networks_page_builds():
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/networks.md").read_text(), re.S)[1]
    names: dict = {}
    exec(compile(code, "networks.md", "exec"), names)
    assert names["network"].n_neurons == 256 + 8 * 256 + 8 * 64 + 10
