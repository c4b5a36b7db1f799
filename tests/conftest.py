"""Hypothesis profiles: ``quick`` by default, repeatable; ``thorough``, ``fuzz`` to search; ``few`` for plain Python."""

import os
import statistics
import sys
import tracemalloc

# Workers of pytest-xdist share the processors: one that waits gives its own away, and BLAS, which spins, has one thread
# in each. Told before either library is loaded; the tests of threads tell processes of their own.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numba
import pytest
from hypothesis import HealthCheck, Phase, settings

# Drawing a network compiles kernels the first time, and a machine may be busy: how long it took says nothing.
unhurried = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=25, derandomize=True, **unhurried)
settings.register_profile("thorough", max_examples=500, **unhurried)
# As plain Python a failing example takes minutes to make smaller, for nobody who reads it.
no_shrinking = [Phase.explicit, Phase.generate]
settings.register_profile("few", max_examples=3, derandomize=True, phases=no_shrinking, **unhurried)
settings.register_profile("fuzz", max_examples=1000, **unhurried)
settings.load_profile("quick")


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Strategies draw the number of threads, and a test that fails leaves it where it was; none traces on."""
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)
    assert not tracemalloc.is_tracing(), "all that comes after would be counted, and take twice as long"


@pytest.fixture
def no_data(monkeypatch, tmp_path):
    """No data set anywhere but where the test puts it."""
    from ide_ref.datasets import registry

    monkeypatch.delenv("IDE_REF_DATA", raising=False)
    monkeypatch.setattr(registry, "_SYSTEM_ROOT", tmp_path / "no-system-data")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pytest_terminal_summary(terminalreporter):
    """How tight (ERR) was on the drawn networks."""
    theorems = sys.modules.get("theorems")
    if theorems is None or not theorems.TIGHTNESS:
        return
    terminalreporter.section("(ERR): error over bound")
    terminalreporter.line(
        f"{'time':<12}{'network':<9}{'neuron':<8}{'runs':>6}{'quartile':>10}{'median':>8}{'quartile':>10}"
    )
    for (time, shape, neuron), ratios in sorted(theorems.TIGHTNESS.items()):
        if len(ratios) > 1:
            lower, median, upper = statistics.quantiles(ratios, n=4)
            terminalreporter.line(
                f"{time:<12}{shape:<9}{neuron:<8}{len(ratios):>6}{lower:>10.3f}{median:>8.3f}{upper:>10.3f}"
            )
