"""How many small wrong edits of the numerical modules do the tests notice?

    python tests/mutation/mutate.py --seed 0 --number 200 --out report.jsonl

Each mutant is made in a copy of the tree, where the test files of its module (modules.json) run until one fails. A
mutant that no test can notice belongs into equivalent.json, with the reason; then it is neither run nor counted. POSIX.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import queue
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import pytest
from mutants import Mutant, mutants_of

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KERNELS = "ide_ref/_kernels"
LEFT_BEHIND = (".git", ".venv", ".hypothesis", ".mypy_cache", ".ruff_cache", ".pytest_cache", "runs", "_build")
FACTOR, START, COMPILING = 10, 60, 600  # a limit: so many times the time without a mutant, and so many seconds more
WHOLE = 3600  # seconds for the whole suite
MEMORY = 16 << 30  # bytes of addresses: a mutant that asks for all there is fails instead


def settings(root: Path = ROOT) -> dict[str, Any]:
    """modules.json, whose files must be there."""
    found = json.loads((HERE / "modules.json").read_text())
    files = [*found["modules"], *(test for tests in found["modules"].values() for test in tests), *found["excluded"]]
    missing = sorted({file for file in files if file != "everywhere" and not (root / file).exists()})
    if missing:
        raise FileNotFoundError(f"modules.json names files that are not there: {', '.join(missing)}")
    return found


def every_mutant(modules: Iterable[str], excluded: Mapping[str, Mapping[str, str]], root: Path = ROOT) -> list[Mutant]:
    """Of these modules, in the order given."""
    return [
        mutant
        for file in modules
        for mutant in mutants_of(
            file, (root / file).read_bytes(), {*excluded.get("everywhere", ()), *excluded.get(file, ())}
        )
    ]


def equivalents() -> dict[tuple[str, str, str, str], str]:
    """Reasons, by file, function and the line's text before and after: line numbers would not survive an edit."""
    entries = json.loads((HERE / "equivalent.json").read_text())
    return {(e["file"], e["where"], e["old"], e["new"]): e["why"] for e in entries}


def key_of(mutant: Mutant) -> tuple[str, str, str, str]:
    return mutant.file, mutant.where, mutant.old_line, mutant.new_line


