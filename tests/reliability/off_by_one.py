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
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "ide_ref" / "_kernels"

# Tests below tests/ that see a module's kernels and take seconds as plain Python: by file, what their names hold.
SYNAPSES = {"test_synapses": "loop or transpose or derivative or taps or matmul"}
ROLLOUT = {"test_simulation": "predicted or loops", "test_events": "(say or bring or tiles) and not 256"}
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

# Loops of which one turn more does nothing that anybody could notice, by what is looped over; the reason is printed.
NO_SLICE = "the 17th of 16 slices is empty, whatever is sliced"
NO_WIDTH = "where the last turn is whole: a part of no width, of which nothing is read or written"
HARMLESS = {
    ("dense._tiles", "range(0, n, DEPTH)"): NO_WIDTH,
    ("dense.matmul", "prange(n_chunks * n_panels)"): NO_WIDTH,
    ("elementwise.moments", "range(2)"): "the variance is computed once more, from the same mean",
    ("elementwise.keep", "prange(SLICES)"): NO_SLICE,
    ("elementwise.slope", "prange(SLICES)"): NO_SLICE,
    ("elementwise.all_finite", "prange(SLICES)"): NO_SLICE,
    ("elementwise.momentum_step", "prange(SLICES)"): NO_SLICE,
    ("elementwise.orthogonalise", "range(2)"): "twice is enough: a third time takes off rounding alone",
    ("propagate.propagate", "range(0, c_out, COLUMNS)"): NO_WIDTH,
    ("rollout.rollout", "prange((drive.shape[0] + share - 1) // share)"): "a block of no samples",
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
    """Function, line and range of every loop over one in the kernels of a file, LLVM's templates left out."""
    tree = ast.parse(path.read_text())
    for function in tree.body:
        plain = isinstance(function, ast.FunctionDef) and not {"builder", "context"} & {
            argument.arg for argument in function.args.args
        }
        for node in ast.walk(function) if plain else ():
            if isinstance(node, ast.For) and ast.unparse(node.iter).startswith(("range(", "prange(")):
                yield f"{path.stem}.{function.name}", node.lineno, ast.unparse(node.iter)


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
        (path, *loop)
        for path in sorted(KERNELS.glob("*.py"))
        for loop in loops(path)
        if path.stem in TESTS and any(part in loop[0] for part in args.of)
    ]
    if gone := HARMLESS.keys() - {(name, over) for path in KERNELS.glob("*.py") for name, _, over in loops(path)}:
        sys.exit(f"called harmless, but not there: {gone}")
    limits = {}
    for module in sorted({path.stem for path, *_ in places}):
        began = time.perf_counter()
        if by := ran(TESTS[module], 600):
            sys.exit(f"the tests of {module} fail on the kernels as they are: {by}")
        limits[module] = 60 + 10 * (time.perf_counter() - began)

    def tried(place):
        path, name, line, over = place
        if why := HARMLESS.get((name, over)):
            return f"harmless: {why}"
        return ran(TESTS[path.stem], limits[path.stem], path, line) or "NOT NOTICED"

    missed = harmless = 0
    with ThreadPoolExecutor(args.jobs) as pool:
        for (_, name, line, over), found in zip(places, pool.map(tried, places), strict=True):
            missed += found == "NOT NOTICED"
            harmless += found.startswith("harmless")
            print(f"{name}:{line} {over}: {found}", flush=True)
    print(f"{len(places)} loops, {harmless} harmless, {len(places) - harmless - missed} noticed, {missed} not")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
