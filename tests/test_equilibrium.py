"""(FP), its Jacobian and its contraction against dense block matrices."""

from dataclasses import replace

import numpy as np
import pytest
from graphs import apply, cases
from hypothesis import given
from hypothesis import strategies as st
from theorems import dense_network

from ide_ref import IF, NotConverged, build, contraction, equations, find_equilibrium, freeze, linearise

seeds = st.integers(0, 2**32 - 1)


def dense_jacobian(case, slope):
    """da = D (L da + U dz) on the feedback sources: P (I - D L)⁻¹ D U Pᵀ."""
    forward, feedback, _ = case.blocks()
    D = slope[:, :, None]
    J = np.linalg.solve(np.eye(slope.shape[1]) - D * forward, D * feedback)
    sources = case.feedback_sources()
    return J[:, sources][:, :, sources]


@given(case=cases(), seed=seeds, recompute=st.booleans(), rule=st.sampled_from(["closed", "open", "half"]))
def test_the_products_with_the_jacobian_are_the_dense_ones(case, seed, recompute, rule):
    frozen, v_th = case.frozen, case.network.neuron.v_th
    a = np.random.default_rng(seed).uniform(-0.2, 1.2, (len(case.x), case.network.state_size))
    at = linearise(frozen, a, frozen.drive(frozen.mean_input(case.x)), recompute=recompute, mask_rule=rule)
    if recompute:
        swept, p = case.sweep(a[:, case.feedback_sources()])
        np.testing.assert_allclose(at.forward, swept, atol=1e-13 * (1 + np.abs(p).max()))
    else:
        forward, feedback, drive = case.blocks()
        p = apply(forward + feedback, a) + drive
    J = dense_jacobian(case, case.network.neuron.mask(p, rule) / v_th)
    v, w = np.random.default_rng(seed).normal(size=(2, len(case.x), case.network.feedback_size))
    for array in (v, w):
        array.flags.writeable = False
    scale = 1e-12 * (1 + np.abs(J).max())
    np.testing.assert_allclose(at.jvp(v), apply(J, v), atol=scale)
    np.testing.assert_allclose(at.vjp(w), apply(J.swapaxes(1, 2), w), atol=scale)


@given(case=cases(contractive=True))
def test_the_equilibrium_solves_the_equation(case):
    found = find_equilibrium(case.frozen, case.x)
    a, p = (np.concatenate(part, axis=1) for part in equations.sweep(case.spec.net, case.split(found.a), case.x_mean))
    size = 1 + np.abs(p).max()
    np.testing.assert_allclose(found.a, a, rtol=0, atol=1e-13 * size)
    np.testing.assert_allclose(found.p, p, rtol=0, atol=1e-12 * size)
    assert found.converged
    assert found.contraction < 1
    clear = np.minimum(np.abs(p), np.abs(p - case.network.neuron.v_th)) > 1e-9
    pieces = np.where(p < 0, -1, np.where(p > case.network.neuron.v_th, 1, 0))
    np.testing.assert_array_equal(found.branch[clear], pieces[clear])
    again = find_equilibrium(case.frozen, case.x, start=found.a)
    assert again.iterations <= 2
    for population, place in zip(case.network.populations, case.places(), strict=True):
        assert found.of(population.name).shape == (len(case.x), *population.shape)
        np.testing.assert_allclose(found.of(population.name).sum(), found.a[:, place].sum())


@given(case=cases(contractive=True), sweeps=st.integers(1, 4))
def test_one_population_s_certificate_is_as_it_is_written(case, sweeps):
    """And what rounding adds to it; that it bounds the error is tested with the certificates."""
    early = find_equilibrium(case.frozen, case.x, max_iter=sweeps, allow_unconverged=True)
    assert early.iterations <= sweeps
    assert early.why_not == ""
    if len(case.network.populations) == 1:
        plain = early.residual / (1 - early.contraction)
        np.testing.assert_allclose(early.certificate, plain, rtol=1e-9, atol=1e-12)