class Tree:
    """A copy of the sources with their compiled caches, in which one mutant at a time is made and tested.

    Modification times are copied too, so that caches stay valid. A mutated kernel has all kernels compiled anew, into
    a cache that is put back afterwards.
    """

    def __init__(self, original: Path, at: Path) -> None:
        shutil.copytree(original, at, ignore=shutil.ignore_patterns(*LEFT_BEHIND), symlinks=True)
        self.at = at
        self.process: subprocess.Popen[str] | None = None

    @contextlib.contextmanager
    def mutated(self, mutant: Mutant) -> Iterator[None]:
        path = self.at / mutant.file
        before, caches = path.stat(), path.parent / "__pycache__"
        source = path.read_bytes()
        with tempfile.TemporaryDirectory(dir=self.at.parent) as aside:
            shutil.copytree(caches, Path(aside) / "caches") if caches.exists() else (Path(aside) / "caches").mkdir()
            for compiled in caches.glob(f"{path.stem}.*.pyc"):
                compiled.unlink()
            path.write_bytes(mutant.applied_to(source))
            try:
                yield
            finally:
                path.write_bytes(source)
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
                shutil.rmtree(caches, ignore_errors=True)
                shutil.copytree(Path(aside) / "caches", caches)

    def run(self, tests: Sequence[str], limit: float | None = None, *, checked: bool = False) -> tuple[str, str]:
        """``survived``, ``killed`` or ``timed out``, and the first test that failed.

        ``checked``: of these tests those of kernels, under Numba's bounds check.
        """
        environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
        environment |= {
            "PYTHONPATH": str(self.at),
            "OMP_WAIT_POLICY": "passive",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        if checked:
            environment["NUMBA_BOUNDSCHECK"] = "1"
            command += ["-m", "kernels"]
        with subprocess.Popen(
            command, cwd=self.at, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True, text=True, errors="replace",
        ) as self.process:  # fmt: skip
            try:
                output, _ = self.process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                self.stop()
                return "timed out", ""
            except BaseException:
                self.stop()
                raise
        if self.process.returncode == 0 or (checked and self.process.returncode == pytest.ExitCode.NO_TESTS_COLLECTED):
            return "survived", ""
        failed = re.search(r"^(?:FAILED|ERROR) (.*)$", output, re.M)
        return "killed", failed[1] if failed else f"exit status {self.process.returncode}: {output[-300:]}"

    def stop(self) -> None:
        """End the tests, and what they started themselves."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def times_without_mutant(tree: Tree, tests: Iterable[str]) -> dict[str, float]:
    """Seconds that each test file takes. They must pass, or else they kill every mutant; kernels are compiled by it."""
    times = {}
    for test in tests:
        start = time.perf_counter()
        result, by = tree.run([test])
        if result != "survived":
            raise RuntimeError(f"{test} fails without a mutant: {by}")
        times[test] = time.perf_counter() - start
        print(f"without a mutant {times[test]:6.1f} s  {test}", flush=True)
    return times


def try_out(tree: Tree, mutant: Mutant, tests: Sequence[str], seconds: float, whole: bool) -> dict[str, Any]:
    """What became of a mutant, for the report; ``seconds`` is what the tests take without one."""
    start = time.perf_counter()
    limit = START + FACTOR * seconds + COMPILING * mutant.file.startswith(KERNELS)
    with tree.mutated(mutant):
        result, by = tree.run(tests, limit)
        if result == "survived" and mutant.file.startswith(KERNELS):
            # A place beyond an array may hold the right number by chance; `.ci/run` looks at places, too.
            result, by = tree.run(tests, WHOLE, checked=True)
        if whole and result == "survived":
            result, by = tree.run(["tests", *(f"--ignore={test}" for test in (*tests, "tests/mutation"))], WHOLE)
    return record_of(mutant, result, by, time.perf_counter() - start)


def record_of(mutant: Mutant, result: str, by: str, seconds: float) -> dict[str, Any]:
    return {
        "name": mutant.name, "file": mutant.file, "where": mutant.where, "old": mutant.old_line,
        "new": mutant.new_line, "result": result, "by": by, "seconds": round(seconds, 1),
    }  # fmt: skip


def summary(records: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(record["result"] for record in records)
    counted = len(records) - counts["equivalent"]
    lines = [f"survived: {r['name']}\n          {r['where']}: {r['new']}" for r in records if r["result"] == "survived"]
    lines.append(", ".join(f"{counts[name]} {name}" for name in ("killed", "timed out", "survived", "equivalent")))
    if counted:
        noticed = counts["killed"] + counts["timed out"]
        lines.append(f"{100 * noticed / counted:.1f} % of the {counted} mutants that are not equivalent were killed")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, default=200, help="of mutants, drawn uniformly from all of the modules")
    parser.add_argument("--modules", nargs="+", metavar="FILE", help="all of modules.json by default")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time, each in a copy of its own")
    parser.add_argument("--out", type=Path, default=Path("mutants.jsonl"), help="a line of JSON for each mutant")
    parser.add_argument("--resume", action="store_true", help="go on with the report; what is in it is not run again")
    parser.add_argument("--whole", action="store_true", help="run the rest of the suite on what survives")
    parser.add_argument("--list", action="store_true", help="only print the mutants that would be run")
    given = parser.parse_args(arguments)
    found = settings()
    modules = given.modules or list(found["modules"])
    if unknown := set(modules) - set(found["modules"]):
        parser.error(f"not in modules.json: {', '.join(sorted(unknown))}")
    if given.out.exists() and not given.resume and not given.list:
        parser.error(f"{given.out} exists; --resume goes on with it")
    known = equivalents()
    mutants = every_mutant(modules, found["excluded"])
    drawn = random.Random(given.seed).sample(mutants, min(given.number, len(mutants)))
    print(f"{len(drawn)} of {len(mutants)} mutants")
    if given.list:
        print("\n".join(mutant.name for mutant in drawn))
        return 0
    records = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    done = {record["name"] for record in records}
    left = [mutant for mutant in drawn if mutant.name not in done]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    trees: queue.Queue[Tree] = queue.Queue()
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch, given.out.open("a") as out:

        def note(record: dict[str, Any]) -> None:
            records.append(record)
            print(f"{record['result']:<11}{record['seconds']:6.1f} s  {record['name']}", flush=True)
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
            out.flush()

        def in_some_tree(mutant: Mutant) -> dict[str, Any]:
            tree = trees.get()
            try:
                # The quick ones first: most mutants are killed by any.
                tests = sorted(found["modules"][mutant.file], key=times.__getitem__)
                return try_out(tree, mutant, tests, sum(times[test] for test in tests), given.whole)
            finally:
                trees.put(tree)

        to_run = []
        for mutant in left:
            ast.parse(mutant.applied_to((ROOT / mutant.file).read_bytes()))
            if why := known.get(key_of(mutant)):
                note(record_of(mutant, "equivalent", why, 0.0))
            else:
                to_run.append(mutant)
        first = Tree(ROOT, Path(scratch) / "0")
        times = times_without_mutant(first, dict.fromkeys(t for m in to_run for t in found["modules"][m.file]))
        every = [first, *(Tree(first.at, Path(scratch) / str(job)) for job in range(1, given.jobs))]
        for tree in every:
            trees.put(tree)
        with ThreadPoolExecutor(given.jobs) as pool:
            waiting = [pool.submit(in_some_tree, mutant) for mutant in to_run]
            try:
                for future in as_completed(waiting):
                    note(future.result())
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                for tree in every:
                    tree.stop()
    print(summary(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
