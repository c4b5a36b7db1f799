"""One index too many in each loop of the kernels: ``python tests/reliability/off_by_one.py [--jobs 2] [--of NAME ...]``.

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
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "ide_ref" / "_kernels"

# Tests below tests/ that see a module's kernels and take seconds as plain Python: by file, what their names hold.
SYNAPSES = {"test_synapses": "loop or transpose or derivative or taps or matmul"}
ROLLOUT = {"test_simulation": "predicted or loops", "test_events": "(say or bring) and not 256"}
NETWORK = {"test_own_neurons": "gradient or scaled", "test_constraints": "not drawn"}
SYSTEMS = {"test_solvers": "system and not sizes_from"}
TIME = {"test_continuous": "charge or parts or neuron or order or edge or room or own_time or budget"}
TESTS = {
    "continuous": TIME,
    "dense": {"test_vector": "products", **SYNAPSES, **SYSTEMS},
    "elementwise": {"test_elementwise": "", **NETWORK, **SYSTEMS},
    "layout": {**SYNAPSES, **ROLLOUT},
    "memory": {"test_memory": ""},
    "products": SYNAPSES,
    "propagate": ROLLOUT,
    "rollout": {**ROLLOUT, **NETWORK},
    "vector": {"test_vector": "", **ROLLOUT},
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


def ran(tests, limit, path=None, line=0):
    """Output of the tests on the package as it is, or with the loop in a line of a file longer; None where all pass."""
    with tempfile.TemporaryDirectory() as room:
        shutil.copytree(ROOT / "ide_ref", f"{room}/ide_ref", ignore=shutil.ignore_patterns("__pycache__"))
        if path is not None:
            tree = Longer(line).visit(ast.parse(path.read_text()))
            (Path(room) / path.relative_to(ROOT)).write_text(ast.unparse(ast.fix_missing_locations(tree)))
        env = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": f"{room}{os.pathsep}{ROOT / 'tests'}"}
        names = " or ".join(f"({file} and ({words}))" if words else file for file, words in tests.items())
        options = ["-p", "no:cacheprovider", "--hypothesis-profile=few", "--tb=line", f"--rootdir={ROOT}"]
        command = [sys.executable, "-m", "pytest", "-qx", *options, "-k", names]
        try:
            done = subprocess.run(
                [*command, *(str(ROOT / "tests" / f"{file}.py") for file in tests)],
                cwd=room, env=env, capture_output=True, text=True, timeout=limit, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "it never ends"
        if done.returncode == 0:
            return None
        failed = [row for row in done.stdout.splitlines() if row.startswith(("FAILED", "ERROR"))]
        return failed[0] if failed else done.stdout[-300:] + done.stderr[-300:]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--of", nargs="+", default=[""], help="only functions with one of these in MODULE.NAME")
    args = parser.parse_args()
    places = [
        (path, name, line)
        for path in sorted(KERNELS.glob("*.py"))
        for name, line in loops(path)
        if path.stem in TESTS and any(part in f"{path.stem}.{name}" for part in args.of)
    ]
    limits = {}
    for module in sorted({path.stem for path, _, _ in places}):
        began = time.perf_counter()
        if by := ran(TESTS[module], 600):
            sys.exit(f"the tests of {module} fail on the kernels as they are: {by}")
        limits[module] = 60 + 10 * (time.perf_counter() - began)
    with ThreadPoolExecutor(args.jobs) as pool:
        found = pool.map(lambda place: ran(TESTS[place[0].stem], limits[place[0].stem], place[0], place[2]), places)
        missed = 0
        for (path, name, line), by in zip(places, found, strict=True):
            missed += by is None
            print(f"{path.stem}.{name}:{line}: {by or 'NOT NOTICED'}", flush=True)
    print(f"{len(places)} loops, {len(places) - missed} noticed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