@given(case=cases(), seed=seeds)
def test_no_mask_makes_the_jacobian_longer_than_gamma(case, seed):
    gamma, v_th = contraction(case.frozen), case.network.neuron.v_th
    rng = np.random.default_rng(seed)
    shape = len(case.x), case.network.state_size
    for slope in (rng.integers(0, 2, shape) / v_th, np.ones(shape) / v_th):
        norm = np.linalg.norm(dense_jacobian(case, slope), 2, axis=(1, 2)).max()
        assert norm <= gamma * (1 + 1e-9)


@pytest.mark.parametrize("norms", [[1.5], [-1.5], [1.0, 3.0], [0.5, 2.0, -1.5]])
def test_contraction_of_a_ring_is_the_product(norms):
    """One neuron a layer, where the bound is attained."""
    n = len(norms)
    network = dense_network(IF(2.0), [1] * n, [(-1, 0), *((i, (i + 1) % n) for i in range(n))])
    params = network.init(np.random.default_rng(0))
    params |= {f"c{i + 1}.weight": np.array([[norm]]) for i, norm in enumerate(norms)}
    assert contraction(freeze(network, params)) == pytest.approx(np.prod(np.abs(norms)) / 2.0**n)


def test_without_feedback_one_sweep_is_the_answer():
    network = build("5-4", input_shape=(3,), n_classes=2, neuron=IF())
    params, x = network.init(np.random.default_rng(0)), np.random.default_rng(1).normal(1, 1, (4, 3))
    frozen = freeze(network, params, x, training=True)
    found = find_equilibrium(frozen, x)
    assert contraction(frozen) == 0
    assert found.iterations == 1
    np.testing.assert_array_equal(found.certificate, 0)
    np.testing.assert_array_equal(find_equilibrium(frozen, x, method="newton").a, found.a)
    first = found.of("a1")
    scale = 1 / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(
        found.of("a2"), np.clip(scale * first @ params["hidden1.weight"].T / 2, 0, 1), atol=1e-14
    )


def test_the_search_begins_at_rest_unless_told_otherwise():
    network = build("3 (F3)", input_shape=(3,), n_classes=2, neuron=IF(1.0))
    frozen, x = freeze(network, network.init(np.random.default_rng(0))), np.full((2, 3), 0.4)
    # What is returned is the point that was judged last.
    assert not find_equilibrium(frozen, x, max_iter=1, allow_unconverged=True).a.any()
    start = np.full((2, 3), 0.25)
    np.testing.assert_array_equal(find_equilibrium(frozen, x, start=start, max_iter=1, allow_unconverged=True).a, start)


def one_neuron():
    """p = 0.9 a + x, V_th = 1."""
    network = build("1 (F1)", input_shape=(1,), n_classes=2, neuron=IF(1.0), batch_norm=False)
    params = network.init(np.random.default_rng(0))
    params |= {"input.weight": np.ones((1, 1)), "feedback.weight": np.ones((1, 1)), "feedback.alpha": np.array(0.9)}
    return freeze(network, {**params, "input.bias": np.zeros(1)})


@pytest.mark.parametrize(("share", "status"), [(1.1, "converged"), (0.9, "out of iterations")])
def test_the_tolerance_of_relu_is_relative_to_what_the_drive_brings_without_feedback(share, status):
    """One neuron, a = max(0.9 a + 1, 0) from rest: after k sweeps the residual is 0.9^k, and 1 + ‖f(0)‖ = 2."""
    frozen = one_neuron()
    options = {"max_iter": 11, "tol": share * 0.9**10 / 2, "allow_unconverged": True}
    assert find_equilibrium(frozen, np.ones((1, 1)), sigma="relu", **options).status == status
    # a = 10 x, whose last bits are beyond the least tolerance for 1 + x: the larger sample's are told.
    with pytest.raises(NotConverged, match=r"lost to rounding of float64, which alone may be 4\.4e-12: ask for"):
        find_equilibrium(frozen, np.array([[100.0], [1000.0]]), sigma="relu", tol=5e-16, max_iter=400)


