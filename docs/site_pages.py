"""What the site has beside its written pages: notebooks, source files, API pages, the mathematics' script.

- Roles: ``source`` links to the line of the source that states an equation, ``at`` to the line that defines a name or a
  test, ``notebook`` to a notebook that is there.
- ``tutorials/``: the notebooks, copied from ``notebooks/``.
- ``source/``: every source file, and the tests of equations, with an anchor per line: ``source/equations.html#L-60``.
- ``api/``: a page for each public module; re-exported names are listed, and described in their homes.
"""

import ast
import importlib
import importlib.util
import inspect
import json
import pkgutil
import re
import shutil
from functools import cache
from pathlib import Path

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx.util.docutils import SphinxRole

import ide_ref

DOCS = Path(__file__).parent
PACKAGE = Path(ide_ref.__file__).parent


def public_modules() -> list[str]:
    """Dotted names of the modules that users import: all but private ones and the command line."""
    names = ["ide_ref", *(m.name for m in pkgutil.walk_packages(ide_ref.__path__, "ide_ref."))]
    return [name for name in names if not re.search(r"\._|\.cli\b", name)]


def public_names(module: str) -> dict[str, object]:
    """Functions and classes that a module makes public, by name, re-exported ones too."""
    there = importlib.import_module(module)
    named = getattr(there, "__all__", None)
    if named is None:
        named = [name for name, value in vars(there).items() if getattr(value, "__module__", None) == module]
    found = {name: getattr(there, name) for name in named if not name.startswith("_")}
    return {name: value for name, value in found.items() if callable(value)}


@cache
def public_data(module: str) -> dict[str, tuple[str, str]]:
    """The constants and types that a module assigns: their docstrings and, where it is short, what is assigned."""
    body = ast.parse(file_of(module).read_text()).body
    found = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        # What type checkers alone see is nobody's constant.
        if isinstance(target, ast.Name) and not target.id.startswith("_") and target.id != "TYPE_CHECKING":
            told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            value = ast.unparse(node.value)
            found[target.id] = inspect.cleandoc(after.value.value) if told else "", value if len(value) < 100 else ""
    return found


@cache
def everything() -> dict[str, list[str]]:
    """Full dotted names of all public objects by their last part, methods included."""
    found: dict[str, list[str]] = {}
    for module in public_modules():
        names = [*public_data(module), *(name for name in definitions(file_of(module)) if "._" not in f".{name}")]
        for name in names:
            found.setdefault(name.rsplit(".", 1)[-1], []).append(f"{module}.{name}")
    return found


def page_of(path: Path) -> str:
    """The page of a source file, from the site's root."""
    root = PACKAGE if path.is_relative_to(PACKAGE) else DOCS.parent
    return f"source/{path.relative_to(root).with_suffix('')}"


def file_of(module: str) -> Path:
    """The file of a module."""
    return Path(importlib.import_module(module).__file__)


