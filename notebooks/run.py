"""Run the course: execute the notebooks and store, or compare, what they print.

``python notebooks/run.py`` executes every ``NN-name.md`` beside this file and writes ``NN-name.ipynb``, the same cells
with their outputs. ``--check`` writes nothing: it executes and compares with what is stored. ``--quick`` is for
continuous integration: IDE_REF_QUICK=1 asks the notebooks that need size to take less, and nothing is written.

A notebook is MyST text with a Jupytext header; the ``.md`` is what one edits. ``--check`` compares the cells'
words, numbers up to their last digits, and how many pictures there are; numbers below 1e-12 are rounding, and equal.
Two tags say what cannot be compared: ``timed`` never is, ``sized`` is not in quick mode. A notebook that imports
PyTorch is skipped where that is not installed.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

HERE = Path(__file__).parent
NUMBER = re.compile(r"(?<![\w.])[-+−]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
ROUNDING, RELATIVE = 1e-12, 1e-6


def read(path: Path) -> NotebookNode:
    """The cells of a ``.md``, without outputs, numbered so that writing them twice gives the same file."""
    notebook = jupytext.read(path)
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i}"
    return notebook


def execute(notebook: NotebookNode) -> None:
    """Fill in the outputs, from a fresh kernel of this Python in the folder of the notebooks."""
    resources = {"metadata": {"path": str(HERE)}}
    # One text from many prints, however they arrived; no clock times in the file.
    options = {"coalesce_streams": True, "record_timing": False}
    NotebookClient(notebook, kernel_name="python3", timeout=600, resources=resources, **options).execute()
    # Which version of Python it was would change the file and says nothing.
    notebook.metadata["language_info"] = {"name": "python", "file_extension": ".py"}


def needs_torch(notebook: NotebookNode) -> bool:
    """Whether a cell imports PyTorch, itself or through the port beside this file."""
    return any(
        cell.cell_type == "code" and re.search(r"^\s*(import|from) (port_)?torch\b", cell.source, re.M)
        for cell in notebook.cells
    )


def printed(cell: NotebookNode) -> str:
    """All text a cell gave but warnings, which depend on versions; a word for each picture."""
    parts = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            parts.append(output.text if output.name == "stdout" else "")
        elif "image/png" in output.get("data", {}):
            parts.append("[picture]\n")
        else:
            parts.append(output.get("data", {}).get("text/plain", ""))
    return "".join(parts)


def last_place(number: str) -> float:
    """The value of one unit in the last digit: 0.01 of 3.14, 1e-7 of 2.5e-6."""
    digits, _, exponent = number.lower().partition("e")
    return 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))


def same_number(found: str, stored: str) -> bool:
    """Whether two printed numbers are the same up to rounding: two units in the last digit, or 1e-6 of their size."""
    # The sign that typography calls minus is one, too.
    x, y = (float(number.replace("−", "-")) for number in (found, stored))
    if max(abs(x), abs(y)) < ROUNDING:
        return True
    # Whole numbers are counts, and exact.
    is_count = "." not in found + stored and "e" not in (found + stored).lower()
    slack = 0.0 if is_count else 2.01 * max(last_place(found), last_place(stored))
    return abs(x - y) <= max(slack, RELATIVE * max(abs(x), abs(y)) * (not is_count))


def first_difference(found: str, stored: str) -> str:
    """What differs between two texts, in words; empty if nothing does."""
    for ours, theirs in zip(NUMBER.findall(found), NUMBER.findall(stored), strict=False):
        if not same_number(ours, theirs):
            return f"prints {ours}, stored is {theirs}"
    words = [" ".join(NUMBER.sub("#", text).split()) for text in (found, stored)]
    return "" if words[0] == words[1] else f"prints\n{found}\nstored is\n{stored}"


def differences(notebook: NotebookNode, stored: NotebookNode, quick: bool) -> list[str]:
    """Cells of an executed notebook that are not as stored, in words."""
    exempt = {"timed", "sized"} if quick else {"timed"}
    found = []
    for i, (cell, before) in enumerate(zip(notebook.cells, stored.cells, strict=True)):
        if exempt.isdisjoint(cell.metadata.get("tags", [])):
            difference = first_difference(printed(cell), printed(before))
            found += [f"cell {i} {difference}"] if difference else []
    return found


def run(path: Path, *, quick: bool, check: bool) -> bool:
    """Execute one notebook, store or compare; whether all went well."""
    notebook, target = read(path), path.with_suffix(".ipynb")
    if needs_torch(notebook) and find_spec("torch") is None:
        print(f"{path.stem}: skipped, it needs PyTorch and torch is not installed", flush=True)
        return True
    stored = None
    if check:
        stored = nbformat.read(target, as_version=4) if target.is_file() else NotebookNode(cells=[])
        if [cell.source for cell in notebook.cells] != [cell.source for cell in stored.cells]:
            print(f"{path.stem}: its .ipynb has other cells than the .md; run this without --check", flush=True)
            return False
    start = time.perf_counter()
    try:
        execute(notebook)
    except CellExecutionError as error:
        print(f"{path.stem}: {error}", file=sys.stderr, flush=True)
        return False
    problems = [] if stored is None else differences(notebook, stored, quick)
    if not (check or quick):
        nbformat.write(notebook, target)
    print(f"{path.stem}: {time.perf_counter() - start:.0f} s", *problems, sep="\n  ", flush=True)
    return not problems


def main() -> int:
    parser = argparse.ArgumentParser(description="Execute the notebooks; write their .ipynb, or compare with it.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebooks, as 02 or 02-equilibrium; all by default")
    parser.add_argument("--quick", action="store_true", help="smaller where size takes time; writes nothing")
    parser.add_argument("--check", action="store_true", help="compare with the stored outputs; writes nothing")
    options = parser.parse_args()
    every = sorted(HERE.glob("[0-9][0-9]-*.md"))
    chosen = []
    for name in options.names:
        found = [path for path in every if Path(name).stem in (path.stem, path.stem[:2])]
        if not found:
            parser.error(f"there is no notebook {name!r}; expected one of {', '.join(path.stem for path in every)}")
        chosen += found
    os.environ.pop("IDE_REF_QUICK", None)
    if options.quick:
        os.environ["IDE_REF_QUICK"] = "1"
    results = [run(path, quick=options.quick, check=options.check) for path in chosen or every]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
