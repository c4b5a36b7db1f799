"""Rules of the package that no single test sees."""

import ast
import importlib
import pkgutil
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
def test_no_assert_and_no_pickle(path):
    assert not [node.lineno for node in nodes(path, ast.Assert)]
    assert not {name.split(".")[0] for name in imports(path)} & {"pickle", "cPickle", "dill", "joblib", "shelve"}


@pytest.mark.parametrize("path", [p for p in SOURCES if "_kernels" not in p.values[0].parts])
def test_numba_stays_in_the_kernels(path):
    """Elsewhere numba may tell its version and its threads, and compiles nothing."""
    assert not {name for name in imports(path) if name.startswith("numba.")}
    assert "numba" not in {node.module for node in nodes(path, ast.ImportFrom)}
    used = {node.attr for node in nodes(path, ast.Attribute) if getattr(node.value, "id", "") == "numba"}
    assert used <= {"__version__", "get_num_threads", "set_num_threads", "threading_layer", "config"}


@pytest.mark.parametrize("path", [p for p in SOURCES if "_kernels" not in p.values[0].parts])
def test_no_keyword_dictionaries(path):
    public = [f for f in nodes(path, ast.FunctionDef) if not f.name.startswith("_")]
    assert not [f"{f.name}, line {f.lineno}" for f in public if f.args.kwarg]


@pytest.mark.parametrize("name", ide_ref.__all__)
def test_public_names_are_there_and_documented(name):
    assert name in dir(ide_ref)
    assert (getattr(ide_ref, name).__doc__ or "").strip()


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'ide_ref' has no attribute 'relu'"):
        _ = ide_ref.relu


def test_every_module_can_be_imported():
    for module in pkgutil.walk_packages([str(ROOT)], "ide_ref."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
