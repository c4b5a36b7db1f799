"""Populations with V_th and λ of their own: networks that are others with scaled rows, refusals, what is written."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from theorems import System, dense_network, systems

import ide_ref
from ide_ref import (
    IF,
    LIF,
    Network,
    Population,
    backward,
    conditions,
    cross_entropy,
    error_bound,
    find_equilibrium,
    freeze,
    read_out,
    simulate,
)
from ide_ref.authors import Profile, edited
from ide_ref.continuous import simulate_continuous
from ide_ref.theory import continuous_envelope, continuous_error_bound, fixed_point_residual, lif_floor, split
from ide_ref.verify import check_gradient


def scaled(system: System, factors: list[float]) -> System:
    """The network in which V_th of each population and all that it receives are these powers of two larger.

    Spikes, rates and all that is said of rates stay what they were, to the last bit but for sums over populations.
    """
    net, params = system.frozen.network, dict(system.frozen.params)
    neurons = [replace(net.neuron, v_th=factor * net.neuron.v_th) for factor in factors]
    populations = tuple(replace(p, neuron=own) for p, own in zip(net.populations, neurons, strict=True))
    for c, (_, target) in zip(net.connections, net.edges, strict=True):
        for part in ("weight", "bias")[: 1 + c.bias]:
            params[f"{c.name}.{part}"] = factors[target] * params[f"{c.name}.{part}"]
    return replace(system, frozen=freeze(replace(net, populations=populations), params))


@st.composite
def pairs(draw):
    """A network of one neuron and the same with thresholds of each population's own, and the factors."""
    system = draw(systems())
    n = len(system.places)
    factors = draw(st.lists(st.sampled_from([0.25, 1.0, 2.0, 8.0]), min_size=n, max_size=n))
    return system, scaled(system, factors), np.array(factors)


@pytest.mark.kernels
@given(pair=pairs())
def test_thresholds_and_rows_scaled_together_change_no_rate_and_no_bound(pair):
    one, own, factors = pair
    each = np.repeat(factors, np.diff(one.frozen.network.offsets))
    runs = [simulate(of.frozen, of.x, of.n_steps, record=True) for of in (one, own)]
    np.testing.assert_array_equal(runs[1].recording.s, runs[0].recording.s)
    np.testing.assert_array_equal(runs[1].a, runs[0].a)
    np.testing.assert_array_equal(runs[1].u, each * runs[0].u)
    known, found = (conditions(of.frozen) for of in (one, own))
    close = {"rtol": 1e-10, "atol": 1e-12}
    for name in ("paper", "block", "elementwise", "forward", "feedback", "both", "series"):
        np.testing.assert_allclose(getattr(found, name), getattr(known, name), err_msg=name, **close)
    assert found.stacked.value == pytest.approx(known.stacked.value, rel=1e-12)
    assert 0 <= found.stacked.error <= 1e-10 * (1 + found.stacked.value)
    first, second = (
        error_bound(of.frozen, of.x, run, x_star=of.x_star) for of, run in zip((one, own), runs, strict=True)
    )
    np.testing.assert_allclose(second.equilibrium.a, first.equilibrium.a, **close)
    np.testing.assert_array_equal(second.equilibrium.branch, first.equilibrium.branch)
    for name in ("error", "one_step", "iterated", "certificate"):
        np.testing.assert_allclose(getattr(second, name), getattr(first, name), rtol=1e-9, atol=1e-10, err_msg=name)
    for name in ("drift", "input", "potential", "rounding", "u_plus_sup"):
        expected = factors * getattr(first, name)
        np.testing.assert_allclose(getattr(second, name), expected, rtol=1e-9, atol=1e-10, err_msg=name)
    for limit in ("transient", "floor", *(["envelope"] if one.neuron.leak == 1 else [])):
        expected = getattr(first, limit)()
        np.testing.assert_allclose(getattr(second, limit)(), expected, rtol=1e-9, atol=1e-10, err_msg=limit)
    parts = [split(of.frozen, of.x, run) for of, run in zip((one, own), runs, strict=True)]
    np.testing.assert_allclose(parts[1].u_plus, each * parts[0].u_plus, **close)
    assert max(parts[1].balance_error, parts[1].split_error) <= 1e-11 * max(1.0, np.abs(parts[1].p).max())


@pytest.mark.kernels
@given(pair=pairs(), tau=st.sampled_from([np.inf, 3.0]), delay=st.sampled_from([0.0, 0.5]))
def test_in_continuous_time_too(pair, tau, delay):
    one, own, factors = pair
    times = np.array([1.0, 7.0])
    x = one.x_star[0]
    runs = [simulate_continuous(of.frozen, x, times, tau=tau, delay=delay, max_events=5000) for of in (one, own)]
    np.testing.assert_array_equal(runs[1].spike_neurons, runs[0].spike_neurons)
    np.testing.assert_array_equal(runs[1].spike_times, runs[0].spike_times)
    each = np.repeat(factors, np.diff(one.frozen.network.offsets))
    np.testing.assert_array_equal(runs[1].u, each * runs[0].u)
    assert runs[1].balance_error <= each.max() * (runs[0].balance_error + 1e-12)
    first, second = (continuous_error_bound(of.frozen, x, run) for of, run in zip((one, own), runs, strict=True))
    close = {"rtol": 1e-9, "atol": 1e-10}
    for name in ("error", "one_step", "certificate", "stacked"):
        np.testing.assert_allclose(getattr(second, name), getattr(first, name), err_msg=name, **close)
    np.testing.assert_allclose(second.u_plus_sup, factors * first.u_plus_sup, **close)
    np.testing.assert_allclose(second.floor(5.0), first.floor(5.0), **close)
    assert np.all(np.linalg.norm(second.error, axis=1) <= second.stacked + 1e-10)
    R, largest = np.ones(len(factors)), np.ones(len(factors))
    envelopes = [
        continuous_envelope(
            conditions(of.frozen), of.frozen.network.population_thresholds, scale * R, largest, times, 0.5
        )
        for of, scale in ((one, 1.0), (own, factors))
    ]
    np.testing.assert_allclose(*envelopes, rtol=1e-9)


