"""(STEP), (RATE) and (BALANCE) on random graphs, against the equations."""

from dataclasses import replace

import numba
import numpy as np
import pytest
from graphs import MAX_THREADS, cases
from hypothesis import assume, given
from hypothesis import strategies as st

from ide_ref import IF, LIF, build, equations, freeze, simulate, simulation
from ide_ref._kernels import layout
from ide_ref.network import Connection, Network, Population, Readout, of_population
from ide_ref.synapses import Dense

pytestmark = pytest.mark.kernels


@given(case=st.one_of(cases(exact=True), cases(exact=True, dtype=np.float32)), data=st.data())
def test_spikes_do_not_depend_on_what_is_predicted(case, data):
    """Whenever neurons are told to go on as before, they fire the same; and they send what differs, and the changes."""
    quarters = st.tuples(st.sampled_from([-0.25, 0.0, 0.25, 0.5]), st.sampled_from([0.5, 0.75, 1.0]))
    asked = st.one_of(st.just((np.nan, np.nan)), quarters)
    bounds = np.array(data.draw(st.lists(asked, min_size=case.n_steps, max_size=case.n_steps)))
    spikes, potentials, _ = case.rollout()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "prediction_bounds", lambda n_steps: bounds)
        rates = simulate(case.frozen, case.x, case.n_steps, record=True)
    np.testing.assert_array_equal(rates.recording.s, spikes)
    np.testing.assert_array_equal(rates.recording.u, potentials)

    weights = case.network.neuron.leak ** np.arange(case.n_steps - 1, -1, -1.0)
    predicted = np.zeros(spikes[:, 0].shape, bool)
    n_events = np.zeros(predicted.shape, np.int64)
    for t, (few, many) in enumerate(bounds):
        if not np.isnan(few):
            rate, most = np.tensordot(spikes[:, :t], weights[:t], (1, 0)), weights[:t].sum()
            now = (predicted & (rate >= few * most)) | (rate > many * most)
            n_events += now != predicted
            predicted = now
        n_events += spikes[:, t] != predicted
    for i, place in enumerate(case.places()):
        np.testing.assert_array_equal(rates.n_events[:, i], n_events[:, place].sum(axis=1))


@given(case=cases())
def test_rates_agree_with_the_loops(case):
    """(BALANCE) too: it says the same as (STEP) at every step, of which the potentials are what is left over."""
    spikes, potentials, margin = case.rollout()
    assume(margin > 1e-9)
    rates = simulate(case.frozen, case.x, case.n_steps)
    np.testing.assert_allclose(rates.a, equations.average(spikes, case.spec.net.leak), rtol=0, atol=1e-12)
    np.testing.assert_allclose(rates.u, potentials[:, -1], rtol=1e-12, atol=1e-11)
    np.testing.assert_allclose(rates.margin.min(), margin, atol=1e-10)
    assert rates.recording is None
    recorded = simulate(case.frozen, case.x, case.n_steps, record=True)
    np.testing.assert_array_equal(recorded.recording.s, spikes)
    np.testing.assert_allclose(recorded.recording.u, potentials, rtol=1e-12, atol=1e-11)


def wide_case(n_batch=70, n_steps=9):
    rng = np.random.default_rng(3)
    network = build("37 (F37)", input_shape=(53,), n_classes=3, neuron=LIF())
    params = network.init(rng)
    params["input.bias"] = rng.normal(1, 1, 37)
    return freeze(network, params), rng.normal(size=(n_batch, 53)), n_steps


@given(cut=st.integers(0, 70), threads=st.integers(1, MAX_THREADS))
def test_no_bit_depends_on_batch_split_or_threads(cut, threads):
    frozen, x, n_steps = wide_case()
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(MAX_THREADS)
        whole = simulate(frozen, x, n_steps)
        numba.set_num_threads(threads)
        parts = [simulate(frozen, part, n_steps) for part in (x[:cut], x[cut:]) if len(part)]
    finally:
        numba.set_num_threads(before)
    for name in ("a", "u", "n_spikes", "n_events", "margin"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, name))


def test_the_plan_is_made_once_for_all_rollouts_of_a_frozen_network(monkeypatch):
    frozen, x, n_steps = wide_case(3)
    train = np.repeat(x[:, None], n_steps, axis=1)
    made, original = [], layout.plan
    monkeypatch.setattr(layout, "plan", lambda links, *given: made.append(links) or original(links, *given))
    first = [simulate(frozen, inputs, n_steps).a for inputs in (x, train)]
    for inputs, a in ((train, first[1]), (x, first[0])):
        np.testing.assert_array_equal(simulate(frozen, inputs, n_steps).a, a)
    # One for static input, which arrives in the drive, and one for spikes.
    assert [[link.source for link in links] for links in made] == [[0], [-1, 0]]


@pytest.mark.parametrize("width", [4, 400])
def test_dropout_masks_lie_in_memory_once(width):
    """Of what is large: the plan reads the masks where `freeze` drew them; copies elsewhere change no spike."""
    ends = [("input", "a", 3), ("b", "a", width), ("a", "b", width), ("a", "a", width)]
    connections = [
        Connection(f"c{i}", source, target, Dense((n,), (width,)), dropout=np.float64(0.25))
        for i, (source, target, n) in enumerate(ends)
    ]
    populations = tuple(Population(name, (width,)) for name in "ab")
    network = Network((3,), populations, tuple(connections), Readout("b", Dense((width,), (2,))), IF())
    rng = np.random.default_rng(0)
    params = network.init(rng, dtype=np.float32)
    x = rng.normal(size=(200, 3)).astype(np.float32)
    frozen = freeze(network, params, x, training=True, rng=np.random.default_rng(1))
    trains = np.repeat(x[:, None], 5, axis=1)
    masks = [m.keep for m in frozen.maps]
    assert all(np.shares_memory(mask, frozen.plan_with_input.keep) for mask in masks) == (width > 4)
    apart = replace(frozen, maps=tuple(replace(m, keep=m.keep.copy()) for m in frozen.maps))
    assert not any(np.shares_memory(mask, apart.plan_with_input.keep) for mask in masks)
    for inputs in (x, trains):
        np.testing.assert_array_equal(simulate(frozen, inputs, 5).a, simulate(apart, inputs, 5).a)