@cache
def definitions(path: Path) -> dict[str, int]:
    """The lines of a file's functions, classes and methods by dotted name."""
    found = {}

    def collect(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                found[prefix + child.name] = child.lineno
                collect(child, prefix + child.name + ".")

    collect(ast.parse(path.read_text()), "")
    return found


def line_of(module: str, name: str) -> str | None:
    """Source page and anchor of the line where an object is defined; None for what is not in the source."""
    path = file_of(module)
    return f"{page_of(path)}.html#L-{definitions(path)[name]}" if name in definitions(path) else None


def home_of(name: str) -> tuple[str, str]:
    """Module and name in it of what a dotted name below ide_ref means, re-exported or not."""
    first, *rest = name.split(".")
    thing, module = importlib.import_module(f"ide_ref.{first}"), f"ide_ref.{first}"
    while rest and (importlib.util.find_spec(f"{module}.{rest[0]}") if hasattr(thing, "__path__") else None):
        module = f"{module}.{rest.pop(0)}"
        thing = importlib.import_module(module)
    return getattr(thing, rest[0]).__module__, ".".join(rest)


@cache
def homes() -> dict[str, tuple[Path, int]]:
    """File, and line of the formula, of each label in the equation index."""
    found = {}
    rows = r"^### \(([A-Z-]+)\).*?^`(.+?)`$.*?^- Home: {at}`([\w.]+)`"
    for label, formula, home in re.findall(rows, (DOCS / "equations.md").read_text(), re.M | re.S):
        module, name = home_of(home)
        path = file_of(module)
        begins = f"({label}) {formula[:9]}"
        lines = enumerate(path.read_text().splitlines(), start=1)
        found[label] = path, next(i for i, line in lines if i >= definitions(path)[name] and begins in line)
    return found


class Link(SphinxRole):
    """A link to a page that is no document."""

    def link(self, shown: nodes.Node, page: str):
        up = "../" * self.env.docname.count("/")
        return [nodes.reference("", "", shown, refuri=up + page, internal=True)], []


class Source(Link):
    """``{source}`STEP```: a link to the line of the source that states the equation."""

    def run(self):
        path, line = homes()[self.text]
        return self.link(nodes.Text(f"{path.relative_to(PACKAGE)}, line {line}"), f"{page_of(path)}.html#L-{line}")


class At(Link):
    """``{at}`equations.step```, ``{at}`test_theory.py::test_x```: a link to the line of the definition."""

    def run(self):
        if "::" in self.text:
            file, name = self.text.split("::")
            path = DOCS.parent / "tests" / file
            page = f"{page_of(path)}.html#L-{definitions(path)[name]}"
        else:
            page = line_of(*home_of(self.text))
        return self.link(nodes.literal("", self.text), page)


class Notebook(Link):
    """``{notebook}`05-implicit-differentiation```: a link by the notebook's title, its name where it is not there."""

    def run(self):
        path = DOCS.parent / f"notebooks/{self.text}.ipynb"
        if not path.is_file():
            return [nodes.emphasis("", self.text)], []
        cells = json.loads(path.read_text())["cells"]
        title = next(line for cell in cells for line in "".join(cell["source"]).splitlines() if line.startswith("# "))
        return self.link(nodes.Text(title[2:]), f"tutorials/{self.text}.html")


def write(path: Path, text: str) -> None:
    """A generated file, touched only where it changes, so that Sphinx reads it again only then."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def generate(app, config) -> None:
    """Notebooks into ``tutorials/``, API pages into ``api/``; generated files of before go."""
    notebooks = {path.name: path.read_text() for path in sorted((DOCS.parent / "notebooks").glob("*.ipynb"))}
    pages = {f"{module}.rst": api_page(module) for module in public_modules()}
    for folder, suffix, files in (("tutorials", "ipynb", notebooks), ("api", "rst", pages)):
        for path in (DOCS / folder).glob(f"*.{suffix}"):
            if path.name not in files:
                path.unlink()
        for name, text in files.items():
            write(DOCS / folder / name, text)


def api_page(module: str) -> str:
    """The module's docstring, what it re-exports as a table, and what it defines."""
    names = public_names(module)
    own = [name for name, value in names.items() if value.__module__ == module]
    lines = [module, "=" * len(module), "", f".. automodule:: {module}", ""]
    others = [f"   ~{value.__module__}.{value.__qualname__}" for name, value in names.items() if name not in own]
    if others:
        lines += [".. currentmodule:: None", "", ".. autosummary::", "", *others, ""]
    for name, (says, value) in public_data(module).items():
        lines += [f".. py:data:: {name}", *([f"   :value: {value}"] if value else []), ""]
        lines += [*(f"   {line}" for line in escaped(says.splitlines())), ""]
    for name in own:
        kind = "autoclass" if inspect.isclass(names[name]) else "autofunction"
        lines += [f".. {kind}:: {module}.{name}", *(["   :members:"] if kind == "autoclass" else []), ""]
    return "\n".join(lines)


def resolve(app, env, node, contnode):
    """References to re-exported names, and short ones in summaries, lead to the object's home."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"].removesuffix("()")
    package, _, last = target.rpartition(".")
    homes = [
        home
        for home in everything().get(last, ())
        if home.endswith("." + target) or (package and home.startswith(package + "."))
    ]
    if not homes:
        return None
    # Of several, the one that the page is about.
    homes.sort(key=lambda home: not home.startswith(node["refdoc"].removeprefix("api/")))
    return env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, "obj", homes[0], node, contnode)


def source_pages(app):
    """A page for each source file, with an anchor per line."""
    formatter = HtmlFormatter(linenos="inline", linespans="L", wrapcode=True)
    tests = {
        DOCS.parent / "tests" / file for file in re.findall(r"{at}`([\w./]+)::", (DOCS / "equations.md").read_text())
    }
    for path in sorted([*PACKAGE.rglob("*.py"), *tests]):
        name = path.relative_to(DOCS.parent)
        body = f"<h1>{name}</h1>" + highlight(path.read_text(), PythonLexer(), formatter)
        yield page_of(path), {"title": str(name), "body": body}, "page.html"


def escaped(lines: list[str]) -> list[str]:
    """Formulas in docstrings are plain characters: |x| is no substitution and a* no emphasis."""
    # Literals stay as they are.
    return [re.sub(r"(``.*?``)|([|*])", lambda m: m[1] or "\\" + m[2], line) for line in lines]


def escape(app, what, name, obj, options, lines) -> None:
    """The same, for autodoc."""
    lines[:] = escaped(lines)


def copy_mathjax(app, error) -> None:
    """The mathematics' script, one file of the package that brings it."""
    if error or app.builder.format != "html":
        return
    package = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent
    shutil.copy(package / "static/mathjax" / app.config.mathjax_path, Path(app.outdir) / "_static")


def setup(app):
    app.add_role("source", Source())
    app.add_role("at", At())
    app.add_role("notebook", Notebook())
    app.connect("config-inited", generate)
    app.connect("missing-reference", resolve)
    app.connect("html-collect-pages", source_pages)
    app.connect("autodoc-process-docstring", escape, priority=400)
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
