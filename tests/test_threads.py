"""Small work runs on one thread, large work on all, and who asked for a number finds it again."""

import os
import subprocess
import sys

import numba
import numpy as np
import pytest
import tiny

from ide_ref import _threads, backward, build, find_equilibrium, freeze, simulate
from ide_ref._kernels import rollout
from ide_ref.neurons import IF
from ide_ref.training.loop import train

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


@pytest.mark.parametrize(("limit", "expected"), [(0, 2), (1 << 24, 1)])
def test_a_training_of_small_batches_runs_on_one_thread_as_a_whole(seen, monkeypatch, tmp_path, limit, expected):
    """Its evaluation, with larger batches, too: else the code for many threads is compiled for that alone."""
    monkeypatch.setattr(_threads, "SMALL", limit)
    monkeypatch.setattr(_threads, "_work", lambda *args, **kwargs: np.inf)
    train(tiny.preset(epochs=1), tiny.data(), out=tmp_path / "run")
    assert set(seen) == {expected}
    assert numba.get_num_threads() == 2


@pytest.mark.parametrize(
    ("told", "busy"),
    [
        ("0.10 0.2 0.3 1/99 7", False),
        ("9.10 0.2 0.3 1/99 7", False),
        ("0.1 0.2 0.3 3/99 7", True),
        ("", True),
        ("x", True),
    ],
)
def test_the_machine_is_busy_where_others_run_now(monkeypatch, tmp_path, told, busy):
    """Not where they did: a load average remembers one's own last run."""
    monkeypatch.setattr(_threads, "RUNNING", tmp_path / "loadavg")
    assert _threads.others_run()
    (tmp_path / "loadavg").write_text(told)
    assert _threads.others_run() == busy


@pytest.mark.parametrize("busy", [False, True])
def test_threads_spin_only_where_nobody_else_works(monkeypatch, busy):
    monkeypatch.setattr(_threads, "others_run", lambda: busy)
    assert _threads._waiting() == ({"OMP_WAIT_POLICY": "passive"} if busy else {"GOMP_SPINCOUNT": "20000"})


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}])
def test_a_policy_that_was_set_stays(given):
    code = (
        "import os, ide_ref; ide_ref.freeze\n"
        "print({n: os.environ[n] for n in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT') if n in os.environ})"
    )
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True)
    found = eval(done.stdout)
    assert found == given if given else len(found) == 1


FORK = """
import multiprocessing, os, sys
import numba, numpy as np
from ide_ref import IF, _threads, build, freeze, simulate
_threads.SMALL = 0
network = build("8 (F8)", input_shape=(4,), n_classes=2, neuron=IF(1.0))
frozen = freeze(network, network.init(np.random.default_rng(0)))
def rates(seed):
    x = np.random.default_rng(seed).normal(size=(64, 4))
    return simulate(frozen, x, 5).a.tobytes(), numba.get_num_threads()
here = [rates(seed) for seed in range(3)]
with multiprocessing.get_context("fork").Pool(2) as pool:
    there = pool.map_async(rates, range(3)).get(60)
assert [n for _, n in here] == [2] * 3 and [n for _, n in there] == [1] * 3
assert [a for a, _ in here] == [a for a, _ in there]
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no such thing here")
def test_a_pool_that_forks_after_kernels_works_with_a_thread_a_process():
    """GNU OpenMP would end each of its processes, and the pool would wait for ever."""
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
