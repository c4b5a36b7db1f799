"""Small work runs on one thread, large work on all, and who asked for a number finds it again."""

import subprocess
import sys

import numba
import numpy as np
import pytest

from ide_ref import _threads, backward, build, find_equilibrium, freeze, simulate
from ide_ref._kernels import rollout
from ide_ref.neurons import IF

pytestmark = pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one thread is all there is")


@pytest.fixture
def seen(monkeypatch):
    """Threads that the rollout met."""
    numba.set_num_threads(2)
    found = []
    kernel = rollout.rollout

    def watched(*args):
        found.append(numba.get_num_threads())
        return kernel(*args)

    monkeypatch.setattr(rollout, "rollout", watched)
    return found


@pytest.mark.parametrize(("limit", "expected"), [(0, 2), (5 * (12 + 16), 2), (5 * (12 + 16) + 1, 1)])
def test_threads_are_those_that_the_batchs_sweep_is_worth(seen, monkeypatch, limit, expected):
    monkeypatch.setattr(_threads, "SMALL", limit)
    network = build("4 (F4)", input_shape=(3,), n_classes=2, neuron=IF(1.0))
    assert network.n_multiplications == 12 + 16
    frozen = freeze(network, network.init(np.random.default_rng(0)))
    simulate(frozen, np.ones((5, 3)), 4)
    assert seen == [expected]
    assert numba.get_num_threads() == 2


def test_the_number_of_threads_is_put_back_after_a_refusal():
    numba.set_num_threads(2)
    network = build("4 (F4)", input_shape=(3,), n_classes=2, neuron=IF(1.0))
    params = network.init(np.random.default_rng(0))
    frozen = freeze(network, params)
    rates = simulate(frozen, np.ones((1, 3)), 2)
    for call in (
        lambda: simulate(frozen, np.ones((5, 7)), 4),
        lambda: simulate(3, np.ones((5, 7)), 4),
        lambda: freeze(network, {}),
        lambda: find_equilibrium(frozen, np.ones((5, 3)), method="magic"),
        lambda: backward(frozen, rates, np.ones((9, 9))),
    ):
        with pytest.raises(ValueError, match=r"expected|expects|missing|shape"):
            call()
        assert numba.get_num_threads() == 2


@pytest.mark.parametrize(
    ("given", "load", "expected"),
    [
        ({}, 3.0, ["passive", None]),
        ({}, 0.1, [None, "20000"]),
        ({"OMP_WAIT_POLICY": "active"}, 3.0, ["active", None]),
        ({"GOMP_SPINCOUNT": "7"}, 3.0, [None, "7"]),
    ],
)
def test_threads_spin_only_where_nobody_else_works_or_they_are_told_to(given, load, expected):
    code = (
        f"import os; os.getloadavg = lambda: ({load}, 9.0, 9.0)\n"
        "import ide_ref; ide_ref.freeze; print([os.environ.get(n) for n in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True)
    assert done.stdout == f"{expected}\n"
