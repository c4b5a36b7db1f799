"""Docstrings of every public name: numpydoc's checks, shapes of arrays, errors; each is in the API pages."""

import ast
import inspect
import re
import textwrap
from pathlib import Path

import pytest

import ide_ref

docscrape = pytest.importorskip("numpydoc.docscrape")
validate = pytest.importorskip("numpydoc.validate").validate
pytest.importorskip("sphinx")

ROOT = Path(__file__).parent.parent
site_pages = pytest.importorskip("site_pages")

# Form of the text, a summary that ends in a period, and parameters that are those of the function, each with a type.
# Left out: capitals at the start (λ, x̄), the mood of verbs, the order where two parameters are told together, and
# examples and cross references for every name.
FORM = {
    *("GL01", "GL02", "GL03", "GL05", "GL06", "GL07", "GL08", "GL09", "GL10", "SS01", "SS03", "SS04", "SS06"),
    *("PR02", "PR04", "PR05", "PR06", "PR09", "PR10", "RT05"),
}
# (B, n), (..., *shape), an array "of x's shape", or of any.
SHAPE = re.compile(r"\([^()]*,[^()]*\)|\(\*\w+\)|\bshapes?\b|\bscalars?\b")


def members(owner):
    """Public methods and properties that a class itself defines."""
    for name, value in vars(owner).items():
        value = getattr(value, "fget", None) or getattr(value, "__func__", None) or getattr(value, "func", value)
        if not name.startswith("_") and inspect.isfunction(value):
            yield name, value


def public():
    """Dotted name, object and, for methods, class of all that is public."""
    for module in site_pages.public_modules():
        for name, value in site_pages.public_names(module).items():
            if value.__module__ == module:
                yield pytest.param(f"{module}.{name}", inspect.unwrap(value), None, id=f"{module}.{name}")
                for member, function in members(value) if inspect.isclass(value) else ():
                    yield pytest.param(f"{module}.{name}.{member}", function, value, id=f"{module}.{name}.{member}")


PUBLIC = list(public())


def documentation(name, thing, owner):
    """A docstring, for a method the one it inherits where it has none."""
    if owner is None:
        return inspect.getdoc(thing)
    there = (vars(base).get(name.rsplit(".", 1)[1]) for base in owner.__mro__)
    return next((inspect.cleandoc(method.__doc__) for method in there if method is not None and method.__doc__), None)


def annotated_as_arrays(thing):
    return [n for n, t in getattr(thing, "__annotations__", {}).items() if str(t).startswith("NDArray") and n[0] != "_"]


@pytest.mark.parametrize(("name", "thing", "owner"), PUBLIC)
def test_form_shapes_and_errors(name, thing, owner):
    doc = documentation(name, thing, owner)
    assert doc, "no docstring"
    if thing.__doc__:
        assert not [error for error in validate(name)["errors"] if error[0] in FORM]
    if inspect.isclass(thing):
        check_fields(thing, doc)
        return
    if annotated_as_arrays(thing):
        assert SHAPE.search(doc), f"arrays {annotated_as_arrays(thing)} without a shape"
    tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    raised = {
        ast.unparse(n.exc.func) for n in ast.walk(tree) if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)
    }
    if "ValueError" in raised:
        assert re.search(r"\b[A-Z]\w*Error|Raises", doc), "raises a ValueError and does not say so"


def told_of_fields(thing, doc):
    """What is said of each field of a class: in its docstring, or below the field."""
    parsed = docscrape.NumpyDocString(doc)
    told = {
        name.strip(): f"{entry.type} {' '.join(entry.desc)}"
        for part in ("Attributes", "Parameters")
        for entry in parsed[part]
        for name in entry.name.split(",")
    }
    body = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0].body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            told[node.target.id] = after.value.value
    return told, " ".join(parsed["Summary"])


