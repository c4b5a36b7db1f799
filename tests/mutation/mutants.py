"""Small wrong edits of a source text, each at the exact place of a node of its syntax tree."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Collection
from dataclasses import dataclass

TOKENS = {
    "+": "-", "-": "+", "*": "/", "/": "*", "//": "%", "%": "//", "**": "*", "&": "|", "|": "&", "<<": ">>", ">>": "<<",
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "is": "is not", "is not": "is", "in": "not in",
    "not in": "in", "and": "or", "or": "and",
}  # fmt: skip
SYMBOLS = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
    ast.BitAnd: "&", ast.BitOr: "|", ast.LShift: "<<", ast.RShift: ">>", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">",
    ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=", ast.Is: "is", ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in",
    ast.And: "and", ast.Or: "or",
}  # fmt: skip
PAIRS = (
    ("min", "max"), ("minimum", "maximum"), ("argmin", "argmax"), ("any", "all"), ("zeros", "ones"), ("floor", "ceil"),
    ("zeros_like", "ones_like"), ("source", "target"), ("first", "last"), ("apply", "adjoint"),
)  # fmt: skip
NAMES = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
BUILTIN = ("min", "max", "any", "all")


@dataclass(frozen=True)
class Mutant:
    """``old`` at ``start`` (bytes) of a file becomes ``new``; ``where`` is the function or class around it."""

    file: str
    where: str
    line: int
    start: int
    old: str
    new: str
    old_line: str
    new_line: str

    @property
    def name(self) -> str:
        return f"{self.file}:{self.line} {shown(self.old)!r} -> {shown(self.new)!r} (byte {self.start})"

    def applied_to(self, source: bytes) -> bytes:
        end = self.start + len(self.old.encode())
        if source[self.start : end] != self.old.encode():
            raise ValueError(f"{self.name}: the source is not the one that it was made for")
        return source[: self.start] + self.new.encode() + source[end:]


def shown(text: str) -> str:
    """On one line, without the spaces of its indentation."""
    return " ".join(text.split())


def mutants_of(file: str, source: bytes, excluded: Collection[str] = ()) -> list[Mutant]:
    """All of them, in the order of their places.

    ``excluded`` names what is left alone: functions, classes, names assigned at the top or, as ``function.name``, in a
    function, keyword arguments as written, all products with a name as a factor as ``* NAME``, and the second argument
    of a function, say, as ``function#2``.
    """
    finder = _Finder(file, source, excluded)
    finder.visit(ast.parse(source))
    return sorted(set(finder.found), key=lambda m: (m.start, m.old, m.new))


def factors(node: ast.expr) -> list[str]:
    """Names among the factors and divisors of a product; of a single name, that."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mult, ast.Div)):
        return factors(node.left) + factors(node.right)
    return [node.id] if isinstance(node, ast.Name) else []


