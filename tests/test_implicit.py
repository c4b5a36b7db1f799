"""(BETA) and (HEBB) against dense linear algebra and against differences of the exact equilibrium."""

import numpy as np
import pytest
from graphs import cases
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import ide_ref
from ide_ref import IF, NotConverged, backward, build, equations, find_equilibrium, freeze, linearise, simulate, solve
from ide_ref.authors import Profile, authors, edited
from ide_ref.implicit import solve_beta
from ide_ref.solvers import SOLVERS, require
from ide_ref.verify import check_gradient
from ide_ref.verify.specification import specified

HONEST = [name for name in SOLVERS if name != "damped"]


def loss_gradient(frozen, state, y):
    return ide_ref.cross_entropy(ide_ref.read_out(frozen, state), y)[1]


def single_layer(neuron, *, n_batch=5, seed=0, **options):
    network = build("6 (F6)", input_shape=(4,), n_classes=3, neuron=neuron, **options)
    rng = np.random.default_rng(seed)
    params = network.init(rng)
    params["input.bias"] = rng.normal(0.7, 0.5, 6)
    x, y = rng.normal(0.3, 0.7, (n_batch, 4)), rng.integers(0, 3, n_batch)
    return network, params, x, y


def test_samples_that_are_not_coupled_have_a_krylov_space_each():
    network, params, x, y = single_layer(IF(1.0), n_batch=9)
    frozen = freeze(network, params)
    state = find_equilibrium(frozen, x)
    back = backward(frozen, state, loss_gradient(frozen, state, y), solver="gmres", tol=1e-12)
    assert back.solution.converged
    assert back.solution.iterations <= network.state_size


@given(case=cases(contractive=True))
def test_recomputed_rates_have_the_gradient_of_one_sweep(case):
    """Masks and sent rates are those of the sweep that begins with a[T] at the feedback sources."""
    frozen, net = case.frozen, case.spec.net
    state = simulate(frozen, case.x, case.n_steps)
    d_logits = loss_gradient(frozen, state, case.y)
    back = backward(frozen, state, d_logits, solver="direct", tol=1e-9, recompute=True)
    a, p = case.sweep(state.a[:, case.feedback_sources()])
    assume(np.minimum(np.abs(p), np.abs(p - net.v_th)).min() > 1e-11)
    m = (p >= 0) & (p <= net.v_th)
    source, W_o, _ = case.spec.readout
    g = np.zeros_like(p)
    g[:, case.places()[source]] = d_logits @ W_o
    beta = np.concatenate(equations.beta(net, case.split(m), case.split(g)), axis=1)
    np.testing.assert_allclose(back.beta, beta, atol=1e-12)
    delta, swept, given_rates = (case.split(part) for part in (m * beta / net.v_th, a, state.a))
    for name, c, folded, params in zip(case.spec.names, case.spec.connections, net.maps, case.spec.params, strict=True):
        sent = case.x_mean if c.source < 0 else (swept if c.source < c.target else given_rates)[c.source]
        for part, value in equations.pull_back(c, folded, params, delta[c.target], sent, case.training).items():
            if not part.startswith("running"):
                size = 1e-10 * max(1.0, np.abs(value).max())
                np.testing.assert_allclose(back.gradients[f"{name}.{part}"], value, rtol=0, atol=size, err_msg=name)


@given(case=cases(contractive=True), seed=st.integers(0, 2**32 - 1), solver=st.sampled_from(HONEST), some=st.booleans())
def test_beta_of_a_loss_of_any_populations_is_the_dense_one(case, seed, solver, some):
    """∂L/∂a may lie on feedback sources, on other populations and on both at once."""
    rng = np.random.default_rng(seed)
    rates = simulate(case.frozen, case.x, case.n_steps)
    there = linearise(case.frozen, rates.a, case.frozen.drive(rates.x_mean))
    g = rng.normal(size=rates.a.shape)
    for place in case.places():
        if some and rng.random() < 0.5:
            g[:, place] = 0
    exact = dense_beta(equations.block_matrix(case.spec.net), there.slope, g)
    beta, delta, solution = solve_beta(there, g, solver=solver, tol=1e-12, max_iter=1000)
    assert solution.converged
    size = 1e-9 * (1 + np.linalg.norm(exact, axis=1).max())
    np.testing.assert_allclose(beta, exact, rtol=0, atol=size)
    np.testing.assert_allclose(delta, there.slope * exact, rtol=0, atol=size)