@pytest.mark.parametrize(("share", "status"), [(1.1, "converged"), (0.9, "out of iterations")])
def test_the_tolerance_of_clip_is_relative_to_1_and_the_rates(share, status):
    """One neuron, a = clip(0.9 a + 0.05) from rest: after k sweeps a = (1 − 0.9^k)/2, its residual 0.05 · 0.9^k."""
    frozen = one_neuron()
    tol = share * 0.05 * 0.9**10 / (1 + (1 - 0.9**10) / 2)
    found = find_equilibrium(frozen, np.full((1, 1), 0.05), max_iter=11, tol=tol, allow_unconverged=True)
    assert found.status == status


@pytest.mark.parametrize("method", ["iterate", "anderson", "newton"])
def test_a_search_that_starts_at_the_equilibrium_is_at_its_end(method):
    network = build("5 (F5)", input_shape=(3,), n_classes=2, neuron=IF(1.0), batch_norm=False)
    params, x = network.init(np.random.default_rng(0)), np.random.default_rng(1).random((2, 3))
    frozen = freeze(network, params)
    star = find_equilibrium(frozen, x)
    assert find_equilibrium(frozen, x, method=method).iterations > 1
    assert find_equilibrium(frozen, x, method=method, start=star.a, tol=1e-12).iterations <= 1
    # Where nothing comes in, the measure of the tolerance is not what comes in.
    silent = freeze(network, {**params, "input.bias": np.full(5, -1.0)})
    for sigma in ("clip", "relu"):
        assert not find_equilibrium(silent, 0 * x, method=method, sigma=sigma, start=np.ones((2, 5))).a.any()


def test_what_a_linearisation_normalised_is_known_there_and_not_elsewhere():
    network = build("5-4 (F5)", input_shape=(3,), n_classes=2, neuron=IF())
    rng = np.random.default_rng(0)
    frozen, x = freeze(network, network.init(rng)), rng.normal(size=(4, 3))
    at = linearise(frozen, rng.random((4, 9)), frozen.drive(x))
    sent = [None, at.forward[:, :5], at.feedback[:, 5:]]
    for m, rates, cache in zip(frozen.maps, sent, at.caches, strict=True):
        assert (cache is None) == (rates is None or m.norm is None)
        if cache is not None:
            np.testing.assert_allclose(cache.z, m.pre_activation(rates), rtol=1e-14)
    assert not all(cache is None for cache in at.caches)
    with pytest.raises(ValueError, match=r"drive has shape \(3, 9\); expected \(4, 9\), a state"):
        linearise(frozen, at.forward, frozen.drive(x[:3]))
    for moved in (replace(at, forward=at.forward.copy()), replace(at, kept=None)):
        assert moved.caches == (None, None, None)


def test_what_is_raised_tells_the_worst_sample():
    """A sample that is at its equilibrium from the beginning, one that is close to it, and one that is not."""
    net = dense_network(IF(1.0), [1], [(-1, 0), (0, 0)])
    params = {**net.init(np.random.default_rng(0)), "c0.weight": np.eye(1), "c0.bias": np.zeros(1)}
    frozen, x = freeze(net, {**params, "c1.weight": np.full((1, 1), 0.5)}), np.array([[0.0], [0.25], [0.01]])
    state = find_equilibrium(frozen, x, max_iter=3, allow_unconverged=True)
    np.testing.assert_allclose(state.residual, 0.5**2 * x[:, 0], rtol=1e-12)
    with pytest.raises(NotConverged, match=f"residual {state.residual.max():.2e} after 3 sweeps"):
        find_equilibrium(frozen, x, max_iter=3)