def test_a_frozen_batch_wants_its_own_size_and_a_train_its_steps():
    network = build("4 (F4)", input_shape=(3,), n_classes=2, neuron=IF())
    x = np.random.default_rng(0).normal(size=(5, 3))
    frozen = freeze(network, network.init(np.random.default_rng(0)), x, training=True)
    with pytest.raises(ValueError, match="x has 4 samples; the network was frozen on a batch of 5"):
        simulate(frozen, x[:4], 3)
    with pytest.raises(ValueError, match="5 steps but n_steps is 4"):
        simulate(wide_case()[0], np.zeros((3, 5, 53)), 4)


def test_without_potentials_the_rates_are_the_same():
    frozen, x, n_steps = wide_case(5)
    whole = simulate(frozen, x, n_steps, record=True)
    lean = whole.without_potentials()
    assert lean.u.shape == (5, 0)
    assert lean.u.base is None
    assert lean.recording is None
    for name in ("a", "x_mean", "n_spikes", "n_events", "margin", "n_steps"):
        assert getattr(lean, name) is getattr(whole, name)


@pytest.mark.parametrize("density", ["few", "many"])
def test_layers_wider_than_a_tile_follow_the_step(density):
    """More channels than the kernels' tiles have rows and columns; (STEP) from each recorded step to the next."""
    rng = np.random.default_rng(3)
    network = build("130C3-140C3s-70C3 (F130C3u)", input_shape=(2, 6, 6), n_classes=2, neuron=IF(0.5))
    params = network.init(rng, dtype=np.float64)
    x = rng.normal(size=(5, 2, 6, 6)) * (0.15 if density == "few" else 2.0)
    frozen = freeze(network, params)
    rates = simulate(frozen, x, 6, record=True)
    assert all(0 < share < 1 for share in rates.mean_spikes.values())
    drive = frozen.drive(x) + frozen.constants(len(x), with_input=False)
    u, s = np.zeros_like(rates.a), np.zeros_like(rates.a)
    for t in range(6):
        after = rates.recording.s[:, t].astype(float)
        arriving = drive + u
        for c, (source, target) in zip(frozen.maps, network.edges, strict=True):
            if source >= 0:
                sent = (after if source < target else s)[:, network.slice_of(source)]
                arriving[:, network.slice_of(target)] += c.synapse.apply(c.folded_taps, sent)
        u, s = arriving - 0.5 * after, after
        np.testing.assert_allclose(rates.recording.u[:, t], u, rtol=0, atol=1e-12)
        u = rates.recording.u[:, t].astype(float)


@given(case=cases(exact=True))
def test_a_recording_tells_each_population_in_its_own_shape(case):
    """What is flat and channels last is never handed out as a picture, whatever shapes coincide."""
    run = simulate(case.frozen, case.x, case.n_steps, record=True).recording
    spikes, potentials, _ = case.rollout()
    weights = case.network.neuron.leak ** np.arange(case.n_steps - 1, -1, -1.0)
    for p, place in zip(case.network.populations, case.places(), strict=True):
        shape = (len(case.x), case.n_steps, *p.shape)
        for found, flat in ((run.spikes(p.name), spikes), (run.potentials(p.name), potentials)):
            assert found.shape == shape
            last = found if len(p.shape) == 1 else np.moveaxis(found, 2, -1)
            np.testing.assert_array_equal(last.reshape(*shape[:2], -1), flat[:, :, place])
        a = run.rates(p.name)
        for t in range(case.n_steps):
            seen = weights[-1 - t :]
            expected = np.tensordot(run.spikes(p.name)[:, : t + 1], seen, (1, 0)) / seen.sum()
            np.testing.assert_allclose(a[:, t], expected, rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match="population 'nobody' is unknown"):
        run.spikes("nobody")
    with pytest.raises(ValueError, match="population is 'input'; expected one of"):
        run.rates("input")


def test_a_state_of_another_network_has_no_populations_of_this_one():
    network = build("2C3 (F2C3)", input_shape=(1, 2, 2), n_classes=2, neuron=IF())
    with pytest.raises(ValueError, match=r"state has shape \(3, 9\); expected \(..., 8\)"):
        of_population(network, np.zeros((3, 9)), "a1")


@pytest.mark.parametrize(
    ("n_steps", "times"), [(1, 0), (8, 0), (9, 1), (10, 1), (11, 2), (14, 3), (30, 4), (51, 5), (52, 6), (100, 7)]
)
def test_predictions_change_where_that_pays(n_steps, times):
    """Of k spikes in t steps the next is one with (k + 1)/(t + 2): to go over saves more events than it costs."""
    bounds = simulation.prediction_bounds(n_steps)
    assert bounds.shape == (n_steps, 2)
    asked = [3, 5, 8, 13, 21, 34, 55][:times]
    assert np.flatnonzero(np.isfinite(bounds).any(axis=1)).tolist() == asked
    for t in asked:
        share = (bounds[t] * t + 1) / (t + 2)
        np.testing.assert_allclose((n_steps - t) * (share - (1 - share)), [-1, 1], rtol=1e-12)
    assert not bounds.flags.writeable
