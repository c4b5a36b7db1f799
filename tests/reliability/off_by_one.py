"""One index too many in each loop of the kernels: ``python tests/reliability/off_by_one.py [--jobs 2] [--of NAME]``.

In a copy of the package the end of one loop at a time is moved by one, and the tests of that module run on the kernels
as plain Python, where an index out of bounds is an IndexError, as it is under Numba's bounds check; what stays inside
an array has to be seen as a wrong number. Prints a line per loop and what no test noticed; status 1 if there is any.
"""

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "ide_ref" / "_kernels"

SYNAPSES = ["test_synapses.py", "-k", "loop or transpose or derivative or taps or matmul"]
ROLLOUT = ["test_simulation.py", "test_events.py", "-k", "predicted or loops or say or bring"]
NETWORK = [
    "test_own_neurons.py",
    "test_solvers.py",
    "test_constraints.py",
    "-k",
    "scaled or gradient or system or norm",
]
# Tests below tests/ that see a module's kernels, the quickest first.
TESTS = {
    "continuous": [["test_continuous.py", "-m", "kernels"]],
    "dense": [["test_synapses.py", "-k", "matmul"], ["test_vector.py", "-k", "products"], SYNAPSES, NETWORK],
    "elementwise": [["test_constraints.py", "-k", "not drawn"], NETWORK],
    "layout": [SYNAPSES, ROLLOUT],
    "memory": [["test_memory.py"]],
    "products": [SYNAPSES],
    "propagate": [ROLLOUT],
    "rollout": [ROLLOUT, ["test_own_neurons.py", "-k", "gradient"]],
    "vector": [["test_vector.py"], ROLLOUT],
}


class Longer(ast.NodeTransformer):
    """Moves the end of the loop in a given line by one."""

    def __init__(self, line):
        self.line = line

    def visit_Call(self, node):
        self.generic_visit(node)
        if node.lineno == self.line and ast.unparse(node.func) in ("range", "prange"):
            end = min(len(node.args) - 1, 1)
            node.args[end] = ast.BinOp(node.args[end], ast.Add(), ast.Constant(1))
        return node


def loops(path):
    """Name of the function and line of every loop over a range in the kernels of a file, LLVM's templates left out."""
    tree = ast.parse(path.read_text())
    for function in tree.body:
        plain = isinstance(function, ast.FunctionDef) and not function.name.startswith(("_emit", "_vector_"))
        for node in ast.walk(function) if plain else ():
            if isinstance(node, ast.For) and ast.unparse(node.iter).startswith(("range(", "prange(")):
                yield function.name, node.lineno


def noticed_by(path, line):
    """The test that fails with this loop longer; None if all pass."""
    with tempfile.TemporaryDirectory() as room:
        shutil.copytree(ROOT / "ide_ref", f"{room}/ide_ref", ignore=shutil.ignore_patterns("__pycache__"))
        tree = Longer(line).visit(ast.parse(path.read_text()))
        (Path(room) / path.relative_to(ROOT)).write_text(ast.unparse(ast.fix_missing_locations(tree)))
        env = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": f"{room}{os.pathsep}{ROOT / 'tests'}"}
        for tests in TESTS[path.stem]:
            given = [str(ROOT / "tests" / word) if word.endswith(".py") else word for word in tests]
            command = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", "--hypothesis-profile=few"]
            try:
                ran = subprocess.run(
                    [*command, "--tb=line", f"--rootdir={ROOT}", *given],
                    cwd=room, env=env, capture_output=True, text=True, timeout=300, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                return "it never ends"
            if ran.returncode:
                failed = [row for row in ran.stdout.splitlines() if row.startswith(("FAILED", "ERROR"))]
                return failed[0] if failed else ran.stdout[-300:] + ran.stderr[-300:]
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--of", default="", help="only functions with this in MODULE.NAME")
    args = parser.parse_args()
    places = [
        (path, name, line)
        for path in sorted(KERNELS.glob("*.py"))
        for name, line in loops(path)
        if path.stem in TESTS and args.of in f"{path.stem}.{name}"
    ]
    with ThreadPoolExecutor(args.jobs) as pool:
        found = pool.map(lambda place: noticed_by(place[0], place[2]), places)
        missed = 0
        for (path, name, line), by in zip(places, found, strict=True):
            missed += by is None
            print(f"{path.stem}.{name}:{line}: {by or 'NOT NOTICED'}", flush=True)
    print(f"{len(places)} loops, {len(places) - missed} noticed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