class _Finder(ast.NodeVisitor):
    def __init__(self, file: str, source: bytes, excluded: Collection[str]) -> None:
        self.file, self.source, self.excluded = file, source, excluded
        self.line_starts = [0, *(match.end() for match in re.finditer(rb"\n", source))]
        self.around: list[str] = []
        self.names: set[str] = set()
        self.found: list[Mutant] = []

    def span(self, node: ast.AST) -> tuple[int, int]:
        return (
            self.line_starts[node.lineno - 1] + node.col_offset,
            self.line_starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def text(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.source[start:end].decode()

    def add(self, start: int, end: int, new: str) -> None:
        first = self.source.rfind(b"\n", 0, start) + 1
        last = self.source.find(b"\n", end)
        last = len(self.source) if last < 0 else last
        before, old, after = (part.decode() for part in (
            self.source[first:start], self.source[start:end], self.source[end:last]
        ))  # fmt: skip
        self.found.append(Mutant(
            self.file, ".".join(self.around), self.source.count(b"\n", 0, start) + 1, start, old, new,
            shown(before + old + after), shown(before + new + after),
        ))  # fmt: skip

    def replace(self, node: ast.AST, *news: str) -> None:
        for new in news:
            self.add(*self.span(node), new)

    def token(self, left: ast.AST, right: ast.AST, operator: ast.AST, after: str = "") -> None:
        """Swap the operator that stands between two nodes, among brackets and comments perhaps."""
        symbol = SYMBOLS.get(type(operator))
        if symbol is None:
            return
        start, end = self.span(left)[1], self.span(right)[0]
        gap = re.sub(rb"#[^\n]*", lambda comment: b" " * len(comment[0]), self.source[start:end])
        found = re.search(re.escape(symbol + after).replace(r"\ ", r"\s+").encode(), gap)
        self.add(start + found.start(), start + found.end(), TOKENS[symbol] + after)

    # What is not mutated: what only people read (messages, annotations), and what is excluded by name.

    def skip(self, node: ast.AST) -> None:
        pass

    visit_Raise = visit_JoinedStr = visit_Import = visit_ImportFrom = skip

    def visit_scope(self, node: ast.FunctionDef | ast.ClassDef) -> None:
        self.around.append(node.name)
        if ".".join(self.around) not in self.excluded:
            before, self.names = self.names, {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            if isinstance(node, ast.FunctionDef):
                self.names |= {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
                for default in (*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)):
                    self.visit(default)
            for statement in node.body:
                self.visit(statement)
            self.names = before
        self.around.pop()

    visit_FunctionDef = visit_ClassDef = visit_scope

    def visit_Assign(self, node: ast.Assign) -> None:
        if not self.around and any(n.id in self.excluded for n in ast.walk(node) if isinstance(n, ast.Name)):
            return
        if isinstance(node.targets[0], ast.Name) and ".".join((*self.around, node.targets[0].id)) in self.excluded:
            return
        if isinstance(node.targets[0], (ast.Subscript, ast.Attribute)):
            self.replace(node, "pass")
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None and (self.around or ast.unparse(node.target) not in self.excluded):
            self.visit(node.value)

    # What is mutated.

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, (ast.Constant, ast.Yield)):
            self.replace(node, "pass")
            self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.replace(node, "pass")
        self.token(node.target, node.value, node.op, "=")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if any(f"* {name}" in self.excluded for name in factors(node)):
            return
        self.token(node.left, node.right, node.op)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in itertools.pairwise(node.values):
            self.token(left, right, node.op)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, operator, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            self.token(left, right, operator)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        start = self.span(node)[0]
        if isinstance(node.op, (ast.Not, ast.USub)):
            self.add(start, start + len(re.match(rb"not\s*|-", self.source[start:])[0]), "")
        self.generic_visit(node)

    def visit_condition(self, node: ast.If | ast.IfExp) -> None:
        if ast.unparse(node.test) != "TYPE_CHECKING":
            if not (isinstance(node.test, ast.UnaryOp) and isinstance(node.test.op, ast.Not)):
                self.replace(node.test, f"not ({self.text(node.test)})")
            self.generic_visit(node)

    visit_If = visit_IfExp = visit_condition

    def visit_Constant(self, node: ast.Constant) -> None:
        if node.value is True or node.value is False:
            self.replace(node, str(not node.value))
        elif isinstance(node.value, (int, float)):
            zero, one, two = ("0.0", "1.0", "2.0") if isinstance(node.value, float) else ("0", "1", "2")
            self.replace(node, *{0: [one], 1: [zero, two]}.get(node.value, [f"({self.text(node)} * 2)"]))

    def visit_Call(self, node: ast.Call) -> None:
        for keyword in node.keywords:
            if keyword.arg is not None and self.text(keyword) not in self.excluded:
                start, end = self.span(keyword)
                comma = re.match(rb"\s*,[ \t]*", self.source[end:])
                before = re.search(rb",\s*$", self.source[:start])
                if comma:
                    self.add(start, end + comma.end(), "")
                elif before:
                    self.add(before.start(), end, "")
                else:
                    self.add(start, end, "")
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        self.visit(node.func)
        for number, argument in enumerate(node.args, 1):
            if f"{name}#{number}" not in self.excluded:
                self.visit(argument)
        for keyword in node.keywords:
            self.visit(keyword)

    def visit_keyword(self, node: ast.keyword) -> None:
        if self.text(node) not in self.excluded:
            self.visit(node.value)

    def visit_Name(self, node: ast.Name) -> None:
        other = NAMES.get(node.id)
        if other in BUILTIN or (other in self.names and isinstance(node.ctx, ast.Load)):
            self.replace(node, other)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        start, end = self.span(node.value)[1], self.span(node)[1]
        if node.attr == "T":
            self.add(start + self.source[start:end].rindex(b"."), end, "")
        elif node.attr in NAMES:
            self.add(end - len(node.attr), end, NAMES[node.attr])
        self.generic_visit(node)

    def visit_Slice(self, node: ast.Slice) -> None:
        """One less at either end; a bound that is a number is mutated as such."""
        start, end = self.span(node)
        if node.lower is None:
            self.add(start, start, "1")
        elif isinstance(node.lower, (ast.Name, ast.BinOp, ast.Call, ast.Attribute, ast.Subscript)):
            self.replace(node.lower, f"({self.text(node.lower)}) + 1")
        if node.upper is None and node.step is None:
            self.add(end, end, "-1")
        elif isinstance(node.upper, (ast.Name, ast.BinOp, ast.Call, ast.Attribute, ast.Subscript)):
            self.replace(node.upper, f"({self.text(node.upper)}) - 1")
        self.generic_visit(node)
