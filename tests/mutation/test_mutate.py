"""The mutation-testing command itself: what it edits, whom it kills, and that its lists fit the sources."""

import ast
import random
from collections import defaultdict

import mutate
import pytest
from mutants import mutants_of
from mutate import ROOT, Tree, equivalents, every_mutant, key_of, settings, summary, times_without_mutant, try_out

# (what is written, what it becomes)
OPERATORS = {
    "a plus": ("λ = x + y", ["λ = x - y"]),
    "a minus in brackets": ("z = (x)  # + 1\n", []),
    "a product": ("z = (x) * (y)", ["z = (x) / (y)"]),
    "a power": ("z = x**y", ["z = x*y"]),
    "a quotient": ("z = x // y", ["z = x % y"]),
    "bits": ("z = x & y", ["z = x | y"]),
    "an order": ("z = x < y <= t", ["z = x <= y <= t", "z = x < y < t"]),
    "an equality": ("z = x == y", ["z = x != y"]),
    "an identity": ("z = x is not y", ["z = x is y"]),
    "membership": ("z = x not  in y", ["z = x in y"]),
    "and": ("z = x and y and t", ["z = x or y and t", "z = x and y or t"]),
    "not": ("z = not x", ["z = x"]),
    "a sign": ("z = -x", ["z = x"]),
    "a sum in place": ("z += x", ["z -= x", "pass"]),
    "a condition": ("if x:\n    z = y", ["if not (x):\n    z = y"]),
    "a choice": ("z = x if y else t", ["z = x if not (y) else t"]),
    "nothing": ("z = 0", ["z = 1"]),
    "one": ("z = 1.0", ["z = 0.0", "z = 2.0"]),
    "a number": ("z = 2.5", ["z = (2.5 * 2)"]),
    "a truth": ("z = True", ["z = False"]),
    "an axis": ("z = x.sum(axis=0)", ["z = x.sum()", "z = x.sum(axis=1)"]),
    "a keyword among others": ("z = x(y, axis=t, out=s)", ["z = x(y, out=s)", "z = x(y, axis=t)"]),
    "a statement": ("x(y)", ["pass"]),
    "an entry written": ("z[x] = y", ["pass"]),
    "a slice": ("z = x[s:t]", ["z = x[(s) + 1:t]", "z = x[s:(t) - 1]"]),
    "a slice of all": ("z = x[:, y]", ["z = x[1:, y]", "z = x[:-1, y]"]),
    "a transpose": ("z = x.T @ y", ["z = x @ y"]),
    "a minimum": ("z = np.minimum(x, min(y))", ["z = np.maximum(x, min(y))", "z = np.minimum(x, max(y))"]),
    "an end": ("def f(source, target):\n    return source", ["def f(source, target):\n    return target"]),
    "a default": ("def f(x: int = 0) -> int:\n    return x", ["def f(x: int = 1) -> int:\n    return x"]),
    "messages and annotations": ('"""0 + 1"""\nraise ValueError(f"{x + 1}", 1 + 1)', []),
    "a decorator": ("@d(x=1)\ndef f():\n    pass", []),
    "a name that is excluded": ("BLOCK = 8", []),
    "a name in a function that is excluded": ("def f():\n    block = 8", []),
    "a factor that is excluded": ("z = x + 2 * GRAIN * (y + 1)", ["z = x - 2 * GRAIN * (y + 1)"]),
    "an argument that is excluded": ("z = widened(x + y, 3)", ["z = widened(x - y, 3)"]),
}
EXCLUDED = ["BLOCK", "f.block", "* GRAIN", "widened#2"]


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_yields_code_that_differs_there_alone_and_compiles(name):
    written, expected = OPERATORS[name]
    source = f"# λ\n{written}\ny = x\n".encode()
    found = [mutant.applied_to(source).decode() for mutant in mutants_of("f.py", source, EXCLUDED)]
    assert sorted(found) == sorted(f"# λ\n{new}\ny = x\n" for new in expected)
    for text in found:
        assert ast.dump(ast.parse(text)) != ast.dump(ast.parse(source))


