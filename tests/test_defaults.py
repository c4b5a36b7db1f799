"""What the public functions do when not told otherwise, and public constants: users rely on them, so they are a choice.

``python tests/test_defaults.py`` writes the table anew.
"""

import inspect
import json
from pathlib import Path

import ide_ref
from ide_ref import (
    authors,
    certificates,
    constraints,
    equilibrium,
    implicit,
    maps,
    norms,
    solvers,
    synapses,
    theory,
    verify,
)
from ide_ref.measure import activity, angles, memory
from ide_ref.training import losses, schedule, sgd
from ide_ref.verify import solvers as examination

TABLE = Path(__file__).parent / "data" / "defaults.json"
INNER = (authors, certificates, constraints, equilibrium, implicit, maps, norms, solvers, synapses, theory, verify)
MODULES = (ide_ref, *INNER, activity, angles, memory, examination, losses, schedule, sgd)


def defaults():
    """By function or class: argument and default, of those that have one; by module: its constants."""
    found = {}
    for module in MODULES:
        for name, thing in sorted(vars(module).items() if module is not ide_ref else lazily()):
            if (
                name.startswith("_")
                or not callable(thing)
                or not thing.__module__.startswith("ide_ref")
                or thing.__module__ == "ide_ref._checks"
            ):
                continue
            try:
                parameters = inspect.signature(thing).parameters.values()
            except ValueError:
                continue
            told = {p.name: repr(p.default) for p in parameters if p.default is not p.empty and plain(p.default)}
            if told:
                found[f"{thing.__module__}.{thing.__qualname__}"] = told
        for name, value in sorted(vars(module).items()):
            if name.isupper() and name[0] != "_" and all(type(part) in (int, float) for part in values_of(value)):
                found.setdefault(module.__name__, {})[name] = repr(value)
    return dict(sorted(found.items()))


def values_of(value):
    return value.values() if isinstance(value, dict) else [value]


def lazily():
    return [(name, getattr(ide_ref, name)) for name in ide_ref.__all__]


def plain(value):
    return value is None or isinstance(value, (bool, int, float, str, tuple))


def test_defaults_are_those_of_the_table():
    assert defaults() == json.loads(TABLE.read_text())


if __name__ == "__main__":
    TABLE.write_text(json.dumps(defaults(), indent=1) + "\n")
