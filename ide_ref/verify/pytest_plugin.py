"""A pytest plugin for a port's own suite.

In the port's ``conftest.py``::

    pytest_plugins = ["ide_ref.verify.pytest_plugin"]

and in a test::

    def test_port(conformance_case, check_conformance):
        check_conformance(my_port(conformance_case))

The test runs once a case: of the pack given with ``--conformance-pack=DIR``, or of one made on the spot.

Source: ``docs/port-to-a-gpu.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from ide_ref.verify import conformance
from ide_ref.verify.conformance import Case


def pytest_addoption(parser: pytest.Parser) -> None:
    """Pytest's hook: ``--conformance-pack``."""
    group = parser.getgroup("ide_ref")
    group.addoption("--conformance-pack", metavar="DIR", help="conformance pack (default: made on the spot)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Pytest's hook: a test for each case."""
    if "conformance_case" not in metafunc.fixturenames:
        return
    directory = metafunc.config.getoption("--conformance-pack")
    try:
        found = tuple(conformance.cases()) if directory is None else conformance.load(directory)
    except conformance.PackError as error:
        raise pytest.UsageError(str(error)) from None
    metafunc.parametrize("conformance_case", found, ids=[case.name for case in found])


@pytest.fixture
def check_conformance(conformance_case: Case) -> Callable[..., None]:
    """A function that takes the port's outputs for ``conformance_case`` and fails with the first divergence.

    Its ``stages`` are those of :func:`ide_ref.verify.conformance.check`.
    """

    def check(outputs: Mapping[str, Any], *, stages: Sequence[str] | None = None) -> None:
        result = conformance.check(conformance_case, outputs, stages=stages)
        if not result.passed:
            pytest.fail(str(result.divergence or f"case {result.case}: nothing to compare"), pytrace=False)

    return check
