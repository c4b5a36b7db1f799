"""Long kernels end when a signal comes, however much there is left to do, and compute the same bits beside a waiter."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
import tiny

from ide_ref import _threads, build, freeze, simulate, simulate_continuous
from ide_ref._kernels import _jit, continuous, rollout
from ide_ref.neurons import IF
from ide_ref.training.loop import train

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers that send signals")


class Came(Exception):
    """What the handler raises."""


@pytest.fixture
def alarm():
    """A function that lets a signal come after so many seconds, whose handler raises `Came`."""

    def handle(signum, frame):
        raise Came

    before = signal.signal(signal.SIGALRM, handle)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def kernels(monkeypatch):
    """Arguments of the two kernels, as they are called, each in a thread of its own."""
    monkeypatch.setattr(_threads, "LONG", 0)
    seen = {}
    for module, name in ((rollout, "rollout"), (continuous, "run")):

        def noted(*args, kernel=getattr(module, name), name=name):
            seen[name] = args
            return kernel(*args)

        monkeypatch.setattr(module, name, noted)
    return seen


def one_that_always_fires(n_batch):
    network = build("1 (F1)", input_shape=(1,), n_classes=2, neuron=IF(1.0))
    params = network.init(np.random.default_rng(0))
    # A drive of V_th at every step, and nothing from the neuron itself.
    params.update({name: np.zeros_like(params[name]) for name in ("input.weight", "input.bias", "feedback.alpha")})
    params["input.bn_bias"] = np.ones(1)
    return freeze(network, params), np.zeros((n_batch, 1))


@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_rollout_is_left_where_the_signal_comes(kernels, alarm, monkeypatch, n_threads):
    monkeypatch.setattr(_threads, "SMALL", 0)
    frozen, x = one_that_always_fires(2)
    assert np.array_equal(simulate(frozen, x, 7).n_spikes, [[7], [7]])
    numba.set_num_threads(min(n_threads, numba.config.NUMBA_NUM_THREADS))
    n_steps = 3_000_000
    alarm(0.02)
    with pytest.raises(Came):
        simulate(frozen, x, n_steps)
    n_spikes = kernels["rollout"][-8]
    assert n_spikes.shape == (2, 1)
    assert n_spikes.max() < n_steps
    assert not _threads.waiting
    assert np.array_equal(simulate(frozen, x, 7).n_spikes, [[7], [7]])


def test_a_run_in_continuous_time_is_left_where_the_signal_comes(kernels, alarm):
    frozen, x = one_that_always_fires(1)
    n_events = 20_000_000
    options = {"tau": np.inf, "max_events": n_events}
    assert simulate_continuous(frozen, x[0], [7.5], **options).completed
    alarm(0.02)
    with pytest.raises(Came):
        simulate_continuous(frozen, x[0], [n_events + 0.5], **options)
    assert kernels["run"][-2][continuous.SPIKES] < n_events


def test_nothing_is_done_after_the_flag(kernels, monkeypatch):
    frozen, x = one_that_always_fires(2)
    monkeypatch.setattr(_threads, "stoppable", lambda kernel, work: kernel(np.ones(1, np.uint8)))
    assert np.array_equal(simulate(frozen, x, 7).n_spikes, [[0], [0]])
    assert simulate_continuous(frozen, x[0], [7.5], tau=np.inf).spike_times.size == 0


def test_a_kernel_beside_the_waiter_computes_the_same_bits(kernels, monkeypatch):
    network = build("40 (F40)", input_shape=(9,), n_classes=2, neuron=IF(1.0))
    frozen = freeze(network, network.init(np.random.default_rng(1)))
    x = np.random.default_rng(2).uniform(0, 2, (5, 9))
    there = simulate(frozen, x, 20, record=True)
    monkeypatch.setattr(_threads, "LONG", np.inf)
    here = simulate(frozen, x, 20, record=True)
    assert np.array_equal(there.a, here.a)
    assert np.array_equal(there.recording.u, here.recording.u)


@_jit.njit
def counted(stop, out, most):
    """Steps until the flag is seen; for all the compiler knows, ``out`` is the flag, which it so reads anew."""
    n = 0
    while n < most and not stop[0]:
        out[n & 1] = 1
        n += 1
    return n


def test_other_threads_of_python_go_on_while_a_kernel_runs():
    stop, out, most = np.zeros(1, np.uint8), np.zeros(2, np.uint8), 1 << 33
    assert counted(stop, out.copy(), 3) == 3
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(counted, stop, out, most)
        while not (out.any() or running.done()):
            time.sleep(0)
        stop[0] = 1
        assert running.result() < most


def wait_for(stop, ended):
    """What never ends by itself, but for a test that failed."""
    until = time.monotonic() + 30
    while not stop[0] and time.monotonic() < until:
        time.sleep(1e-3)
    ended.append(bool(stop[0]))


def test_what_a_handler_raises_stops_the_kernel_and_is_raised(alarm):
    ended = []
    alarm(0.02)
    with pytest.raises(Came):
        _threads.stoppable(lambda stop: wait_for(stop, ended), np.inf)
    assert ended == [True]


def test_a_handler_may_ask_whether_a_kernel_is_waited_for():
    asked, ended = [], []

    def handle(signum, frame):
        asked.append(_threads.waiting)
        if len(asked) == 2:
            raise Came

    before = signal.signal(signal.SIGALRM, handle)
    try:
        # A handler that does not raise leaves the kernel at work.
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        with pytest.raises(Came):
            _threads.stoppable(lambda stop: wait_for(stop, ended), np.inf)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert asked[:2] == [True, True]
    assert not _threads.waiting


@pytest.mark.parametrize("work", [_threads.LONG - 1, _threads.LONG])
def test_threads_and_errors_pass_through(work):
    numba.set_num_threads(1)
    found = []
    _threads.stoppable(lambda stop: found.append((numba.get_num_threads(), threading.current_thread())), work)
    ((n_threads, thread),) = found
    assert n_threads == 1
    assert (thread is threading.current_thread()) == (work < _threads.LONG)
    with pytest.raises(ZeroDivisionError):
        _threads.stoppable(lambda stop: 1 / 0, work)


def test_a_thread_of_the_users_own_calls_the_kernel_itself():
    found = []
    call = threading.Thread(
        target=lambda: _threads.stoppable(lambda stop: found.append(threading.current_thread()), np.inf)
    )
    call.start()
    call.join()
    assert found == [call]


@pytest.mark.parametrize("at", [0, 3, 4])
def test_a_signal_within_a_long_batch_gives_it_up_and_keeps_the_state(monkeypatch, tmp_path, at):
    """Calls 0 to 3 are the batches, 4 is the first of the test set."""
    preset, data = tiny.preset(epochs=1), tiny.data()
    whole = train(preset, data, out=tmp_path / "whole").checkpoint
    calls = []

    def struck(*args, kernel=rollout.rollout):
        calls.append(args)
        if len(calls) == at + 1:
            os.kill(os.getpid(), signal.SIGTERM)
            wait_for(args[-1], [])
            return
        kernel(*args)

    monkeypatch.setattr(_threads, "LONG", 0)
    with monkeypatch.context() as patched:
        patched.setattr(rollout, "rollout", struck)
        stopped = train(preset, data, out=tmp_path / "parts")
    assert stopped.stopped_by == signal.SIGTERM
    assert (stopped.checkpoint.epoch, stopped.checkpoint.step) == (0, at)
    resumed = train(preset, data, out=tmp_path / "parts", resume=True).checkpoint
    assert tiny.same(resumed.params, whole.params)