def dense_beta(W, slope, g):
    """β = g + Wᵀ (1/V_th) M β of every sample, W (B, n, n) of all connections between populations."""
    system = np.eye(g.shape[1]) - W.swapaxes(1, 2) * slope[:, None, :]
    return np.linalg.solve(system, g[:, :, None])[:, :, 0]


@given(
    n=st.integers(1, 130),
    still=st.integers(0, 130),
    n_batch=st.integers(1, 9),
    solver=st.sampled_from(HONEST),
    seed=st.integers(0, 2**32 - 1),
)
@example(n=100, still=64, n_batch=8, solver="anderson", seed=0)
@example(n=100, still=99, n_batch=9, solver="anderson", seed=1)
@example(n=130, still=0, n_batch=9, solver="anderson", seed=2)
def test_samples_that_are_done_at_different_times_have_their_own_beta(n, still, n_batch, solver, seed):
    """Some samples have few neurons on σ's slope and are done at once; the first ``still`` neurons get no feedback,
    so that only what lies behind them changes from one iterate to the next."""
    network = build(f"{n} (F{n})", input_shape=(2,), n_classes=3, neuron=IF(), batch_norm=False, restriction=None)
    rng = np.random.default_rng(seed)
    params = network.init(rng)
    W = rng.normal(size=(n, n))
    W = 1.8 * W / np.linalg.norm(W, 2)
    W[:, :still] = 0
    params["feedback.weight"] = W
    share = rng.permutation(np.linspace(0, 1, n_batch))[:, None]
    drive = np.where(rng.random((n_batch, n)) < share, 1.0, -50.0)
    there = linearise(freeze(network, params), np.zeros((n_batch, n)), drive)
    g = rng.normal(size=(n_batch, n))
    exact = dense_beta(np.repeat(W[None], n_batch, axis=0), there.slope, g)
    beta, delta, solution = solve_beta(there, g, solver=solver, tol=1e-12, max_iter=1000)
    size = 1e-9 * (1 + np.linalg.norm(exact, axis=1).max())
    np.testing.assert_allclose(beta, exact, rtol=0, atol=size)
    np.testing.assert_allclose(delta, there.slope * exact, rtol=0, atol=size)
    # What is claimed is true of the β returned.
    rest = g + (there.slope * beta) @ W - beta
    np.testing.assert_allclose(solution.residual, np.linalg.norm(rest, axis=1), rtol=0, atol=size)


@pytest.mark.parametrize("profile", [Profile(sweep_first=True), Profile(batch_statistics_in_beta=True), authors(3)])
@given(case=cases(contractive=True), solver=st.sampled_from([name for name in HONEST if name != "direct"]))
def test_under_a_profile_every_solver_finds_the_gradient_of_the_dense_one(profile, case, solver):
    """Two linearisations at once, or samples that are coupled: where a solver claims a solution, it is the same."""
    frozen = case.frozen
    if not (case.network.is_spike_input(case.x) and len(case.x) == 1):  # an unbiased variance takes two samples
        rng = np.random.default_rng(0)
        frozen = freeze(edited(case.network, profile), case.params, case.x, training=True, rng=rng)
    rates = simulate(frozen, case.x, case.n_steps)
    d_logits = loss_gradient(frozen, rates, case.y)
    exact = backward(frozen, rates, d_logits, solver="direct", tol=1e-11, allow_unconverged=True)
    found = backward(frozen, rates, d_logits, solver=solver, tol=1e-11, max_iter=300, allow_unconverged=True)
    # Coupled by their statistics, samples need not have a contraction.
    assume(exact.solution.converged and found.solution.converged)
    scale = 1 + np.abs(exact.beta).max()
    assume(scale < 1e3)
    np.testing.assert_allclose(found.beta, exact.beta, rtol=0, atol=1e-8 * scale)
    for name, gradient in exact.gradients.items():
        size = 1e-8 * scale * (1 + np.abs(gradient).max())
        np.testing.assert_allclose(found.gradients[name], gradient, rtol=0, atol=size, err_msg=name)