def mixed(neurons, ends=((-1, 0), (0, 1), (1, 0))) -> Network:
    """Two populations with these neurons."""
    net = dense_network(IF(), [4, 3], list(ends), n_in=2)
    populations = tuple(replace(p, neuron=own) for p, own in zip(net.populations, neurons, strict=True))
    return replace(net, populations=populations)


def test_the_gradient_of_mixed_neurons_is_that_of_differences():
    network = mixed([LIF(0.5, 0.7), LIF(0.9, 3.0)])
    rng = np.random.default_rng(0)
    params = network.init(rng)
    params["c2.weight"] *= 0.5
    report = check_gradient(network, params, rng.normal(1, 1, (5, 2)), rng.integers(0, 2, 5), n_coordinates=3)
    assert report.passed, report.table()


def test_what_is_proved_for_one_leak_alone_refuses_another():
    network = mixed([LIF(0.5), IF(1.5)])
    rng = np.random.default_rng(0)
    params = network.init(rng)
    params["c2.weight"] *= 0.5
    frozen, x = freeze(network, params), rng.normal(1, 1, (2, 2))
    rates = simulate(frozen, x, 9, record=True)
    different = r"leaks differ between populations \('a1' 0.5, 'a2' 1\)"
    for refuses in (error_bound, split, lambda *run: fixed_point_residual(*run, [3])):
        with pytest.raises(ValueError, match=different):
            refuses(frozen, x, rates)
    with pytest.raises(ValueError, match=different):
        lif_floor(conditions(frozen), network, np.ones((2, 2)))
    # What does not ask for one.
    found = find_equilibrium(frozen, x)
    assert found.converged
    assert np.all(np.isfinite(found.certificate))
    _, d_logits = cross_entropy(read_out(frozen, rates), np.array([0, 1]))
    assert backward(frozen, rates, d_logits).solution.converged
    assert simulate_continuous(frozen, x[0], np.array([5.0])).completed


def test_a_train_needs_one_leak_of_all_that_read_it():
    ends = (-1, 0), (-1, 1), (0, 1), (1, 0)
    train = np.random.default_rng(0).integers(0, 2, (3, 6, 2)).astype(float)
    network = mixed([LIF(0.5), IF()], ends)
    params = network.init(np.random.default_rng(0))
    for refuses in (
        network.mean_input,
        lambda x: simulate(freeze(network, params), x, 6),
        lambda x: freeze(network, params, x, training=True, rng=np.random.default_rng(0)),
        lambda x: find_equilibrium(freeze(network, params), x),
    ):
        with pytest.raises(ValueError, match=r"x is a spike train .* \('a1' 0.5, 'a2' 1\); expected one leak"):
            refuses(train)
    np.testing.assert_array_equal(network.mean_input(train[:, 0]), train[:, 0])
    # The average is by the λ of those that read it, whatever the network's or the others' is.
    for readers in (((-1, 1), (0, 1), (1, 0)), ((-1, 1), (1, 1), (1, 0))):
        own = mixed([LIF(0.5), LIF(0.9)], readers)
        np.testing.assert_array_equal(own.mean_input(train), LIF(0.9).time_average(train))
    theirs = edited(own, Profile(long_average=True)).mean_input(train)
    np.testing.assert_allclose(theirs, (1 - 0.9**12) / (1 - 0.9**7) * LIF(0.9).time_average(train), rtol=1e-12)


def test_rates_over_time_are_by_each_population_s_leak():
    network = mixed([LIF(0.5, 0.3), IF(0.2)])
    params = network.init(np.random.default_rng(0))
    rates = simulate(freeze(network, params), np.ones((2, 2)), 8, record=True)
    for name in ("a1", "a2"):
        np.testing.assert_allclose(rates.recording.rates(name)[:, -1], rates.of(name), rtol=1e-14)
    assert np.any(rates.a > 0)


def test_a_neuron_of_its_own_is_written_and_shown_only_where_there_is_one():
    network = mixed([None, LIF(0.9, 1.5)])
    saved = json.loads(json.dumps(network.to_dict()))
    assert ["neuron" in p for p in saved["populations"]] == [False, True]
    assert Network.from_dict(saved) == network
    assert network.neurons == (IF(), LIF(0.9, 1.5))
    rows = str(network).splitlines()
    assert rows[0].split("  ")[-1] == "own neuron"
    assert [row.endswith("LIF (leak 0.9, V_th 1.5)") for row in rows[1:4]] == [False, False, True]
    assert "own neuron" not in str(mixed([None, None]))
    with pytest.raises(ValueError, match="neuron of population 'b' is of type float"):
        Network((2,), (Population("b", (2,), 1.5),), (), network.readout, IF())
    assert ide_ref.Population("a", (2,)).neuron is None
