"""A pytest plugin for a port's own suite.

In the port's ``conftest.py``::

    pytest_plugins = ["ide_ref.verify.pytest_plugin"]

and in a test::

    def test_port(conformance_case, check_conformance):
        check_conformance(my_port(conformance_case))

The test runs once a case: of the pack given with ``--conformance-pack=DIR``, or of one made on the spot.
``--conformance-include=GLOB`` and ``--conformance-exclude=GLOB`` choose by name, tag or group. What is known to fail
stands in the ini option ``conformance_expected_failures``, or in a file given with ``--conformance-expected-failures``:
a glob a line, and after it why. An expected failure that passes is a failure.

Source: ``docs/conformance.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ide_ref.verify import conformance
from ide_ref.verify.conformance import Case


def pytest_addoption(parser: pytest.Parser) -> None:
    """Pytest's hook: the options ``--conformance-...`` and the ini option of expected failures."""
    group = parser.getgroup("ide_ref")
    group.addoption("--conformance-pack", metavar="DIR", help="conformance pack (default: made on the spot)")
    for what, told in (("include", "only"), ("exclude", "no")):
        group.addoption(
            f"--conformance-{what}",
            action="append",
            default=[],
            metavar="GLOB",
            help=f"{told} cases of such names, tags or groups (may be given again)",
        )
    group.addoption(
        "--conformance-expected-failures", metavar="FILE", help="cases known to fail: a glob a line, after it why"
    )
    parser.addini("conformance_expected_failures", "cases known to fail: a glob a line, after it why", type="linelist")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Pytest's hook: a test for each case."""
    if "conformance_case" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption
    try:
        known = conformance.taken(option("--conformance-pack"), None)
        found = conformance.selected(known, option("--conformance-include"), option("--conformance-exclude"))
        reasons = _expected_failures(metafunc.config, known)
    except (OSError, ValueError) as error:
        raise pytest.UsageError(str(error)) from None
    marks = {name: [pytest.mark.xfail(strict=True, reason=reason)] for name, reason in reasons.items()}
    marks |= {case.name: [pytest.mark.skip(reason=case.lacking)] for case in found if case.lacking}
    rows = [pytest.param(case, id=case.name, marks=marks.get(case.name, [])) for case in found]
    metafunc.parametrize("conformance_case", rows)


def _expected_failures(config: pytest.Config, known: Sequence[Case]) -> dict[str, str]:
    """Why each case that is known to fail does, by name; ValueError for a pattern that matches none."""
    lines = list(config.getini("conformance_expected_failures"))
    file = config.getoption("--conformance-expected-failures")
    if file is not None:
        lines += Path(file).read_text(encoding="utf-8").splitlines()
    reasons = {}
    for line in (line.strip() for line in lines):
        if line and not line.startswith("#"):
            pattern, _, reason = line.partition(" ")
            for case in conformance.selected(known, [pattern]):
                reasons[case.name] = reason.strip() or f"expected by {pattern}"
    return reasons


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
