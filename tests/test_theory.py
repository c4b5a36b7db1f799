"""Theorems 2 and 3, Propositions 2 and 3: their inequalities at every step, with their hypotheses built in."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graphs import cases
from hypothesis import given
from hypothesis import strategies as st
from theorems import System, dense_network, note_tightness, system_of, systems

from ide_ref import IF, LIF, NotConverged, build, equations, find_equilibrium, freeze, simulate, theory
from ide_ref import norms as norms_
from ide_ref.authors import Profile, edited
from ide_ref.theory import condition, conditions, discrete, error_bound, split

ROUNDING = 1e-11


def averages(steps: np.ndarray, leak: float) -> np.ndarray:
    """Weighted averages of (B, T, n) over the first 1, 2, .. steps, written out."""
    out, total, weight = [], np.zeros_like(steps[:, 0], dtype=float), 0.0
    for t in range(steps.shape[1]):
        total, weight = leak * total + steps[:, t], leak * weight + 1.0
        out.append(total / weight)
    return np.stack(out, axis=1)


def weights(system: System) -> np.ndarray:
    """S_0 .. S_T."""
    return np.concatenate([[0], np.cumsum(system.neuron.leak ** np.arange(system.n_steps))])


def written_out(system: System, rates) -> tuple[np.ndarray, ...]:
    """a[t+1], a[t], p[t], u⁺[t+1] and S_t/S_{t+1}, for t = 0..T−1, from the block matrix."""
    a = averages(rates.recording.s, system.neuron.leak)
    before = np.concatenate([np.zeros_like(a[:, :1]), a[:, :-1]], axis=1)
    S = weights(system)
    ratio = (S[:-1] / S[1:])[:, None]
    x_mean = averages(system.inputs(), system.neuron.leak)
    p = a @ system.forward.T + ratio * (before @ system.feedback.T) + x_mean @ system.F.T + system.b
    u_plus = S[1:, None] * (np.clip(p, 0, system.v_th) - system.v_th * a)
    return a, before, p, u_plus, ratio, x_mean, S


def norms(system: System, state: np.ndarray) -> np.ndarray:
    return np.stack([np.linalg.norm(state[..., place], axis=-1) for place in system.places], axis=-1)


@pytest.mark.kernels
@given(case=cases())
def test_balance_and_split_for_every_synapse(case):
    rates = simulate(case.frozen, case.x, case.n_steps, record=True)
    found = split(case.frozen, case.x, rates)
    scale = max(1.0, np.abs(found.p).max(), np.abs(rates.recording.u).max())
    assert max(found.balance_error, found.split_error) <= ROUNDING * scale
    net, v_th = case.spec.net, case.spec.net.v_th
    a, before = averages(rates.recording.s, net.leak), np.zeros_like(rates.a)
    x_mean, S = averages(case.spec.x, net.leak), np.cumsum(net.leak ** np.arange(case.n_steps))
    for t in range(case.n_steps):
        ratio = S[t - 1] / S[t] if t else 0.0
        states = case.split(ratio * before), case.split(a[:, t])
        p = np.concatenate([equations.arriving(net, i, x_mean[:, t], *states) for i in range(len(net.sizes))], axis=1)
        np.testing.assert_allclose(v_th * a[:, t], p - rates.recording.u[:, t] / S[t], rtol=0, atol=ROUNDING * scale)
        np.testing.assert_allclose(found.a[:, t], a[:, t], rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.p[:, t], p, rtol=0, atol=ROUNDING * scale)
        # Times S: u⁺ itself is a difference of charges.
        u_plus = np.clip(p, 0, v_th) - v_th * a[:, t]
        np.testing.assert_allclose(found.u_plus[:, t] / S[t], u_plus, rtol=0, atol=ROUNDING * scale)
        inside = (found.p[:, t] > 0) & (found.p[:, t] < v_th)
        np.testing.assert_array_equal(found.u_plus[:, t][inside], rates.recording.u[:, t][inside])
        before = a[:, t]


@given(system=systems())
def test_err_of_layers_and_graphs(system):
    """Theorems 2 and 3, Propositions 2 and 3, population by population."""
    rates = simulate(system.frozen, system.x, system.n_steps, record=True)
    a, before, _, u_plus, ratio, x_mean, S = written_out(system, rates)
    L, U = system.norms()
    a_star = system.equilibrium()[:, None]
    E, E_before = norms(system, a - a_star), norms(system, before - a_star)
    r = (
        (1 - ratio) * norms(system, before @ system.feedback.T)
        + norms(system, (x_mean - system.x_star[:, None]) @ system.F.T)
        + norms(system, u_plus) / S[1:, None]
    ) / system.v_th
    assert np.all(E @ L.T + E_before @ U.T + r + ROUNDING >= E)
    bound = error_bound(system.frozen, system.x, rates, x_star=system.x_star)
    note_tightness("discrete", system.frozen, bound.tightness, leaky=system.neuron.leak < 1)
    np.testing.assert_allclose(bound.error, E, atol=ROUNDING)
    assert np.all(bound.error <= bound.one_step)
    assert np.all(bound.one_step <= bound.iterated + ROUNDING)
    np.testing.assert_allclose((bound.drift + bound.input + bound.potential) / system.v_th, r, atol=ROUNDING)
    # Parallel connections are bounded by the sum of their norms, so the package's matrices are not smaller.
    upper_L, upper_U = bound.conditions.forward, bound.conditions.feedback
    assert np.all(upper_L >= L - 1e-12)
    assert np.all(upper_U >= U - 1e-12)
    if len(set(system.frozen.network.edges)) == len(system.frozen.network.edges):
        np.testing.assert_allclose((upper_L, upper_U), (L, U), atol=1e-11)
    G, R = np.linalg.solve(np.eye(len(L)) - upper_L, upper_U), np.linalg.inv(np.eye(len(L)) - upper_L)
    np.testing.assert_allclose(bound.one_step, E_before @ G.T + r @ R.T, atol=ROUNDING * max(1, r.max()))


@pytest.mark.kernels
@given(case=cases(contractive=True))
def test_err_for_every_synapse(case):
    rates = simulate(case.frozen, case.x, case.n_steps, record=True)
    bound = error_bound(case.frozen, case.x, rates)
    assert bound.conditions.applies
    assert bound.violation <= 0
    last = np.linalg.norm(rates.a - bound.equilibrium.a, axis=1)
    np.testing.assert_allclose(bound.total("error")[:, -1], last, atol=1e-13)


@given(system=systems())
def test_the_sum_is_the_series(system):
    rates = simulate(system.frozen, system.x, system.n_steps, record=True)
    bound = error_bound(system.frozen, system.x, rates, x_star=system.x_star)
    G, R = bound.conditions.propagation, bound.conditions.resolvent
    r = (bound.drift + bound.input + bound.potential + bound.rounding[:, None])[0] @ R.T / system.v_th
    t = system.n_steps
    start = norms(system, system.equilibrium())[0]
    series = np.linalg.matrix_power(G, t) @ start
    for tau in range(max(0, t - 400), t):
        series = series + np.linalg.matrix_power(G, t - 1 - tau) @ r[tau]
    # The oldest terms of a long run are left out of the series, so it is a lower bound there.
    if t <= 400:
        np.testing.assert_allclose(bound.iterated[0, -1], series + bound.certificate[0], rtol=1e-9)
    assert np.all(series <= bound.iterated[0, -1] * (1 + 1e-9))


@given(system=systems())
def test_a_broken_bound_is_reported(system):
    """``violation`` looks at both bounds: either below the error by so much is told to be so."""
    bound = error_bound(system.frozen, system.x, simulate(system.frozen, system.x, system.n_steps, record=True))
    for name in ("one_step", "iterated"):
        # At one time, of one sample and population.
        too_small = getattr(bound, name).copy()
        too_small[-1, -1, -1] = bound.error[-1, -1, -1] - 0.25
        assert replace(bound, **{name: too_small}).violation == pytest.approx(0.25)


def test_cond_in_words():
    for gamma, holds in ((0.0, True), (0.999, True), (1.0, False), (3.0, False), (np.nan, False)):
        assert condition.verdict(gamma).startswith("(COND) holds") == holds


@pytest.mark.parametrize("n_steps_at_once", [1, 2, 4])
def test_the_largest_violation_of_a_run_is_told_whichever_stretch_it_is_in(n_steps_at_once, monkeypatch):
    """A long run is replayed some steps at a time: a potential that is off at one step alone."""
    network = build("3 (F3)", input_shape=(3,), n_classes=2, neuron=IF(1.0), batch_norm=False)
    frozen = freeze(network, network.init(np.random.default_rng(0)))
    x = np.full((1, 3), 0.4)
    rates = simulate(frozen, x, 6, record=True)
    at_once, residuals = split(frozen, x, rates), theory.fixed_point_residual(frozen, x, rates, [1, 2, 6])
    bounds = error_bound(frozen, x, rates)
    monkeypatch.setattr(discrete, "_CHUNK", 3 * n_steps_at_once)
    again = error_bound(frozen, x, rates)
    for name in ("error", "one_step", "iterated", "rounding", "u_plus_sup"):
        np.testing.assert_allclose(getattr(again, name), getattr(bounds, name), rtol=1e-12, atol=1e-300)
    for name in ("a", "p", "u_plus"):
        np.testing.assert_array_equal(getattr(split(frozen, x, rates), name), getattr(at_once, name))
    np.testing.assert_array_equal(theory.fixed_point_residual(frozen, x, rates, [1, 2, 6]), residuals)
    for step in range(6):
        potentials = rates.recording.u.copy()
        potentials[0, step, 1] += 0.5
        found = split(frozen, x, replace(rates, recording=replace(rates.recording, u=potentials)))
        assert found.balance_error == pytest.approx(0.5 / (step + 1))
        assert found.split_error == pytest.approx(0.5 / (step + 1))


@pytest.mark.parametrize("n_steps", [1, 2, 40])
def test_what_averages_and_norms_lose_is_in_the_rounding_of_a_run(n_steps, monkeypatch):
    """Beside what p and a* lose, which is more and left out here.

    Of T terms an average is off by up to T roundings of rates of at most 1, and so is the one before: in norm √n.

    The norm of each part of r is off by up to n roundings of itself, and some thirty more for what is done with it.
    """
    monkeypatch.setattr(discrete, "_rounding_of_p", lambda frozen, x, n_steps: np.zeros((len(x), 2)))
    monkeypatch.setattr(discrete.certificates, "defects", lambda frozen, x, a: np.zeros((len(x), 2)))
    ends, rng = [(-1, 0), (0, 1), (1, 0)], np.random.default_rng(0)
    system = system_of(IF(), [4, 3], ends, rng, 0.5, kind="random", n_steps=n_steps)
    for scale in (1e-3, 1.0, 1e6):  # of what the input does around its mean
        x = system.x_star[:, None] + scale * (system.x - system.x_star[:, None])
        rates = simulate(system.frozen, x, n_steps, record=True)
        bound = error_bound(system.frozen, x, rates, x_star=system.x_star)
        of_averages = 2 * system.v_th * n_steps * 2.0**-53 * np.sqrt([4, 3])
        of_norms = (7 + 30) * 2.0**-53 * (bound.drift + bound.input + bound.potential).max(axis=1)
        assert np.all(bound.rounding >= of_averages + of_norms)


@pytest.mark.parametrize("leak", [1.0, 0.9])
def test_a_samples_bounds_are_its_own_and_speak_of_the_exact_equilibrium(leak):
    """In float32, where what a* is known to is more than rounding of the bounds; beside samples of other sizes."""
    ends, rng = [(-1, 0), (0, 1), (1, 0)], np.random.default_rng(3)
    system = system_of(IF() if leak == 1.0 else LIF(leak), [4, 3], ends, rng, 0.8, n_steps=30, n_batch=3)
    params = {name: value.astype(np.float32) for name, value in system.frozen.params.items()}
    frozen, x = freeze(system.frozen.network, params), system.x.astype(np.float32) * np.float32([[1], [1e-4], [30]])
    bound = error_bound(frozen, x, simulate(frozen, x, 30, record=True))
    arrays = [name for name, value in vars(bound).items() if isinstance(value, np.ndarray)]
    for i in range(3):
        alone = error_bound(frozen, x[i : i + 1], simulate(frozen, x[i : i + 1], 30, record=True))
        for name in arrays:
            found = getattr(bound, name)[i : i + 1]
            np.testing.assert_allclose(found, getattr(alone, name), rtol=1e-5, atol=1e-30, err_msg=name)
    known = bound.certificate
    assert np.all(known[:2] > 1e-9)
    G, R, v_th = bound.conditions.propagation, bound.conditions.resolvent, system.v_th
    r = (bound.drift + bound.input + bound.potential + bound.rounding[:, None]) / v_th @ R.T
    start = norms(system, bound.equilibrium.a.astype(float))[:, None]
    for name, before in (("one_step", bound.error), ("iterated", bound.iterated - known[:, None])):
        expected = np.concatenate([start, before[:, :-1]], axis=1) @ G.T + r
        np.testing.assert_allclose(getattr(bound, name) - known[:, None], expected, rtol=1e-9, atol=1e-13)
    u_plus = np.abs(split(frozen, x, simulate(frozen, x, 30, record=True)).u_plus).max(axis=1)
    sups = np.stack([u_plus[:, place].max(axis=1) for place in system.places], axis=1)
    np.testing.assert_allclose(bound.u_plus_sup, sups, rtol=1e-4, atol=1e-3)
    unknown = replace(bound, certificate=np.full_like(known, np.inf))
    np.testing.assert_allclose(bound.floor() - unknown.floor(), known, rtol=1e-6, atol=1e-13)
    if leak == 1.0:
        sup = np.max(
            bound.times[:, None] * (bound.drift + bound.input + bound.potential + bound.rounding[:, None]), axis=1
        )
        envelope = theory.if_envelope(bound.conditions, v_th, sup, start[:, 0], bound.times)
        np.testing.assert_allclose(bound.envelope() - known[:, None], envelope, rtol=1e-9, atol=1e-13)
    else:
        S = weights(system)[1:, None]
        n = np.sqrt([4.0, 3.0])
        rest = np.maximum(bound.drift + bound.input + bound.u_plus_sup[:, None] * n * (1 / S - (1 - leak)), 0)
        b, transient = start[:, 0], bound.transient()
        for t in range(30):
            b = b @ G.T + (rest[:, t] + bound.rounding) / v_th @ R.T
            np.testing.assert_allclose(transient[:, t], b, rtol=1e-9, atol=1e-13)


def test_a_network_without_feedback_has_nothing_to_contract():
    network = build("3", input_shape=(3,), n_classes=2, neuron=IF(1.0))
    found = conditions(freeze(network, network.init(np.random.default_rng(0))))
    assert (found.paper, found.block) == (0, 0)
    assert found.applies


def test_the_theorems_speak_of_the_rollouts_own_statistics():
    """A profile whose rollout normalises spike input by other moments than the gradient does."""
    network = build("4 (F4)", input_shape=(3,), n_classes=2, neuron=IF(1.0))
    rng = np.random.default_rng(0)
    x = (rng.random((2, 12, 3)) < 0.5).astype(float)
    profile = Profile(unbiased_spike_statistics=True)
    frozen = freeze(edited(network, profile), network.init(rng), x, training=True, rng=rng)
    scales = [s.norm.scale / m.norm.scale for s, m in zip(frozen.simulated, frozen.maps, strict=True) if m.norm]
    assert np.all(np.abs(np.concatenate(scales) - 1) > 0.1)
    rates = simulate(frozen, x, 12, record=True)
    found = split(frozen, x, rates)
    assert max(found.balance_error, found.split_error) <= ROUNDING
    assert error_bound(frozen, x, rates).violation <= 0


@given(system=systems(leak=1.0))
def test_if_stays_below_its_envelope(system):
    rates = simulate(system.frozen, system.x, system.n_steps, record=True)
    bound = error_bound(system.frozen, system.x, rates, x_star=system.x_star)
    envelope = bound.envelope()
    assert np.all(bound.iterated <= envelope * (1 + 1e-9))
    falling = envelope - bound.certificate[:, None]
    np.testing.assert_allclose(falling * bound.times[:, None], falling[:, :1] * np.ones_like(envelope), 1e-9, 1e-13)


@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.99])
def test_the_envelope_holds_for_the_slowest_disturbance_it_allows(gamma):
    """r[t−1] = R/t itself, from either start: drawn runs are gentler, and would not miss one (I − G)⁻¹ of the two."""
    system = system_of(IF(), [5], [(-1, 0), (0, 0)], np.random.default_rng(0), gamma)
    found, v_th, times = conditions(system.frozen), system.v_th, np.arange(1, 3001)
    for start, R in ((0.0, 1.0), (1.0, 0.0), (1.0, 1.0)):
        envelope = theory.if_envelope(found, v_th, np.array([[R]]), np.array([[start]]), times)[0, :, 0]
        b, series = start, []
        for t in times:
            b = gamma * b + R / t / v_th
            series.append(b)
        assert np.all(series <= envelope * (1 + 1e-12))
        assert R == 0 or np.max(series * times) > R / v_th / (1 - gamma)


@given(system=systems(constant=True), leak=st.sampled_from([0.5, 0.9, 0.99]))
def test_lif_stays_below_floor_and_transient(system, leak):
    network = replace(system.frozen.network, neuron=LIF(leak, system.v_th))
    system = replace(system, frozen=freeze(network, system.frozen.params))
    rates = simulate(system.frozen, system.x, system.n_steps, record=True)
    bound = error_bound(system.frozen, system.x, rates)
    floor, transient = bound.floor(), bound.transient()
    assert np.all(bound.error <= floor[:, None] + transient)
    c = bound.u_plus_sup
    if len(system.places) == 1:
        n, gamma = system.b.size, np.linalg.norm(system.feedback, 2) / system.v_th
        plain = (1 - leak) * c * np.sqrt(n) / (system.v_th * (1 - gamma))
        np.testing.assert_allclose(floor, plain + bound.certificate, rtol=1e-9)
        assert np.all(floor >= plain * (1 - 1e-12))


def twenty(neuron, n_steps):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        system = system_of(neuron, [20], [(-1, 0), (0, 0)], rng, rng.uniform(0.1, 0.9), n_steps=n_steps, n_batch=1)
        rates = simulate(system.frozen, system.x, n_steps, record=True)
        yield error_bound(system.frozen, system.x, rates)


def test_if_error_falls_as_one_over_t():
    slopes = []
    for bound in twenty(IF(), 5000):
        times = np.unique(np.round(np.geomspace(50, 5000, 60)).astype(int))
        slopes.append(np.polyfit(np.log(times), np.log(bound.total("error")[0, times - 1]), 1)[0])
    assert -1.1 < np.median(slopes) < -0.9, np.median(slopes)


def test_lif_error_stays_below_its_floor_and_does_not_vanish():
    late = []
    for bound in twenty(LIF(0.95), 2000):
        error = bound.total("error")[0, 1000:]
        assert error.max() <= bound.floor()[0, 0]
        late.append(error.mean() / bound.floor()[0, 0])
        halves = error[:500].mean(), error[500:].mean()
        assert halves[1] > 0.5 * halves[0] > 0
    assert np.median(late) > 0.01


@given(system=systems())
def test_conditions_are_what_they_say(system):
    found = conditions(system.frozen)
    B = system.forward + system.feedback
    assert found.stacked.value == pytest.approx(np.linalg.norm(B, 2) / system.v_th, rel=1e-12)
    np.testing.assert_allclose(theory.block_matrix(system.frozen), B, atol=1e-14)
    n = len(B)
    sweep = np.linalg.solve(np.eye(n) - abs(system.forward) / system.v_th, abs(system.feedback) / system.v_th)
    if len({(s, t) for s, t in system.frozen.network.edges}) == len(system.frozen.network.edges):
        assert found.elementwise == pytest.approx(np.abs(np.linalg.eigvals(sweep)).max(), rel=1e-8, abs=1e-12)
        L, U = system.norms()
        np.testing.assert_allclose(found.propagation, np.linalg.solve(np.eye(len(L)) - L, U), atol=1e-11)
    assert found.block <= found.paper * (1 + 1e-9)
    assert found.block < 1
    assert found.applies


@given(system=st.one_of(systems(shape="layers"), systems(shape="single")))
def test_cond_of_layers_is_the_product_of_norms(system):
    product = 1.0
    places = system.places
    for i in range(len(places)):
        source = places[i - 1]
        B = system.feedback if i == 0 else system.forward
        product *= np.linalg.norm(B[places[i], source], 2) / system.v_th
    found = conditions(system.frozen)
    assert found.paper == pytest.approx(product, rel=1e-9)
    assert found.block == pytest.approx(product, rel=1e-6)


def test_iterated_norms_keep_to_their_stated_error(monkeypatch):
    network = build("5C3-5C3 (F5C3)", input_shape=(2, 5, 5), n_classes=2, neuron=IF(), dropout=0.3)
    # Frozen for training: dropout's mask has factors above 1.
    rng = np.random.default_rng(1)
    frozen = freeze(network, network.init(rng), rng.normal(size=(2, 2, 5, 5)), training=True, rng=rng)
    exact = conditions(frozen)
    assert all(0 < norm.error < 1e-12 * norm.value for norm in (*exact.norms, exact.stacked))
    B, places = theory.block_matrix(frozen), [network.slice_of(0), network.slice_of(1)]
    for norm, (target, source) in zip(exact.norms, ((1, 0), (0, 1)), strict=True):
        assert norm.value == pytest.approx(np.linalg.norm(B[places[target], places[source]], 2), rel=1e-12)
    for module in (condition, norms_):
        monkeypatch.setattr(module, "EXACT_SIZE", 10)
    again = conditions(replace(frozen, maps=tuple(replace(m) for m in frozen.maps)))
    assert again.elementwise is None
    assert "elementwise radius not computed" in again.describe()
    for norm, truth in zip((*again.norms, again.stacked), (*exact.norms, exact.stacked), strict=True):
        assert norm.value <= truth.value + truth.error
        assert truth.value <= norm.value + norm.error
        # The largest factor of dropout's mask counts in both: the error is that of the whole.
        assert norm.error < 0.2 * norm.value
    assert max(norm.error for norm in again.norms) > 1e-3 * min(norm.value for norm in again.norms)
    assert again.paper == pytest.approx(exact.paper, rel=1e-6)
    assert np.all(again.propagation >= exact.propagation * (1 - 1e-12))


def nilpotent(gain: float, own: float = 0.0):
    """Two neurons of one population, the first drives the second, and each itself."""
    network = build("2 (F2)", input_shape=(1,), n_classes=2, neuron=IF(), batch_norm=False, restriction=None)
    params = network.init(np.random.default_rng(0))
    params["feedback.weight"] = np.array([[own, 0.0], [gain, own]])
    params["input.weight"] = np.array([[0.6], [-1.0]])
    return freeze(network, params)


def test_a_feedback_without_cycles_converges_whatever_its_norm():
    frozen = nilpotent(5.0)
    found = conditions(frozen)
    assert found.paper == pytest.approx(2.5)
    assert found.elementwise == 0
    assert found.applies
    for own, applies in ((1.9, True), (2.0, False)):  # of V_th, which is 2
        assert conditions(nilpotent(5.0, own)).applies == applies
    x = np.ones((1, 1))
    rates = simulate(frozen, x, 4000, record=True)
    bound = error_bound(frozen, x, rates)
    assert bound.total("error")[0, -1] < 2e-3
    assert bound.violation <= 0
    # Of nothing, too.
    nothing = np.zeros((1, 1))
    at_rest = theory.if_envelope(found, 2.0, nothing, nothing, [1, 2]), theory.lif_floor(found, frozen.network, nothing)
    for limit in (bound.envelope(), bound.floor(), *at_rest):
        assert np.all(np.isinf(limit))


def test_beyond_one_the_inequality_stays_and_the_words_change():
    system = system_of(IF(), [8], [(-1, 0), (0, 0)], np.random.default_rng(1), 1.7, n_steps=1500)
    rates = simulate(system.frozen, system.x, 1500, record=True)
    a_star = find_equilibrium(system.frozen, system.x, method="newton")
    bound = error_bound(system.frozen, system.x, rates)
    np.testing.assert_allclose(bound.equilibrium.a, a_star.a)
    # The run's own rates lead to one where zero rates do not.
    hard = system_of(IF(), [8], [(-1, 0), (0, 0)], np.random.default_rng(6), 2.0, n_steps=200)
    with pytest.raises(NotConverged):
        find_equilibrium(hard.frozen, hard.x, method="newton")
    assert error_bound(hard.frozen, hard.x, simulate(hard.frozen, hard.x, 200, record=True)).violation <= 0
    assert np.all(bound.error <= bound.one_step)
    total = bound.total("iterated")
    assert np.all(np.diff(np.isinf(total).astype(int)) >= 0)
    assert total[0, 600] == pytest.approx(bound.iterated[0, 600, 0])
    assert total[0, -1] == np.inf
    assert not bound.conditions.applies
    # Nothing is known of an exact a* then, and nothing added; what outgrows the floats is infinite, not NaN.
    G, R = bound.conditions.propagation, bound.conditions.resolvent
    r = (bound.drift + bound.input + bound.potential + bound.rounding[:, None]) / system.v_th @ R.T
    np.testing.assert_allclose(bound.one_step[:, 1:], bound.error[:, :-1] @ G.T + r[:, 1:], rtol=1e-9)
    loop = system_of(IF(), [2, 2], [(-1, 0), (0, 1), (0, 0)], np.random.default_rng(0), 50.0, n_steps=400)
    grown = error_bound(loop.frozen, loop.x, simulate(loop.frozen, loop.x, 400, record=True)).iterated
    assert np.all(grown[:, -1] == np.inf)
    assert "no condition holds: the theorems do not apply" in bound.conditions.describe()
    assert "a condition holds" not in bound.conditions.describe().replace("no condition", "")
    assert "a condition holds: the theorems apply" in conditions(nilpotent(5.0)).describe()


def test_a_total_beyond_the_floats_is_infinite_and_warns_of_nothing():
    system = system_of(IF(), [2, 3], [(-1, 0), (0, 1), (1, 0)], np.random.default_rng(0), 0.5, n_steps=3)
    bound = error_bound(system.frozen, system.x, simulate(system.frozen, system.x, 3, record=True))
    huge = replace(bound, one_step=np.full_like(bound.one_step, 1.7e308), error=np.full_like(bound.error, 1e200))
    assert np.all(np.isinf(huge.total("one_step")))
    np.testing.assert_allclose(huge.total("error"), np.sqrt(2.0) * 1e200)


def test_tightness_is_the_median():
    assert condition.median_ratio(np.array([1.0, 2.0, 0.0]), np.array([2.0, 2.0, 0.0])) == 0.75
    assert condition.median_ratio(np.zeros(2), np.zeros(2)) == 0.0
    system = system_of(IF(), [5, 4], [(-1, 0), (0, 1), (1, 0)], np.random.default_rng(2), 0.6, n_steps=50)
    rates = simulate(system.frozen, system.x, 50, record=True)
    bound = error_bound(system.frozen, system.x, rates)
    assert 0 < bound.tightness <= 1
    assert bound.tightness == pytest.approx(np.median(bound.error / bound.one_step))
    np.testing.assert_array_equal(bound.times, np.arange(1, 51))


def test_wrong_arguments_are_named():
    system = system_of(LIF(), [3], [(-1, 0), (0, 0)], np.random.default_rng(0), 0.5, n_steps=5)
    bare = simulate(system.frozen, system.x, 5)
    recorded = simulate(system.frozen, system.x, 5, record=True)
    for call in (split, error_bound):
        with pytest.raises(ValueError, match="rates has no recording of every step"):
            call(system.frozen, system.x, bare)
        with pytest.raises(ValueError, match=r"x has shape \(1, 3\); expected the input of the run, 2 samples"):
            call(system.frozen, system.x[:1], recorded)
    bound = error_bound(system.frozen, system.x, recorded)
    with pytest.raises(ValueError, match=r"leak is 0\.95; the O"):
        bound.envelope()
    with pytest.raises(ValueError, match="name is 'floor'; expected 'error', 'one_step' or 'iterated'"):
        bound.total("floor")


@given(system=systems())
def test_the_residual_of_a_run_s_rates_is_the_map_written_out(system):
    rates = simulate(system.frozen, system.x, system.n_steps, record=True)
    times = np.unique([1, (system.n_steps + 1) // 2, system.n_steps])
    found = theory.fixed_point_residual(system.frozen, system.x, rates, times)
    d = equations.average(system.inputs(), system.neuron.leak) @ system.F.T + system.b
    for k, t in enumerate(times):
        a = equations.average(rates.recording.s[:, :t], system.neuron.leak)
        np.testing.assert_allclose(found[:, k], np.linalg.norm(system.sweep(a, d) - a, axis=1), atol=1e-11)


def test_a_batch_keeps_its_own_average():
    network = build("4 (F4)", input_shape=(3,), n_classes=2, neuron=IF())
    x = np.random.default_rng(0).normal(size=(5, 3))
    frozen = freeze(network, network.init(np.random.default_rng(0)), x, training=True)
    rates = simulate(frozen, x, 4, record=True)
    with pytest.raises(ValueError, match="x_star was given, but the network is frozen with a batch's statistics"):
        error_bound(frozen, x, rates, x_star=x)
    assert error_bound(frozen, x, rates).violation <= 0


def test_samples_that_depend_on_each_other_are_refused():
    network = build("4-4 (F4)", input_shape=(3,), n_classes=2, neuron=IF())
    x = np.random.default_rng(0).normal(size=(5, 3))
    profile = Profile(batch_statistics_in_beta=True)
    frozen = freeze(edited(network, profile), network.init(np.random.default_rng(0)), x, training=True)
    with pytest.raises(ValueError, match="couples the samples of a batch"):
        conditions(frozen)


DERIVATIONS = (Path(__file__).parent.parent / "docs/derivations.md").read_text()


def test_the_pages_table_is_what_its_example_prints(capsys):
    exec(compile(re.search(r"```python\n(.*?)```", DERIVATIONS, re.S)[1], "derivations.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", DERIVATIONS, re.M)
    for i, (t, numbers) in enumerate(rows):
        assert numbers.split(" | ") == [*printed[i].split()[1:], *printed[i + 5].split()[1:]], t
    assert [f"{float(printed[i].strip('[]')):.4f}" for i in (4, 9)] == ["0.0060", "0.1178"]


def test_the_pages_neuron_refutes_u_plus_inside_sigma():
    network = build("1", input_shape=(1,), n_classes=1, neuron=IF(1.0), batch_norm=False)
    params = network.init(np.random.default_rng(0))
    params["input.weight"][:] = 1
    frozen = freeze(network, params)
    x = np.array([[[1.0], [-0.6], [-0.6]]])
    rates = simulate(frozen, x, 3, record=True)
    found = split(frozen, x, rates)
    p, u_plus = found.p[0, -1, 0], found.u_plus[0, -1, 0]
    assert (rates.u[0, 0], u_plus, rates.a[0, 0]) == pytest.approx((-1.2, -1.0, 1 / 3))
    assert np.clip(p - u_plus / 3, 0, 1) == pytest.approx(0.8 / 3)
    assert np.clip(p, 0, 1) - u_plus / 3 == pytest.approx(1 / 3)


def test_the_block_radius_adds_what_goes_by_several_ways():
    """One neuron per population, a to b to c and a to c, back to a: 0.5 (0.5 · 0.5 + 0.5)."""
    network = dense_network(IF(1.0), [1, 1, 1], [(-1, 0), (0, 1), (1, 2), (0, 2), (2, 0)])
    params = network.init(np.random.default_rng(0))
    params |= {f"c{i}.weight": np.full((1, 1), 0.5) for i in range(5)}
    assert conditions(freeze(network, params)).block == pytest.approx(0.375, rel=1e-12)


@pytest.mark.parametrize("largest", [condition.EXACT_SIZE, 0])
def test_the_stacked_norm_adds_what_goes_forward_and_what_comes_back(largest, monkeypatch):
    """Two neurons and one, each connected with all by 0.3: the norm of their matrix is 0.9."""
    network = dense_network(IF(1.0), [2, 1], [(-1, 0), (0, 1), (1, 0), (0, 0), (1, 1)])
    params = network.init(np.random.default_rng(0))
    params |= {f"c{i}.weight": np.full_like(params[f"c{i}.weight"], 0.3) for i in range(1, 5)}
    monkeypatch.setattr(condition, "EXACT_SIZE", largest)
    for dtype in (np.float32, np.float64):
        stacked = conditions(freeze(network, {name: value.astype(dtype) for name, value in params.items()})).stacked
        assert stacked.value == pytest.approx(0.9, rel=1e-6)
        assert stacked.value + stacked.error >= 0.9 * (1 - 1e-7)
