"""(IF-C) and (LIF-C): closed forms, the discrete rollout as its step shrinks, charge balance, Theorem 1."""

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
from graphs import synapses_between
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from theorems import dense_network, ends_of, note_tightness, system_of

from ide_ref import IF, LIF, Connection, Dense, Network, Population, Readout, build, continuous, freeze, simulate
from ide_ref.certificates import defects
from ide_ref.continuous import PiecewiseInput, Pulses, kernel_total, simulate_continuous
from ide_ref.synapses import AvgPool2d, Conv2d, ConvTranspose2d
from ide_ref.theory import conditions, continuous_envelope, continuous_error_bound

INF = np.inf


def dense(W, F, *, v_th=1.0, b=None):
    """One population with given matrices, frozen."""
    W, F = np.atleast_2d(np.asarray(W, float)), np.atleast_2d(np.asarray(F, float))
    n, n_in = F.shape
    network = dense_network(IF(v_th), [n], [(-1, 0), (0, 0)], n_in=n_in)
    params = {"c0.weight": F, "c1.weight": W, "c0.bias": np.zeros(n) if b is None else np.asarray(b, float)}
    params = network.init(np.random.default_rng(0)) | params
    return freeze(network, params)


@given(drive=st.floats(0.1, 5), v_th=st.sampled_from([0.5, 1.0, 2.0]))
def test_one_if_neuron_fires_every_v_th_over_drive(drive, v_th):
    run = simulate_continuous(dense(0, 1, v_th=v_th), np.array([drive]), np.array([20.5]))
    expected = v_th / drive * np.arange(1, run.spike_times.size + 1)
    np.testing.assert_allclose(run.spike_times, expected, rtol=1e-12)
    assert expected[-1] + v_th / drive > 20.5 - 1e-9
    np.testing.assert_allclose(run.u, [[drive * 20.5 - v_th * run.spike_times.size]], atol=1e-10)
    np.testing.assert_allclose(run.a, [[run.spike_times.size / 20.5]])


@settings(max_examples=100)
@given(
    log_tau=st.floats(-2, 300),
    log_excess=st.floats(-2, 3),
    v_th=st.sampled_from([0.5, 2.0]),
    fast=st.booleans(),
)
@example(log_tau=0.3, log_excess=0.0, v_th=2.0, fast=False)
@example(log_tau=300.0, log_excess=-2.0, v_th=0.5, fast=False)
def test_one_lif_neuron_has_the_logarithmic_interval(log_tau, log_excess, v_th, fast):
    """τ log(τd/(τd − V_th)) from rest at 0, reset by subtraction from V_th to 0, to rounding for any time constant.

    ``fast`` neurons fire about once a unit of time, others in proportion to τ.
    """
    tau = 10.0**log_tau
    drive = v_th / tau * (1 + 10**log_excess) + (v_th if fast else 0.0)
    interval = -tau * np.log1p(-v_th / tau / drive)
    run = simulate_continuous(dense(0, 1, v_th=v_th), np.array([drive]), interval * np.array([20.5, 40.5]), tau=tau)
    assert run.spike_times.size == 40
    # How much the interval moves with the drive: near threshold more than in proportion.
    condition = 1 + 1 / (drive * tau / v_th - 1)
    np.testing.assert_allclose(run.spike_times, interval * np.arange(1, 41), rtol=1e-14 * condition)
    rest = -tau * np.expm1(-0.5 * interval / tau) * drive
    np.testing.assert_allclose(run.u, [[rest], [rest]], rtol=1e-12 * condition)
    assert run.balance_error <= 1e-13 * condition * v_th * 40


def test_reset_is_by_subtraction():
    """An input pulse of 1.7 leaves 0.7, a pulse of 2.5 fires twice at one instant, 1.0 is the threshold itself."""
    events = Pulses(np.array([1.0, 2.0]), np.array([0, 1]))
    run = simulate_continuous(dense(0, [[1.7, 2.5]]), events, np.array([1.0, 1.5, 2.0]))
    np.testing.assert_array_equal(run.spike_times, [1, 2, 2, 2])
    np.testing.assert_allclose(run.u[:, 0], [0.7, 0.7, 0.2])
    run = simulate_continuous(dense(0, 1), Pulses(np.array([0.0, 3.0]), np.array([0, 0])), np.array([3.0]))
    np.testing.assert_array_equal(run.spike_times, [0, 3])


def test_two_neurons_with_delay_by_hand():
    """V = 1, drives 1 and 0.25, W = [[0, -0.5], [0.5, 0]], Δ = 0.25.

    Neuron 0 fires at 1, neuron 1 has 0.25 and gets 0.5 at 1.25: 0.8125; it reaches 1 at 2. At 2 neuron 0 fires too
    (lowest index first). At 2.25 both hear of it: neuron 0 stands at 0.25 − 0.5, neuron 1 at 0.0625 + 0.5. Neuron 0
    next fires at 3.5; neuron 1 hears that at 3.75, where it stands at 0.9375, and fires at once with 0.4375 left.
    """
    frozen = dense([[0, -0.5], [0.5, 0]], [[1], [0.25]])
    times = np.array([1.25, 2.0, 2.25, 3.75, 4.0])
    run = simulate_continuous(frozen, np.ones(1), times, delay=0.25)
    np.testing.assert_array_equal(run.spike_times, [1, 2, 2, 3.5, 3.75])
    np.testing.assert_array_equal(run.spike_neurons, [0, 0, 1, 0, 1])
    u = [[0.25, 0.8125], [0, 0], [-0.25, 0.5625], [0.25, 0.4375], [0.0, 0.5]]
    np.testing.assert_array_equal(run.u, u)
    assert run.n_deliveries == 2 * 5
    # A time may be asked for more than once.
    np.testing.assert_array_equal(
        simulate_continuous(frozen, np.ones(1), times.repeat(2), delay=0.25).u, np.repeat(u, 2, 0)
    )
    np.testing.assert_allclose(run.a_delayed[2], [2 / 2, 1 / 2])
    # Spikes on their way arrive after a stop: at 2 those of 2 are not yet heard.
    part = simulate_continuous(frozen, np.ones(1), times, delay=0.25, max_events=3)
    assert (part.t_end, part.n_deliveries, part.times.tolist()) == (3.5, 2 * 3, [1.25, 2.0, 2.25])
    part = simulate_continuous(frozen, np.ones(1), np.array([2.0]), delay=0.25)
    assert part.n_deliveries == 2
    np.testing.assert_array_equal(simulate_continuous(frozen, np.ones(1), times[1:], delay=0.25, resume=part).u, u[1:])


