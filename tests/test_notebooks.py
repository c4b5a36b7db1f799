"""The course: its notebooks' form, and that what is stored is of the source that is there.

``python notebooks/run.py --check``, a step of continuous integration, executes them and compares every number.
"""

import ast
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("[0-9][0-9]-*.md"))


def cells(name: str, kind: str) -> list[dict]:
    """Cells of one kind of a stored notebook."""
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def runner():
    """notebooks/run.py as a module."""
    # A check of addresses, which no notebook holds, would take seconds to import.
    sys.modules.setdefault("rfc3987_syntax", None)
    pytest.importorskip("jupytext", reason="jupytext reads the notebooks' sources")
    pytest.importorskip("nbclient", reason="nbclient executes the notebooks")
    spec = importlib.util.spec_from_file_location("run_notebooks", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_are_of_these_cells_executed_in_order_without_errors_or_warnings(name):
    code = cells(name, "code")
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result", "display_data"}
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"]
    # The source without its fences and the lines between them that are Jupytext's own is all in there.
    text = (FOLDER / f"{name}.md").read_text()
    assert all(source(cell).strip() in text for cell in code + cells(name, "markdown"))
    assert text.count("```{code-cell}") == len(code)


@pytest.mark.parametrize("name", NAMES)
def test_the_cells_are_those_of_the_source(name):
    run = runner()
    read = run.read(FOLDER / f"{name}.md")
    stored = json.loads((FOLDER / f"{name}.ipynb").read_text())
    assert [(c.cell_type, c.source, c.metadata) for c in read.cells] == [
        (c["cell_type"], source(c), c["metadata"]) for c in stored["cells"]
    ]


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_one_learns_ends_in_checks_and_has_exercises_with_hidden_solutions(name):
    first = source(cells(name, "markdown")[0])
    assert first.startswith("# ")
    assert "**You will learn**" in first
    assert "**You need**" in first
    solutions = [cell for cell in cells(name, "code") if "hide-cell" in cell["metadata"].get("tags", [])]
    assert len(solutions) >= 2
    assert all(cell["metadata"]["jupyter"] == {"source_hidden": True} for cell in solutions)
    prose = "\n".join(source(cell) for cell in cells(name, "markdown"))
    assert len(re.findall(r"^\*\*Exercise|^#+ Exercise \d", prose, re.M)) >= 2
    assert re.search(r"^#+ .*\bchecks?\b", prose, re.M | re.I)
    assert any(re.search(r"^\s*(assert\b|np\.testing\.)", source(cell), re.M) for cell in cells(name, "code"))


@pytest.mark.parametrize("name", NAMES)
def test_it_uses_public_names_only(name):
    for cell in cells(name, "code"):
        # Lines for IPython are no Python.
        tree = ast.parse(re.sub(r"^[%!].*$", "", source(cell), flags=re.M))
        for node in ast.walk(tree):
            named = []
            if isinstance(node, ast.ImportFrom):
                named = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Import):
                named = [part for alias in node.names for part in alias.name.split(".")]
            elif isinstance(node, ast.Attribute):
                named = [node.attr]
            private = [part for part in named if re.match(r"_(?!_)", part)]
            # Of named tuples, whose own names begin so to stay out of the fields' way.
            assert set(private) <= {"_replace", "_fields", "_asdict"}, f"{private} in {source(cell)}"


@pytest.mark.parametrize(
    ("found", "stored", "same"),
    [
        ("0.375", "0.375", True),
        ("0.375", "0.376", True),  # a last digit
        ("0.375", "0.379", False),
        ("3", "3", True),
        ("3", "4", False),  # a count
        ("1.5e-07", "1.6e-07", True),
        ("1.5e-07", "2.5e-07", False),
        ("2.2e-16", "7.8e-14", True),  # rounding
        ("−0.5", "-0.5", True),
        ("0.5", "-0.5", False),
        ("1234567.125", "1234568.000", True),
        ("nan", "0.5", False),
    ],
)
def test_comparison_of_stored_numbers(found, stored, same):
    text = "γ = {} holds at t = 10\n"
    assert (runner().first_difference(text.format(found), text.format(stored)) == "") is same


def test_comparison_of_stored_words():
    difference = runner().first_difference
    assert difference("it holds 1", "it  holds\n1") == ""
    assert "fails" in difference("it fails 1", "it holds 1")
    assert "prints" in difference("it holds 1 2", "it holds 1")