def check_fields(thing, doc):
    """A dataclass's arrays have their shapes."""
    told, summary = told_of_fields(thing, doc)
    for field in annotated_as_arrays(thing):
        assert SHAPE.search(told.get(field, summary)), f"array {field} without a shape"


# What is measured in a unit, by the names that the package gives it, and words that say the unit.
UNITS = {
    "tau|delay|times|spike_times|t_end|refractory|saccade": r"steps?|seconds?|microseconds|units? of time",
    "n_steps": r"steps?",
    "a|a_delayed|rates|x_mean": r"spikes? per (step|unit of time|second)|[Rr]ates?|x̄|a\[T\]",
    "u|u_end|u_plus|potentials|v_th|drive": r"[Pp]otentials?|[Tt]hresholds?|V_th",
    "resident|idle|room": r"[Bb]ytes|MiB",
    "degrees": r"degrees",
    "energy": r"[Pp]icojoules?|pJ|[Jj]oules?",
}


@pytest.mark.parametrize(("name", "thing", "owner"), PUBLIC)
def test_what_has_a_unit_says_which(name, thing, owner):
    fields = told_of_fields(thing, documentation(name, thing, owner))[0].values() if inspect.isclass(thing) else ()
    doc = "\n".join([*above(name, thing, owner), *fields])
    for quantity, kind in getattr(thing, "__annotations__", {}).items():
        if str(kind).startswith("Mapping"):
            continue
        for names, unit in UNITS.items():
            if re.fullmatch(names, quantity):
                assert re.search(rf"\b({unit})(?!\w)", doc), f"{quantity} has no unit"


def above(name, thing, owner):
    """A docstring with those that it stands under: its class's and its module's."""
    classes = [] if owner is None else [inspect.getdoc(owner)]
    return [documentation(name, thing, owner), *classes, inspect.getdoc(inspect.getmodule(thing))]


LABELS = set(re.findall(r"^### \(([A-Z-]+)\)", (ROOT / "docs/equations.md").read_text(), re.M))


@pytest.mark.parametrize(("name", "thing", "owner"), PUBLIC)
def test_the_source_is_named(name, thing, owner):
    """An equation of the index, a page, an address, a publication, or the page of equations itself."""
    doc = "\n".join(above(name, thing, owner))
    for page in re.findall(r"``((?:docs|notebooks)/[\w./-]+\.md)``", doc):
        assert (ROOT / page).is_file(), f"{page} is no page"
    labels = set(re.findall(r"\(([A-Z]{2,}(?:-C)?)\)", doc))
    assert labels <= LABELS | NO_EQUATIONS, f"{labels - LABELS} is no equation"
    source = r"``(docs|notebooks)/|https?://|\b(19|20)\d\d[),]|`ide_ref\.equations(\.\w+)?`"
    assert labels & LABELS or re.search(source, doc), "no source"


NO_EQUATIONS = {"BPTT", "ON", "OFF", "STBP"}
"""Capitals in brackets that are no label."""

FUNCTIONS = [name for name in ide_ref.__all__ if inspect.isfunction(getattr(ide_ref, name))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_at_the_top_explain_every_parameter(name):
    assert not [text for code, text in validate(f"ide_ref.{name}")["errors"] if code == "PR01"]


def test_no_public_name_is_missing_from_the_api_pages():
    index = (ROOT / "docs/api/index.md").read_text()
    listed = re.findall(r"^(ide_ref[\w.]*)$", index, re.M)
    assert sorted(listed) == sorted(site_pages.public_modules())
    described = {}
    for module in listed:
        page = site_pages.api_page(module)
        for name in re.findall(r"^\.\. auto(?:function|class):: (\S+)$|^   ~(\S+)$", page, re.M):
            described.setdefault(module, set()).add("".join(name))
    for module in listed:
        for name, value in site_pages.public_names(module).items():
            assert f"{value.__module__}.{value.__qualname__}" in described[module], f"{module}.{name}"
            assert f"{value.__module__}.{value.__qualname__}" in described[value.__module__], f"home of {module}.{name}"
