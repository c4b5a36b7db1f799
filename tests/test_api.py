"""Rules of the package that no single test sees."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import ide_ref

ROOT = Path(ide_ref.__file__).parent
SOURCES = [pytest.param(path, id=str(path.relative_to(ROOT))) for path in sorted(ROOT.rglob("*.py"))]


def nodes(path, *kinds):
    return [node for node in ast.walk(ast.parse(path.read_text("utf8"))) if isinstance(node, kinds)]


def imports(path):
    """Names of the modules a file imports."""
    return {alias.name for node in nodes(path, ast.Import) for alias in node.names} | {
        node.module for node in nodes(path, ast.ImportFrom) if node.module
    }


@pytest.mark.parametrize("path", SOURCES)
def test_no_assert(path):
    assert not [node.lineno for node in nodes(path, ast.Assert)]


@pytest.mark.parametrize("path", SOURCES)
def test_no_pickle(path):
    assert not {name.split(".")[0] for name in imports(path)} & {"pickle", "cPickle", "dill", "joblib", "shelve"}


@pytest.mark.parametrize("path", [p for p in SOURCES if "_kernels" not in p.values[0].parts])
def test_numba_stays_in_the_kernels(path):
    """Elsewhere numba may tell its version and its threads, and compiles nothing."""
    assert not {name for name in imports(path) if name.startswith("numba.")}
    assert "numba" not in {node.module for node in nodes(path, ast.ImportFrom)}
    used = {node.attr for node in nodes(path, ast.Attribute) if getattr(node.value, "id", "") == "numba"}
    assert used <= {"__version__", "get_num_threads", "set_num_threads", "config"}


@pytest.mark.parametrize("path", [p for p in SOURCES if "_kernels" not in p.values[0].parts])
def test_no_keyword_dictionaries(path):
    public = [f for f in nodes(path, ast.FunctionDef) if not f.name.startswith("_")]
    assert not [f"{f.name}, line {f.lineno}" for f in public if f.args.kwarg]


@pytest.mark.parametrize("path", SOURCES)
def test_every_public_function_has_hints(path):
    for f in nodes(path, ast.FunctionDef):
        arguments = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]
        bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
        if "_kernels" not in path.parts:
            assert not bare, f"{f.name}, line {f.lineno}"


@pytest.mark.parametrize("name", ide_ref.__all__)
def test_public_names_are_there(name):
    assert getattr(ide_ref, name) is not None
    assert name in dir(ide_ref)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'ide_ref' has no attribute 'relu'"):
        _ = ide_ref.relu


def test_public_functions_are_documented():
    for name in set(ide_ref.__all__) - {"__version__"}:
        assert (getattr(ide_ref, name).__doc__ or "").strip(), name


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, ide_ref; sys.exit(bool({'numpy', 'numba', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_solvers_and_data_know_no_network():
    for module in ("solvers.py", "datasets"):
        paths = sorted((ROOT / module).rglob("*.py")) if (ROOT / module).is_dir() else [ROOT / module]
        for path in paths:
            inner = {name for name in imports(path) if name.startswith("ide_ref.")}
            whole = [node for node in nodes(path, ast.ImportFrom) if node.module == "ide_ref"]
            inner |= {f"ide_ref.{alias.name}" for node in whole for alias in node.names}
            # Kernels are given arrays alone.
            allowed = ("ide_ref.datasets", "ide_ref._files", "ide_ref._checks", "ide_ref._kernels")
            assert not {n for n in inner if not n.startswith(allowed)}, path.name


def test_every_module_can_be_imported():
    for module in pkgutil.walk_packages([str(ROOT)], "ide_ref."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