@given(
    n_batch=st.integers(1, 9),
    tol=st.sampled_from([1e-1, 1e-2, 1e-4]),
    solver=st.sampled_from(["anderson", *HONEST]),
    seed=st.integers(0, 2**32 - 1),
)
@example(n_batch=9, tol=1e-2, solver="anderson", seed=0)
@example(n_batch=9, tol=1e-4, solver="anderson", seed=1)
@example(n_batch=5, tol=1e-4, solver="gmres", seed=1)
def test_a_residual_is_that_of_beta_where_samples_are_coupled(n_batch, tol, solver, seed):
    """``batch_statistics_in_beta``: a sample that has arrived has a part in others and moves with them."""
    network = build("7-6 (F7)", input_shape=(4,), n_classes=3, neuron=IF(), restriction=None)
    rng = np.random.default_rng(seed)
    params = network.init(rng)
    params["feedback.weight"] = 0.8 * params["feedback.weight"]
    frozen = freeze(
        edited(network, Profile(batch_statistics_in_beta=True)), params, rng.normal(size=(n_batch, 4)), training=True
    )
    # The later a sample, the fewer of its neurons are on σ's slope.
    share = np.linspace(0, 1, n_batch)[:, None]
    drive = np.where(rng.random((n_batch, 13)) < share, 1.0, -50.0)
    there = linearise(frozen, rng.random((n_batch, 13)), drive)
    g = np.zeros((n_batch, 13))
    sources = network.slice_of(network.populations[-1].name)
    g[:, sources] = rng.normal(size=(n_batch, 6)) * 10.0 ** rng.uniform(-3, 3, (n_batch, 1))
    beta, _, solution = solve_beta(there, g, solver=solver, tol=tol, max_iter=60, allow_unconverged=True)
    w = solution.x
    np.testing.assert_array_equal(beta[:, sources], w)
    rest = np.linalg.norm(g[:, sources] + there.vjp(w) - w, axis=1)
    size = 1e-10 * (1 + np.abs(w).max())
    np.testing.assert_allclose(solution.residual, rest, rtol=0, atol=size)
    if solver == "gmres" and n_batch <= 6:
        # All samples are one system then, which one Krylov space without a restart solves.
        assert (solution.converged, solution.iterations <= 6 * n_batch) == (True, True)


@given(case=cases(max_populations=5), seed=st.integers(0, 2**32 - 1))
def test_solvers_agree_or_say_that_they_did_not_converge(case, seed):
    """Whatever the weights, β is that of the dense system where a solver claims it, and one solver always does."""
    rates = simulate(case.frozen, case.x, case.n_steps)
    there = linearise(case.frozen, rates.a, case.frozen.drive(rates.x_mean))
    n = case.network.feedback_size
    rows = np.stack([there.vjp(np.repeat(unit[None], len(case.x), axis=0)) for unit in np.eye(n)], axis=2)
    system = np.eye(n) - rows
    hardness = np.linalg.cond(system)
    assume(hardness.max() < 1e6)
    g = np.random.default_rng(seed).normal(size=(len(case.x), n))
    exact = np.linalg.solve(system, g[:, :, None])[:, :, 0]
    claimed = []
    for name in HONEST:
        solution = solve(name, there.vjp, g, tol=1e-11, max_iter=300)
        if solution.converged:
            claimed.append(name)
            error = np.linalg.norm(solution.x - exact, axis=1)
            assert np.all(error <= 1e-8 * np.maximum(1, np.linalg.norm(exact, axis=1))), name
            assert np.all(error <= hardness * 2e-11 * np.linalg.norm(exact, axis=1) + 1e-12), name
        else:
            assert np.any(solution.relative > 1e-11), name
            with pytest.raises(NotConverged, match=rf"{name} stopped after"):
                require(solution, "(BETA)")
    assert "direct" in claimed


@given(case=cases(contractive=True, max_populations=5))
def test_solvers_agree(case):
    rates = simulate(case.frozen, case.x, case.n_steps)
    d_logits = loss_gradient(case.frozen, rates, case.y)
    found = [backward(case.frozen, rates, d_logits, solver=name, tol=1e-11, max_iter=1000) for name in HONEST]
    for back in found:
        np.testing.assert_allclose(back.beta, found[0].beta, rtol=0, atol=1e-9)
        assert back.solution.converged
        assert back.solution.residual.shape == back.certificate.shape == (len(case.x),)
        if len(case.network.populations) == 1:
            plain = back.solution.residual / (1 - back.contraction)
            np.testing.assert_allclose(back.certificate, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "direct"])