def test_mutants_of_the_package_compile():
    found = settings()
    by_file = defaultdict(list)
    for mutant in random.Random(0).sample(every_mutant(found["modules"], found["excluded"]), 40):
        by_file[mutant.file].append(mutant)
    for file, mutants in by_file.items():
        source = (ROOT / file).read_bytes()
        for mutant in mutants:
            compile(mutant.applied_to(source), file, "exec")


@pytest.fixture
def small_tree(tmp_path):
    """A package of two lines, and a test of the first."""
    (tmp_path / "original" / "tests").mkdir(parents=True)
    (tmp_path / "original" / "module.py").write_text(
        "def twice(x):\n    return x + x\n\ndef never(x):\n    return x - 1\n"
    )
    (tmp_path / "original" / "tests" / "test_module.py").write_text(
        "from module import twice\n\ndef test_twice():\n    assert twice(3) == 6\n"
    )
    return Tree(tmp_path / "original", tmp_path / "copy")


def test_a_wrong_line_is_killed_and_one_that_no_test_reads_survives(small_tree):
    file, tests = "module.py", ["tests/test_module.py"]
    source = (small_tree.at / file).read_bytes()
    killed, survived = (m for m in every_mutant([file], {}, small_tree.at) if m.old in ("+", "-"))
    records = [try_out(small_tree, mutant, tests, 1.0, whole=False) for mutant in (killed, survived)]
    assert [record["result"] for record in records] == ["killed", "survived"]
    assert records[0]["by"].startswith("tests/test_module.py::test_twice")
    assert "50.0 %" in summary(records)
    assert (small_tree.at / file).read_bytes() == source


def test_of_a_kernel_the_places_are_checked_too(small_tree, monkeypatch):
    """What no other test notices, by the tests of kernels under Numba's bounds check; no such tests notice nothing."""
    monkeypatch.setattr(mutate, "KERNELS", "module")
    _, never = (m for m in every_mutant(["module.py"], {}, small_tree.at) if m.old in ("+", "-"))
    tests = small_tree.at / "tests" / "test_module.py"
    assert try_out(small_tree, never, ["tests/test_module.py"], 1.0, whole=False)["result"] == "survived"
    tests.write_text(
        "import os\nimport pytest\nfrom module import never\n\n@pytest.mark.kernels\ndef test_never():\n"
        "    assert not os.environ.get('NUMBA_BOUNDSCHECK') or never(3) == 2\n"
    )
    record = try_out(small_tree, never, ["tests/test_module.py"], 1.0, whole=False)
    assert (record["result"], record["by"][:35]) == ("killed", "tests/test_module.py::test_never - ")


def test_tests_that_fail_without_a_mutant_are_refused(small_tree, monkeypatch):
    monkeypatch.setattr(small_tree, "run", lambda tests: ("killed", "test_twice"))
    with pytest.raises(RuntimeError, match=r"tests/test_module\.py fails without a mutant: test_twice"):
        times_without_mutant(small_tree, ["tests/test_module.py"])


def test_a_module_that_is_gone_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ide_ref/neurons\.py"):
        settings(tmp_path)


def test_a_mutant_that_hangs_is_killed_by_the_limit(small_tree):
    (small_tree.at / "tests" / "test_module.py").write_text("def test_waits():\n    while True:\n        pass\n")
    assert small_tree.run(["tests/test_module.py"], limit=1.0) == ("timed out", "")


def test_the_list_of_equivalent_mutants_has_reasons_and_fits_the_sources():
    found, known = settings(), equivalents()
    there = {key_of(m) for m in every_mutant({file for file, *_ in known}, found["excluded"])}
    assert set(known) <= there, "an entry whose line has changed says nothing any more: judge it again"
    assert all(len(why) > 20 for why in known.values())