def test_without_delay_the_order_at_an_instant_is_the_documented_one():
    """Both reach threshold at 1; neuron 0 goes first and holds neuron 1 back before it fires."""
    run = simulate_continuous(dense([[0, 0], [-0.5, 0]], [[1], [1]]), np.ones(1), np.array([1.4]))
    np.testing.assert_array_equal(run.spike_neurons, [0])
    np.testing.assert_allclose(run.u, [[0.4, 0.9]])
    run = simulate_continuous(dense([[0, -0.5], [0, 0]], [[1], [1]]), np.ones(1), np.array([1.4]))
    np.testing.assert_array_equal(run.spike_neurons, [0, 1])
    # What arrives at an instant is added before any neuron is asked: the inhibition at 1 comes in time.
    run = simulate_continuous(dense(0, [[1.5, -1.0]]), Pulses(np.array([1.0, 1.0]), np.array([0, 1])), np.array([2.0]))
    assert run.spike_times.size == 0


@given(
    gaps=st.lists(st.floats(-3, 4), min_size=1, max_size=12),
    tau=st.sampled_from([0.5, 1.0, 7.0]),
    level=st.sampled_from([-2.0, 0.0, 0.4, 0.9]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_leaky_neuron_forgets_what_is_long_ago(gaps, tau, level, seed):
    """Pulses 10^-3 to 10^4 time constants apart, on a constant drive that alone comes to ``level`` < V_th = 1."""
    weights = np.random.default_rng(seed).uniform(-1.5, 2.5, 3)
    neurons = np.arange(len(gaps)) % 3
    times = tau * np.cumsum(10.0 ** np.array(gaps))
    assume(np.all(np.diff(times) > 0))
    u, before, expected, spikes = 0.0, 0.0, [], []
    for t, neuron in zip(times, neurons, strict=True):
        u = level + (u - level) * np.exp(-(t - before) / tau) + weights[neuron]
        assume(abs(u - round(u)) > 1e-6)
        n = max(0, int(np.floor(u)))
        u, before = u - n, t
        expected.append(u)
        spikes += n * [t]
    run = simulate_continuous(dense(0, [weights], b=[level / tau]), Pulses(times, neurons), times, tau=tau)
    np.testing.assert_array_equal(run.spike_times, spikes)
    np.testing.assert_allclose(run.u[:, 0], expected, rtol=0, atol=1e-9)


@given(tau=st.sampled_from([0.7, 3.0, 5.3]), seed=st.integers(0, 2**32 - 1))
def test_no_spike_comes_before_the_pulse_that_led_to_it(tau, seed):
    """A pulse leaves 60 neurons a few roundings below threshold, which they reach in less than time can tell.

    The drive alone would come to 5 V_th; a pulse at 0 holds the neurons down until the other, where they are at 0.
    """
    for second in np.random.default_rng(seed).uniform(4 * tau, 12 * tau, 20):
        down = 5 - 5 * np.exp(second / tau)
        weights = np.stack([np.full(60, down), 1 - np.arange(60) * 2.0**-53], axis=1)
        frozen = dense(np.zeros((60, 60)), weights, b=np.full(60, 5 / tau))
        pulses = Pulses(np.array([0.0, second]), np.array([0, 1]))
        run = simulate_continuous(frozen, pulses, np.array([1.01 * second]), tau=tau)
        assert run.spike_times.size >= 60
        assert run.spike_times.min() >= second
        assert np.all(np.diff(run.spike_times) >= 0)


@pytest.mark.parametrize("delay", [0.0, 0.5])
@pytest.mark.parametrize("tau", [INF, 2.0])
def test_of_neurons_at_threshold_the_lowest_fires_all_it_has_first(delay, tau):
    events = Pulses(np.array([1.0]), np.array([0]))
    run = simulate_continuous(dense(np.zeros((3, 3)), [[2.5], [0.5], [3.5]]), events, np.array([1.0]), tau=tau)
    np.testing.assert_array_equal(run.spike_neurons, [0, 0, 2, 2, 2])
    # Without delay a spike may lift a lower index, which is then the next.
    W = np.zeros((3, 3))
    W[1, 2] = 0.75
    run = simulate_continuous(dense(W, [[2.5], [0.5], [3.5]]), events, np.array([1.0]), tau=tau, delay=delay)
    expected = [0, 0, 2, 1, 2, 1, 2] if delay == 0 else [0, 0, 2, 2, 2]
    np.testing.assert_array_equal(run.spike_neurons, expected)


def test_a_new_drive_takes_effect_at_its_edge():
    pieces = PiecewiseInput(np.array([0.0, 1.0, 3.0]), np.array([[0.5], [0.0], [0.25]]))
    run = simulate_continuous(dense(0, 1), pieces, np.array([1.0, 3.0, 4.0, 6.0]))
    np.testing.assert_array_equal(run.spike_times, [5.0])
    np.testing.assert_allclose(run.u[:, 0], [0.5, 0.5, 0.75, 0.25])
    tau = 2.0
    run = simulate_continuous(dense(0, 1), pieces, np.array([1.0, 3.0, 4.0]), tau=tau)
    first = 1.0 * (1 - np.exp(-0.5))
    second = first * np.exp(-1.0)
    np.testing.assert_allclose(run.u[:, 0], [first, second, 0.5 + (second - 0.5) * np.exp(-0.5)])


def discrete_spikes(system, tau, h, t_end):
    """Times and neurons of the rollout with step h: λ = exp(−h/τ), the drive of one step ∫ κ."""
    leak = 1.0 if np.isinf(tau) else np.exp(-h / tau)
    neuron = IF(system.v_th) if leak == 1 else LIF(leak, system.v_th)
    network = replace(system.frozen.network, neuron=neuron)
    step = kernel_total(np.asarray(h), tau)
    params = {
        name: value * step if name in scaled_by_time(network) else value for name, value in system.frozen.params.items()
    }
    rates = simulate(freeze(network, params), system.x[:1], round(t_end / h), record=True)
    steps, neurons = np.nonzero(rates.recording.s[0])
    return (steps + 1) * h, neurons


def scaled_by_time(network):
    inputs = [c.name for c in network.connections if c.source == "input"]
    return {f"{name}.weight" for name in inputs} | {f"{c.name}.bias" for c in network.connections if c.bias}


@pytest.mark.parametrize("tau", [INF, 3.0])
@pytest.mark.parametrize("ends", [[(-1, 0), (0, 0)], [(-1, 0), (0, 1), (1, 0)]])
def test_the_discrete_rollout_tends_to_it_in_proportion_to_its_step(tau, ends):
    t_end, errors = 12.0, []
    steps = 2.0 ** -np.arange(6, 13)
    sizes = [6] * (max(t for _, t in ends) + 1)
    for seed in range(6):
        system = system_of(IF(1.0), sizes, ends, np.random.default_rng(seed), 0.4, n_batch=1, drive=2.0)
        run = simulate_continuous(system.frozen, system.x[0], np.array([t_end]), tau=tau)
        order = np.lexsort((run.spike_times, run.spike_neurons))
        exact, owner = run.spike_times[order], run.spike_neurons[order]
        assert exact.size > 10
        row = []
        for h in steps:
            times, neurons = discrete_spikes(system, tau, h, t_end)
            by = np.lexsort((times, neurons))
            gaps = []
            for i in range(system.b.size):
                ours, theirs = exact[owner == i], times[by][neurons[by] == i]
                gaps += list(np.abs(ours[: len(theirs)] - theirs[: len(ours)]))
            row.append(np.median(gaps))
        errors.append(row)
    slope = np.polyfit(np.log(steps), np.log(np.median(errors, axis=0)), 1)[0]
    assert 0.85 < slope < 1.15, slope


@st.composite
def problems(draw, shape=None):
    """A network with γ < 1, an input of one of the three kinds, its x*, and τ and Δ."""
    shape = shape or draw(st.sampled_from(["single", "layers", "graph"]))
    n = 1 if shape == "single" else draw(st.integers(2, 3))
    sizes = draw(st.lists(st.integers(1, 6), min_size=n, max_size=n))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    v_th, gamma = draw(st.sampled_from([1.0, 2.0])), draw(st.floats(0.05, 0.95))
    system = system_of(IF(v_th), sizes, ends_of(draw, shape, n), rng, gamma, n_batch=1)
    t_end = draw(st.floats(5, 60))
    kind = draw(st.sampled_from(["constant", "periodic", "decaying", "spikes"]))
    x_star = np.abs(system.x_star[0]) if kind == "spikes" else system.x_star[0]
    if kind == "constant":
        x = x_star
    elif kind == "spikes":
        times = [rng.uniform(0, t_end, rng.poisson(rate * t_end)) for rate in x_star]
        neurons = np.repeat(np.arange(3), [len(part) for part in times])
        order = np.argsort(np.concatenate(times))
        x = Pulses(np.concatenate(times)[order], neurons[order])
    else:
        edges = np.arange(0, t_end, 0.5)
        swing = np.sin(np.arange(edges.size)) if kind == "periodic" else 0.9 ** np.arange(edges.size)
        x = PiecewiseInput(edges, x_star + swing[:, None] * rng.normal(size=3))
    times = np.sort(rng.uniform(0.05, t_end, 200))
    times.flags.writeable = False
    delay = draw(st.sampled_from([0.0, 0.0625, 0.7]))
    return system, x, x_star, times, draw(st.sampled_from([INF, 1.0, 10.0])), delay


def averages_written_out(run, n, at):
    out = np.zeros((len(at), n))
    for m, t in enumerate(at):
        if t > 0:
            age = t - run.spike_times
            kernel = (age >= 0) * (1.0 if np.isinf(run.tau) else np.exp(-np.maximum(age, 0) / run.tau))
            total = t if np.isinf(run.tau) else run.tau * (1 - np.exp(-t / run.tau))
            out[m] = np.bincount(run.spike_neurons, weights=kernel / total, minlength=n)
    return out


@given(problem=problems())
def test_balance_and_split_in_continuous_time(problem):
    system, x, _, times, tau, delay = problem
    run = simulate_continuous(system.frozen, x, times, tau=tau, delay=delay)
    assert run.completed
    B = system.forward + system.feedback
    few = [0, 57, 199]
    a = averages_written_out(run, len(B), times[few])
    delayed = averages_written_out(run, len(B), times[few] - delay)
    np.testing.assert_allclose(run.a[few], a, atol=1e-11)
    np.testing.assert_allclose(run.a_delayed[few], delayed, atol=1e-11)
    np.testing.assert_allclose(run.recurrent[few], delayed @ B.T, atol=1e-11)
    assert run.balance_error <= 1e-11 * max(1, np.abs(run.u).max())
    K = run.kernel_total[:, None]
    np.testing.assert_allclose(
        system.v_th * run.a, np.maximum(run.p, 0) - run.u_plus / K, atol=1e-11 * max(1, np.abs(run.p).max())
    )
    # After everything of an instant has happened no neuron stands at threshold; firing ones are not below 0.
    assert run.u.max() < system.v_th


@settings(max_examples=10)
@given(problem=problems(), log_tau=st.floats(12, 300))
def test_a_very_slow_leak_is_none(problem, log_tau):
    system, x, _, times, _, delay = problem
    run = simulate_continuous(system.frozen, x, times, tau=10.0**log_tau, delay=delay)
    without = simulate_continuous(system.frozen, x, times, delay=delay)
    np.testing.assert_array_equal(run.spike_neurons, without.spike_neurons)
    # What leaks until the end is of the order of a part in 10^10 at most.
    for name in ("spike_times", "u", "a"):
        np.testing.assert_allclose(
            getattr(run, name), getattr(without, name), rtol=1e-11, atol=max(1e-12, 1e5 * 10.0**-log_tau), err_msg=name
        )


def test_charge_balances_after_a_million_spikes():
    rng = np.random.default_rng(0)
    W = rng.normal(size=(40, 40))
    F = rng.normal(1.0, 2.0, (40, 1))
    frozen = dense(0.8 * W / np.linalg.norm(W, 2), F)
    for tau, delay, t_end in ((INF, 0.1, 18000.0), (INF, 0.0, 3000.0), (4.0, 0.1, 3000.0)):
        run = simulate_continuous(frozen, np.ones(1), np.array([t_end]), tau=tau, delay=delay, max_events=2_000_000)
        assert run.completed
        assert run.spike_times.size > 1_000_000 * t_end / 18000
        if np.isinf(tau):
            arrived = np.bincount(run.spike_neurons[run.spike_times <= t_end - delay], minlength=40)
            charge = frozen.maps[1].weight @ arrived + F[:, 0] * t_end - run.n_spikes
            np.testing.assert_allclose(run.u[0], charge, atol=1e-10, rtol=1e-13)
        assert run.balance_error <= 1e-10


@given(problem=problems())
def test_err_in_continuous_time(problem):
    """(ERR) at 200 drawn times; for one population in its own letters."""
    system, x, x_star, times, tau, delay = problem
    run = simulate_continuous(system.frozen, x, times, tau=tau, delay=delay)
    bound = continuous_error_bound(system.frozen, x_star, run)
    a_star = replace(system, x_star=x_star[None]).equilibrium("relu")
    if conditions(system.frozen).block < 0.9:
        np.testing.assert_allclose(bound.equilibrium.a, a_star, atol=1e-10)
    a_star = bound.equilibrium.a
    assert np.all(bound.error <= bound.one_step + 1e-10)
    note_tightness("continuous", system.frozen, bound.tightness, leaky=np.isfinite(tau))
    error = np.linalg.norm(run.a - a_star, axis=1)
    np.testing.assert_allclose(bound.total_error, error, atol=1e-11)
    assert np.all(error <= bound.stacked + 1e-10)
    if len(system.places) == 1:
        W, v_th = system.feedback, system.v_th
        gamma = np.linalg.norm(W, 2) / v_th
        K, before = kernel_total(times, tau), kernel_total(np.maximum(times - delay, 0), tau)
        x_term = run.drive - (system.F @ x_star + system.b)
        u_plus = K[:, None] * (np.maximum(run.p, 0) - v_th * run.a)
        r = (
            (1 - before / K) * np.linalg.norm(run.a_delayed @ W.T, axis=1)
            + np.linalg.norm(x_term, axis=1)
            + np.linalg.norm(u_plus, axis=1) / K
        ) / v_th
        right = gamma * np.linalg.norm(run.a_delayed - a_star, axis=1) + r if delay > 0 else r / (1 - gamma)
        np.testing.assert_allclose(bound.one_step[:, 0], right, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(bound.stacked, right, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("delay", [0.0, 0.25])
def test_if_error_is_of_order_one_over_t_and_lif_keeps_a_floor(delay):
    slopes, late = [], []
    times = np.arange(0.5, 2000, 0.5)
    for seed in range(6):
        system = system_of(IF(), [10], [(-1, 0), (0, 0)], np.random.default_rng(seed), 0.6, n_batch=1)
        run = simulate_continuous(system.frozen, system.x[0], times, delay=delay)
        bound = continuous_error_bound(system.frozen, system.x[0], run)
        R = ((bound.drift + bound.input + bound.potential) * times[:, None]).max(axis=0)
        largest = np.maximum(bound.error.max(axis=0), np.linalg.norm(bound.equilibrium.a))
        envelope = continuous_envelope(bound.conditions, system.v_th, R, largest, times, delay)
        assert np.all(bound.error <= envelope + 1e-12)
        np.testing.assert_array_equal(bound.floor(INF), bound.certificate)
        pick = np.unique(np.geomspace(40, times.size - 1, 50).astype(int))
        slopes.append(np.polyfit(np.log(times[pick]), np.log(bound.total_error[pick]), 1)[0])
        run = simulate_continuous(system.frozen, system.x[0], times, delay=delay, tau=4.0)
        leaky = continuous_error_bound(system.frozen, system.x[0], run)
        assert leaky.total_error[2000:].max() <= leaky.floor(4.0)[0] * (1 + 1e-9)
        late.append(leaky.total_error[2000:].mean() / leaky.floor(4.0)[0])
    assert -1.1 < np.median(slopes) < -0.9, np.median(slopes)
    assert np.median(late) > 0.01


@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("ends", [[(-1, 0), (0, 0)], [(-1, 0), (0, 1), (1, 0)]])
def test_the_envelope_holds_for_the_slowest_disturbance_it_allows(gamma, ends):
    """E(t) = N E(t − Δ) + R/(t V_th) itself: drawn runs are gentler, and would not miss the factor 2."""
    sizes = [5] * (max(t for _, t in ends) + 1)
    system = system_of(IF(), sizes, ends, np.random.default_rng(0), gamma, n_batch=1)
    found, delay = conditions(system.frozen), 0.25
    assert found.block < 1
    N, R = found.forward + found.feedback, np.ones(len(sizes))
    times = delay * np.arange(1, 6001)
    series, e = [], np.zeros(len(sizes))
    for t in times:
        e = N @ e + R / (t * system.v_th)
        series.append(e)
    envelope = continuous_envelope(found, system.v_th, R, np.max(series, axis=0), times, delay)
    assert np.all(np.array(series) <= envelope * (1 + 1e-12))
    for i in (0, 1, 2, 7, 500):
        start = np.linalg.matrix_power(N, (i + 1) // 2) @ np.max(series, axis=0)
        falling = np.linalg.solve(np.eye(len(N)) - N, 2 * R / (times[i] * system.v_th))
        np.testing.assert_allclose(envelope[i], start + falling, rtol=1e-9)


PICTURES = [(2, 4, 4), (2, 2, 2), (3, 2, 2), (3, 4, 4), (1, 3, 2)]


@pytest.mark.kernels
@pytest.mark.parametrize("kind", [Dense, Conv2d, ConvTranspose2d, AvgPool2d])
@given(data=st.data(), seed=st.integers(0, 2**32 - 1), tau=st.sampled_from([INF, 2.0]), spikes=st.booleans())
def test_every_synapse_carries_its_own_charge(kind, data, seed, tau, spikes):
    """Forward, from the input and back, with nothing of a batch normalisation at its neutral value: what the event
    loop adds spike by spike is what the linear map makes of the average rates."""
    pairs = [pair for pair in itertools.product(PICTURES, PICTURES) if of_kind(kind, *pair)]
    sender, receiver = data.draw(st.sampled_from(pairs))
    forth = data.draw(st.sampled_from(of_kind(kind, sender, receiver)))
    back = data.draw(st.sampled_from(of_kind(kind, receiver, sender) or [None]))
    connections = [
        Connection("input", "input", "a1", Dense(sender, sender), bias=True),
        Connection("forth", "a1", "a2", forth, bias=True, batch_norm=True),
        Connection("skip", "input", "a2", forth, batch_norm=True),
    ]
    if back is not None:
        connections.append(Connection("back", "a2", "a1", back, batch_norm=True))
    network = Network(
        sender,
        (Population("a1", sender), Population("a2", receiver)),
        tuple(connections),
        Readout("a2", Dense(receiver, (2,))),
        IF(1.0),
    )
    rng = np.random.default_rng(seed)
    params = network.init(rng)
    for name, value in params.items():
        if name.endswith(("bn_weight", "running_var")):
            params[name] = rng.uniform(0.1, 1.0, value.shape)
        elif name.endswith(("bias", "running_mean")):
            params[name] = rng.normal(0.3, 0.3, value.shape)
    x = rng.normal(0.5, 1, sender)
    if spikes:
        x = Pulses(np.sort(rng.uniform(0, 5, 40)), rng.integers(0, x.size, 40))
    times = np.array([0.7, 2.0, 5.0])
    run = simulate_continuous(freeze(network, params), x, times, tau=tau, delay=0.125, max_events=2000)
    assert run.n_inputs == (np.count_nonzero(x.times <= run.t_end) if spikes else 0)
    assert run.balance_error <= 1e-10 * max(1, np.abs(run.u).max(initial=0))


def of_kind(kind, sender, receiver):
    return [synapse for synapse in synapses_between(sender, receiver, False) if isinstance(synapse, kind)]


def test_an_event_storm_stops_and_names_the_neuron():
    frozen = dense([[0, 1.3], [1.3, 0]], [[1.0], [0.1]])
    run = simulate_continuous(frozen, np.ones(1), np.array([0.5, 1000.0]), delay=0.5, max_events=3000)
    assert not run.completed
    assert run.spike_times.size == 3000
    assert run.t_end < 1000
    assert run.times.tolist() == [0.5]
    assert run.a.shape == run.u.shape == run.p.shape == (1, 2)
    assert run.u_end.shape == (2,)
    assert run.u_end.max() >= 1.0
    assert "of 1000 after max_events = 3000 spikes: neuron " in run.message
    assert "of 'a1' fired" in run.message
    assert "without the clip nothing bounds the rates" in run.message
    at_once = simulate_continuous(frozen, np.ones(1), np.array([2.0]), max_events=100)
    assert at_once.t_end == 1.0
    # Before any of the times that were asked for.
    assert (at_once.times.size, at_once.balance_error) == (0, 0.0)
    assert "nothing bounds the rates" in at_once.message
    # It goes on where it stopped.
    times = np.array([0.5, 7.0, 1000.0])
    first = simulate_continuous(frozen, np.ones(1), times, delay=0.5, max_events=100)
    assert first.message.endswith("to go on, pass this run as resume")
    second = simulate_continuous(frozen, np.ones(1), times, delay=0.5, max_events=200, resume=first)
    assert "after max_events = 200 further spikes" in second.message
    assert (first.times.size, second.times.size) == (1, 2)
    assert_same_bits(second, simulate_continuous(frozen, np.ones(1), times, delay=0.5, max_events=300))


@pytest.mark.parametrize("delay", [0.0, 0.5])
@pytest.mark.parametrize(("gamma", "tau"), [(1 - 1e-8, INF), (1 - 1e-8, 3.0), (1.5, INF)])
def test_bounds_are_sums_of_their_parts(delay, gamma, tau):
    """So close to 1 what a* is known to is no rounding of them; beyond 1 nothing is known, and nothing added."""
    system = system_of(IF(), [3, 2], [(-1, 0), (0, 1), (1, 0)], np.random.default_rng(1), gamma)
    run = simulate_continuous(system.frozen, system.x[0], np.array([1.0, 4.0, 9.0]), tau=tau, delay=delay)
    bound = continuous_error_bound(system.frozen, system.x[0], run)
    N = bound.conditions.forward + bound.conditions.feedback
    known = np.where(np.isfinite(bound.certificate), bound.certificate, 0)
    assert np.all(known > 1e-11) if gamma < 1 else np.all(np.isinf(bound.certificate))
    r = (bound.drift + bound.input + bound.potential + bound.rounding) / system.v_th
    expected = bound.error_delayed @ N.T + r if delay else r @ bound.conditions.stacked_series.T
    np.testing.assert_allclose(bound.one_step - known, expected, rtol=1e-11)
    whole = sum(np.linalg.norm(part, axis=1) for part in (bound.drift, bound.input, bound.potential, bound.rounding))
    assert np.all(bound.error <= bound.one_step)
    stacked, contraction = whole / system.v_th, bound.conditions.stacked.value
    if delay:
        stacked = contraction * np.linalg.norm(bound.error_delayed, axis=1) + stacked
    else:
        stacked = stacked / (1 - contraction) if contraction < 1 else np.inf
    np.testing.assert_allclose(bound.stacked - np.linalg.norm(known), stacked, rtol=1e-11)
    np.testing.assert_allclose(bound.total_error, np.linalg.norm(run.a - bound.equilibrium.a, axis=1), rtol=1e-12)
    # Rounding is relative to all that rates and drives are sums of, without signs, and so many terms.
    K, B = run.kernel_total[:, None], np.abs(system.forward + system.feedback)
    off = np.abs(system.v_th * run.a - (np.maximum(run.p, 0) - run.u_plus / K))
    sizes = np.abs(system.x[0]) @ np.abs(system.F).T + np.abs(system.b) + (run.a + run.a_delayed) @ B.T
    sizes += np.abs(run.drive) + system.v_th * run.a + np.abs(run.u_plus) / K
    lost = off + 4 * 2.0**-53 * (run.spike_times.size + 5 + 3 + 32) * sizes
    lost = np.stack([np.linalg.norm(lost[:, place], axis=1) for place in system.places], axis=1)
    defect = defects(system.frozen, system.x[:1], bound.equilibrium.a, "relu")
    np.testing.assert_allclose(bound.rounding, system.v_th * defect + lost, rtol=1e-9)
    sups = [np.abs(run.u_plus[:, place]).max() for place in system.places]
    np.testing.assert_allclose(bound.u_plus_sup - sups, np.max(K * lost, axis=0), rtol=0.05)
    floor = bound.floor(tau)
    if gamma < 1:
        rest = bound.conditions.stacked_series @ (sups * np.sqrt([3, 2]) / tau / system.v_th)
        np.testing.assert_allclose(floor - known, rest, rtol=1e-9, atol=1e-20)
    else:
        assert np.all(np.isinf(floor))
        for R in (np.zeros(2), np.ones(2)):
            assert np.all(np.isinf(continuous_envelope(bound.conditions, system.v_th, R, R, [1.0, 9.0], delay)))


@pytest.mark.parametrize("x_star", [np.array([0.1, np.nan, 0.2]), np.array([0.1, 0.2])])
def test_an_x_star_that_is_none_is_refused(x_star):
    system = system_of(IF(), [3], [(-1, 0), (0, 0)], np.random.default_rng(1), 0.5)
    run = simulate_continuous(system.frozen, system.x[0], np.array([1.0]))
    with pytest.raises(ValueError, match=r"x_star has shape .*; expected \(3,\), finite, one sample"):
        continuous_error_bound(system.frozen, x_star, run)


def test_of_a_run_cut_before_its_first_time_there_is_nothing_to_bound():
    frozen = dense(0.5, 1)
    bound = continuous_error_bound(frozen, np.ones(1), simulate_continuous(frozen, np.ones(1), [500.0], max_events=1))
    assert (bound.error.shape, bound.stacked.shape) == ((0, 1), (0,))
    assert bound.u_plus_sup < 1e-300


def test_a_time_of_one_delay_has_seen_nothing_delayed():
    run = simulate_continuous(dense(0.5, 1), np.ones(1), np.array([0.25, 0.5, 2.5]), delay=0.5)
    np.testing.assert_array_equal(run.a_delayed[:, 0] > 0, [False, False, True])


@pytest.mark.parametrize(("late", "why"), [(6, "rates are steady"), (7, "had 7 spikes and the first 4: feedback")])
def test_what_is_called_a_storm(late, why):
    """More than half as many spikes again in the second half of the time; its middle belongs to the first."""
    net = dense_network(IF(), [1, 3], [(-1, 0), (0, 1), (1, 0)])
    times = np.array([1.0, 2.0, 3.0, 5.0, *np.linspace(6, 10, late)])
    told = continuous._storm(net, times, np.array([0] * (3 + late) + [2]), 10.0, 20.0, 0)
    assert why in told
    assert "neuron 1 of 'a2' fired 1 of the last 1;" in told


def test_a_budget_too_small_is_told_from_a_storm():
    run = simulate_continuous(dense(0, 1), np.ones(1), np.array([500.0]), max_events=100)
    assert "stopped at t = 101 of 500 after max_events = 100 spikes: neuron 0 of 'a1'" in run.message
    assert "fired 10 of the last 10" in run.message
    assert "rates are steady, so this duration needs a larger max_events" in run.message
    # A large one takes no memory of its own.
    for budget in (100, 10**15):
        enough = simulate_continuous(dense(0, 1), np.ones(1), np.array([100.5]), max_events=budget)
        assert (enough.completed, enough.message, enough.t_end, enough.spike_times.size) == (True, "", 100.5, 100)


def assert_same_bits(run, whole):
    names = [f.name for f in fields(run) if f.name not in ("network", "state", "message")]
    for name in names:
        np.testing.assert_array_equal(getattr(run, name), getattr(whole, name), err_msg=name)
    assert run.state.digest == whole.state.digest
    for ours, theirs in zip(run.state.arrays, whole.state.arrays, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.kernels
@given(problem=problems(), budget=st.integers(1, 60), n_stops=st.integers(1, 4))
def test_a_run_in_parts_is_the_run_in_one(problem, budget, n_stops):
    """Ended by its budget (with spikes on their way where there is a delay), or asked for more times afterwards."""
    system, x, _, times, tau, delay = problem
    frozen = system.frozen
    whole = simulate_continuous(frozen, x, times, tau=tau, delay=delay)
    run = simulate_continuous(frozen, x, times, tau=tau, delay=delay, max_events=budget)
    n_spikes = [run.spike_times.size]
    while not run.completed:
        larger = budget if len(n_spikes) < 20 else 1_000_000
        run = simulate_continuous(frozen, x, times, tau=tau, delay=delay, max_events=larger, resume=run)
        n_spikes.append(run.spike_times.size)
    assert all(n == budget for n in np.diff([0, *n_spikes])[: min(len(n_spikes), 20) - 1])
    assert_same_bits(run, whole)
    stops = np.linspace(0, times.size, n_stops + 1)[1:].astype(int)
    run = None
    for begin, end in itertools.pairwise([0, *stops]):
        run = simulate_continuous(frozen, x, times[begin:end] if run else times[:end], tau=tau, delay=delay, resume=run)
    np.testing.assert_array_equal(run.spike_times, whole.spike_times)
    np.testing.assert_array_equal(run.spike_neurons, whole.spike_neurons)
    np.testing.assert_array_equal(run.u_end, whole.u_end)


@given(problem=problems())
def test_a_sample_at_a_spike_s_own_time_sees_it(problem):
    """Rates are counted from the noted times, potentials by the event loop: rounding may not part them."""
    system, x, _, times, tau, delay = problem
    first = simulate_continuous(system.frozen, x, times, tau=tau, delay=delay)
    at = first.spike_times[(first.spike_times > 0) & (first.spike_times + delay < times[-1])]
    run = simulate_continuous(system.frozen, x, np.unique([*at, *(at + delay), times[-1]]), tau=tau, delay=delay)
    assert run.balance_error <= 1e-10 * max(1, np.abs(run.u).max())
    assert run.u.max() < system.v_th * (1 + 1e-12)


@given(problem=problems(), room=st.integers(1, 40))
def test_the_room_for_spikes_may_run_out_at_any_time(problem, room):
    """The kernel goes on in larger arrays; samples at the very instant included."""
    system, x, _, times, tau, delay = problem
    once = simulate_continuous(system.frozen, x, times, tau=tau, delay=delay)
    at_spikes = np.unique(np.concatenate([times[:40], once.spike_times[(once.spike_times > 0)][:40]]))
    for asked in (times, at_spikes):
        once = simulate_continuous(system.frozen, x, asked, tau=tau, delay=delay)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(continuous, "_ROOM", room)
            grown = simulate_continuous(system.frozen, x, asked, tau=tau, delay=delay)
        for name in ("spike_times", "spike_neurons", "times", "u", "u_end", "a"):
            np.testing.assert_array_equal(getattr(grown, name), getattr(once, name))
        assert (grown.completed, grown.t_end, grown.n_deliveries) == (True, once.t_end, once.n_deliveries)


@given(problem=problems(), budget=st.integers(1, 60))
def test_what_a_budget_leaves_is_the_beginning_of_the_whole_run(problem, budget):
    """Of times that are spikes' own too, at one of which the budget ends: there is no potential there yet."""
    system, x, _, times, tau, delay = problem
    first = simulate_continuous(system.frozen, x, times, tau=tau, delay=delay)
    asked = np.unique(np.concatenate([times, first.spike_times[(first.spike_times > 0)]]))
    whole = simulate_continuous(system.frozen, x, asked, tau=tau, delay=delay)
    run = simulate_continuous(system.frozen, x, asked, tau=tau, delay=delay, max_events=budget)
    n = run.times.size
    assert run.completed == (whole.spike_times.size <= budget)
    assert n == (asked.size if run.completed else np.count_nonzero(asked < run.t_end))
    for name in ("times", "a", "a_delayed", "drive", "recurrent", "u"):
        np.testing.assert_array_equal(getattr(run, name), getattr(whole, name)[:n], err_msg=name)
    np.testing.assert_array_equal(run.spike_times, whole.spike_times[: run.spike_times.size])
    assert_same_bits(simulate_continuous(system.frozen, x, asked, tau=tau, delay=delay, resume=run), whole)


def test_what_does_not_go_on_from_a_run_is_refused():
    frozen = dense(0.3, 1)
    x = PiecewiseInput(np.array([0.0, 3.0, 9.0]), np.array([[1.0], [0.5], [2.0]]))
    run = simulate_continuous(frozen, x, np.array([2.0, 5.0]), delay=0.1)
    ahead = np.array([5.0, 12.0])

    def again(frozen=frozen, x=x, times=ahead, tau=INF, delay=0.1):
        return simulate_continuous(frozen, x, times, tau=tau, delay=delay, resume=run)

    other_end = PiecewiseInput(x.times, np.array([[1.0], [0.5], [0.7]]))
    assert again(x=other_end).spike_times.size < again().spike_times.size
    for change, message in (
        ({"tau": 2.0}, "tau is 2.0; expected that of the run to resume, inf"),
        ({"delay": 0.2}, "delay is 0.2; expected that of the run to resume, 0.1"),
        ({"frozen": dense(0.3, 1, v_th=2.0)}, "frozen has another network than the run to resume"),
        ({"frozen": dense(0.4, 1)}, "frozen or x is not that of the run to resume; .* up to t = 5"),
        (
            {"x": PiecewiseInput(x.times, np.array([[1.0], [0.6], [2.0]]))},
            "frozen or x is not that of the run to resume",
        ),
        (
            {"x": PiecewiseInput(np.array([0.0, 2.5, 9.0]), x.values)},
            "frozen or x is not that of the run to resume",
        ),
        ({"x": np.ones(1)}, "frozen or x is not that of the run to resume"),
        ({"times": np.array([3.0, 12.0])}, r"times has some before t = 5 that the run to resume was not asked for"),
    ):
        with pytest.raises(ValueError, match=message):
            again(**change)
    spikes = Pulses(np.array([1.0, 2.0, 8.0]), np.zeros(3, int))
    run = simulate_continuous(frozen, spikes, np.array([5.0]), delay=0.1)
    assert again(x=Pulses(np.array([1.0, 2.0, 6.0, 8.0]), np.zeros(4, int))).n_inputs == 4
    with pytest.raises(ValueError, match="frozen or x is not that of the run to resume"):
        again(x=Pulses(np.array([1.0, 2.5, 8.0]), np.zeros(3, int)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"times": np.array([2.0, 1.0])}, "expected at least one, positive, finite and ascending"),
        ({"tau": 5e-324}, "tau is 5e-324; expected one that is not so short that v_th/tau is beyond float64"),
        ({"x": np.ones(2)}, r"x has shape \(2,\); expected \(1,\), one sample"),
        ({"x": PiecewiseInput(np.array([1.0]), np.ones((1, 1)))}, "x has times that do not begin at 0"),
        ({"x": PiecewiseInput(np.array([0.0, 0.0]), np.ones((2, 1)))}, "do not ascend"),
        ({"x": PiecewiseInput(np.array([0.0]), np.ones((2, 1)))}, r"x has values of shape \(2, 1\); expected \(1, 1\)"),
        ({"x": Pulses(np.array([1.0]), np.array([0, 0]))}, r"x has \(1,\) times and \(2,\) neurons"),
        ({"x": Pulses(np.array([-1.0]), np.array([0]))}, "x has times that are negative, infinite or not in order"),
        ({"x": Pulses(np.array([2.0, 1.0]), np.array([0, 0]))}, "not in order"),
        ({"x": Pulses(np.array([1.0]), np.array([1]))}, "expected whole numbers from 0 to 0"),
        ({"x": Pulses(np.array([1.0]), np.array([0.5]))}, "x has neurons outside the input"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"x": np.ones(1), "times": np.array([1.0]), **change}
    with pytest.raises(ValueError, match=message):
        simulate_continuous(dense(0, 1), **arguments)


def test_a_frozen_batch_or_float32_is_refused():
    network = build("4 (F4)", input_shape=(3,), n_classes=2, neuron=IF())
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 3))
    with pytest.raises(ValueError, match="frozen is float64 and made for a training batch"):
        simulate_continuous(freeze(network, network.init(rng), x, training=True), x[0], np.array([1.0]))
    with pytest.raises(ValueError, match="frozen is float32 and made for evaluation; expected float64"):
        simulate_continuous(freeze(network, network.init(rng, dtype=np.float32)), x[0], np.array([1.0]))


def test_the_supremum_of_u_plus_is_over_all_requested_times():
    """A neuron held below threshold by a small drive: its potential is largest at the end."""
    frozen = dense(0, 1)
    run = simulate_continuous(frozen, np.full(1, 0.05), np.array([1.0, 4.0, 15.0]))
    bound = continuous_error_bound(frozen, np.full(1, 0.05), run)
    assert np.abs(run.u_plus[-1]) > np.abs(run.u_plus[:-1]).max()
    assert bound.u_plus_sup >= np.abs(run.u_plus).max()