def test_an_unsolved_system_raises(solver):
    network, params, x, y = single_layer(IF())
    frozen = freeze(network, params)
    rates = simulate(frozen, x, 8)
    d_logits = loss_gradient(frozen, rates, y)
    with pytest.raises(NotConverged, match=rf"\(BETA\): {solver} stopped after .* tolerance 1e-10"):
        backward(frozen, rates, d_logits, solver=solver, max_iter=1)
    back = backward(frozen, rates, d_logits, solver=solver, max_iter=1, allow_unconverged=True)
    assert not back.solution.converged
    assert back.solution.relative.max() > 1e-10
    assert all(np.isfinite(gradient).all() for gradient in back.gradients.values())


def test_the_mask_rule_decides_at_the_ends():
    network, params, _, y = single_layer(IF(), batch_norm=False, dropout=0.0)
    params["input.weight"][:] = 0
    params["input.bias"][:] = [0, 2, -1, 3, 0, 2]
    params["feedback.weight"] = np.eye(6)
    params["feedback.alpha"] = np.asarray(0.0)
    frozen = freeze(network, params)
    x = np.zeros((5, 4))
    state = find_equilibrium(frozen, x)
    d_logits = loss_gradient(frozen, state, y)
    moved = {
        rule: backward(frozen, state, d_logits, mask_rule=rule).gradients["input.bias"] != 0
        for rule in ("closed", "open", "half")
    }
    np.testing.assert_array_equal(moved["closed"], [1, 1, 0, 0, 1, 1])
    np.testing.assert_array_equal(moved["open"], [0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(moved["half"], [0, 1, 0, 0, 0, 1])


@pytest.mark.parametrize("alpha", [-1.5, 1.5])
def test_alpha_beyond_its_clamp_has_no_gradient(alpha):
    network, params, x, y = single_layer(IF())

    def gradients(value):
        frozen = freeze(network, {**params, "feedback.alpha": np.asarray(value)})
        rates = simulate(frozen, x, 8)
        return backward(frozen, rates, loss_gradient(frozen, rates, y), solver="direct").gradients

    beyond, at_the_clamp = gradients(alpha), gradients(np.sign(alpha))
    assert beyond["feedback.alpha"] == 0
    assert abs(at_the_clamp["feedback.alpha"]) > 1e-6
    for name in set(network.trainable) - {"feedback.alpha"}:
        np.testing.assert_array_equal(beyond[name], at_the_clamp[name])


@given(case=cases(contractive=True), first_frame=st.booleans())
def test_under_a_profile_the_statistics_of_static_input_follow_the_batch_twice(case, first_frame):
    """``statistics_twice``; others once, as the equations say."""
    x = case.x[:, 0] if first_frame and case.network.is_spike_input(case.x) else case.x
    network, rng = edited(case.network, Profile(statistics_twice=True)), np.random.default_rng(0)
    frozen = freeze(network, case.params, x, training=True, rng=rng)
    rates = simulate(frozen, x, case.n_steps)
    assume(rates.margin.min() > 1e-9)
    back = backward(frozen, rates, loss_gradient(frozen, rates, case.y), tol=1e-3, allow_unconverged=True)
    *_, statistics = specified(frozen, x, case.n_steps).gradient(case.y)
    inputs = {c.name for c in case.network.connections if c.source == "input"}
    for name, once in statistics.items():
        twice = once + (1 - equations.MOMENTUM) * (once - case.params[name])
        expected = twice if name.split(".")[0] in inputs and not network.is_spike_input(x) else once
        np.testing.assert_allclose(back.statistics[name], expected, rtol=1e-12, atol=1e-12, err_msg=name)
    case.network.check_params({**case.params, **back.statistics})


# A case takes some 200 equilibria.
@settings(max_examples=max(1, settings.default.max_examples // 4))
@given(case=cases(contractive=True, max_populations=5))
def test_the_gradient_of_every_graph_is_the_difference_quotient(case):
    report = check_gradient(
        case.network, case.params, case.x, case.y, n_coordinates=1, n_directions=1, tol=1e-7, training=case.training
    )
    assert report.passed, report.table()
    assert report.set_aside + report.unresolved < 2 * report.checked, report.table()
