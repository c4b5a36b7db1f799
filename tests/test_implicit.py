"""(BETA) and (HEBB) against dense linear algebra and against differences of the exact equilibrium."""

from dataclasses import replace

import numpy as np
import pytest
from graphs import apply, cases
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ide_ref import (
    IF,
    LIF,
    NotConverged,
    backward,
    build,
    cross_entropy,
    find_equilibrium,
    freeze,
    linearise,
    read_out,
    simulate,
    solve,
)
from ide_ref.authors import Profile, authors, edited
from ide_ref.constraints import running_update
from ide_ref.implicit import hebbian, solve_beta
from ide_ref.solvers import SOLVERS, require
from ide_ref.verify import check_gradient

HONEST = [name for name in SOLVERS if name != "damped"]


def loss_gradient(frozen, state, y):
    return cross_entropy(read_out(frozen, state), y)[1]


def single_layer(neuron, *, n_batch=5, seed=0, **options):
    network = build("6 (F6)", input_shape=(4,), n_classes=3, neuron=neuron, **options)
    rng = np.random.default_rng(seed)
    params = network.init(rng)
    params["input.bias"] = rng.normal(0.7, 0.5, 6)
    x, y = rng.normal(0.3, 0.7, (n_batch, 4)), rng.integers(0, 3, n_batch)
    return network, params, x, y


@pytest.mark.parametrize("neuron", [IF(), LIF()], ids=["if", "lif"])
@pytest.mark.parametrize("solver", HONEST)
def test_one_layer_is_the_formula(neuron, solver):
    """(BETA) and (HEBB) at a[T], written out."""
    network, params, x, y = single_layer(neuron, batch_norm=False, restriction=None)
    W, F, b = params["feedback.weight"], params["input.weight"], params["input.bias"]
    params["feedback.weight"] = W = W / np.linalg.norm(W, 2)
    frozen = freeze(network, params)
    rates = simulate(frozen, x, 12)
    a = rates.a
    logits = a @ params["readout.weight"].T + params["readout.bias"]
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    d_logits = (softmax - np.eye(3)[y]) / len(y)
    g = d_logits @ params["readout.weight"]
    p = a @ W.T + x @ F.T + b
    M = ((p >= 0) & (p <= 2)).astype(float)
    assert 0 < M.mean() < 1
    beta = np.stack([np.linalg.solve(np.eye(6) - W.T @ np.diag(m) / 2, gi) for m, gi in zip(M, g, strict=True)])
    delta = M * beta / 2

    back = backward(frozen, rates, d_logits, solver=solver, tol=1e-13, max_iter=500)
    np.testing.assert_allclose(back.beta, beta, atol=1e-13)
    expected = {
        "feedback.weight": delta.T @ a,
        "input.weight": delta.T @ x,
        "input.bias": delta.sum(axis=0),
        "readout.weight": d_logits.T @ a,
        "readout.bias": d_logits.sum(axis=0),
    }
    assert set(back.gradients) == set(expected) == set(network.trainable)
    for name, value in expected.items():
        np.testing.assert_allclose(back.gradients[name], value, atol=1e-13, err_msg=name)


@given(case=cases(contractive=True), recompute=st.booleans())
def test_beta_and_gradients_of_every_graph_are_the_dense_ones(case, recompute):
    frozen = case.frozen
    state = simulate(frozen, case.x, case.n_steps)
    d_logits = loss_gradient(frozen, state, case.y)
    back = backward(frozen, state, d_logits, solver="direct", tol=1e-9, recompute=recompute)

    forward, feedback, drive = case.blocks()
    W, v_th = forward + feedback, case.network.neuron.v_th
    if recompute:
        rates, p = case.sweep(state.a[:, case.feedback_sources()])
    else:
        rates, p = state.a, apply(W, state.a) + drive
    assume(np.minimum(np.abs(p), np.abs(p - v_th)).min() > 1e-11)
    slope = ((p >= 0) & (p <= v_th)) / v_th
    names = [population.name for population in case.network.populations]
    place = case.places()[names.index(case.network.readout.source)]
    g = np.zeros_like(p)
    matrix = frozen.network.readout.synapse.to_taps(case.params["readout.weight"])[0]
    g[:, place] = d_logits @ matrix.T
    beta = dense_beta(W, slope, g)
    np.testing.assert_allclose(back.beta, beta, atol=1e-12)

    # (HEBB) of the connections that nothing is folded into.
    delta = slope * beta
    cells = case.mean_input()
    for c, kept, (source, target) in zip(case.network.connections, frozen.maps, case.pairs, strict=True):
        if c.batch_norm or c.restriction:
            continue
        post = delta[:, case.places()[target]] * (1 if kept.keep is None else kept.keep)
        pre = cells if source < 0 else (rates if source < target else state.a)[:, case.places()[source]]
        if c.synapse.weight_shape:
            taps = c.synapse.to_taps(back.gradients[f"{c.name}.weight"])
            np.testing.assert_allclose(taps, c.synapse.hebbian(post, pre), atol=1e-12)
        if c.bias:
            bias = post.reshape(-1, c.synapse.out_shape[0]).sum(axis=0)
            np.testing.assert_allclose(back.gradients[f"{c.name}.bias"], bias, atol=1e-12)


@given(
    case=cases(contractive=True),
    seed=st.integers(0, 2**32 - 1),
    solver=st.sampled_from(HONEST),
    some=st.booleans(),
)
def test_beta_of_a_loss_of_any_populations_is_the_dense_one(case, seed, solver, some):
    """∂L/∂a may lie on feedback sources, on other populations and on both at once."""
    rng = np.random.default_rng(seed)
    rates = simulate(case.frozen, case.x, case.n_steps)
    there = linearise(case.frozen, rates.a, case.frozen.drive(rates.x_mean))
    g = rng.normal(size=rates.a.shape)
    for place in case.places():
        if some and rng.random() < 0.5:
            g[:, place] = 0
    forward, feedback, _ = case.blocks()
    exact = dense_beta(forward + feedback, there.slope, g)
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
    if not (case.is_spike_input and len(case.x) == 1):  # an unbiased variance takes two samples
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


@given(case=cases(), seed=st.integers(0, 2**32 - 1))
def test_outer_products_follow_the_rates_they_are_given(case, seed):
    """A linearisation moved to other rates: with constant statistics its connections are those linearised there."""
    frozen, rng = case.frozen, np.random.default_rng(seed)
    state = simulate(frozen, case.x, case.n_steps)
    drive, others = frozen.drive(state.x_mean), rng.random(state.a.shape)
    delta = rng.normal(size=state.a.shape)
    moved = replace(linearise(frozen, state.a, drive), forward=others, feedback=others)
    found, statistics = hebbian(moved, delta, state.x_mean)
    expected, statistics_there = hebbian(linearise(frozen, others, drive), delta, state.x_mean)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    for name in statistics_there:
        np.testing.assert_array_equal(statistics[name], statistics_there[name], err_msg=name)


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


@given(case=cases(contractive=True), products=st.integers(1, 4))
def test_the_certificate_bounds_the_error_of_beta(case, products):
    rates = simulate(case.frozen, case.x, case.n_steps)
    d_logits = loss_gradient(case.frozen, rates, case.y)
    sources = case.feedback_sources()
    exact = backward(case.frozen, rates, d_logits, solver="direct").beta[:, sources]
    early = backward(case.frozen, rates, d_logits, tol=1e-15, max_iter=products, allow_unconverged=True)
    error = np.linalg.norm(early.beta[:, sources] - exact, axis=1)
    assert (error <= early.certificate * (1 + 1e-9) + 1e-14).all()


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


@given(case=cases(contractive=True))
def test_recomputed_rates_are_the_same_at_the_equilibrium(case):
    state = find_equilibrium(case.frozen, case.x)
    assume(np.minimum(np.abs(state.p), np.abs(state.p - case.network.neuron.v_th)).min() > 1e-9)
    d_logits = loss_gradient(case.frozen, state, case.y)
    given_rates, recomputed = (
        backward(case.frozen, state, d_logits, solver="gmres", tol=1e-12, max_iter=500, recompute=recompute)
        for recompute in (False, True)
    )
    for name, gradient in given_rates.gradients.items():
        np.testing.assert_allclose(recomputed.gradients[name], gradient, rtol=0, atol=1e-11, err_msg=name)


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


@given(case=cases(), twice=st.booleans())
def test_running_statistics_follow_the_batch(case, twice):
    """Once, but under ``statistics_twice`` those of static input, which then are the batch's own."""
    profile, rng = Profile(statistics_twice=twice), np.random.default_rng(0)
    frozen = freeze(edited(case.network, profile), case.params, case.x, training=case.training, rng=rng)
    rates = simulate(frozen, case.x, case.n_steps)
    d_logits = loss_gradient(frozen, rates, case.y)
    back = backward(frozen, rates, d_logits, solver="direct", tol=1e-3, allow_unconverged=True)
    expected = set()
    for c, kept, (source, _) in zip(case.network.connections, frozen.maps, case.pairs, strict=True):
        if c.restriction:
            expected.add(f"{c.name}.singular_vector")
        if not c.batch_norm:
            continue
        sent = case.mean_input() if source < 0 else rates.a[:, case.places()[source]]
        z = c.synapse.apply(kept.taps, sent).reshape(-1, c.synapse.out_shape[0])
        z = z + (case.params[f"{c.name}.bias"] if c.bias else 0)
        for part, value in (("running_mean", z.mean(axis=0)), ("running_var", z.var(axis=0))):
            name = f"{c.name}.{part}"
            expected.add(name)
            running = running_update(case.params[name], value)
            if twice and case.training and source < 0 and not case.is_spike_input:
                running = running_update(running, value)
            np.testing.assert_allclose(back.statistics[name], running, atol=1e-12)
    assert set(back.statistics) == expected
    case.network.check_params({**case.params, **back.statistics})


def test_wrong_gradients_of_the_logits_are_named():
    network, params, x, _ = single_layer(IF())
    frozen = freeze(network, params)
    with pytest.raises(ValueError, match=r"d_logits has shape \(5, 2\) and dtype float64; expected \(5, 3\)"):
        backward(frozen, simulate(frozen, x, 3), np.zeros((5, 2)))


# --- the gradient check ----------------------------------------------------------------------------------------


# A case takes some 300 equilibria.
@settings(max_examples=max(1, settings.default.max_examples // 2))
@given(case=cases(contractive=True, max_populations=5))
def test_the_gradient_of_every_graph_is_the_difference_quotient(case):
    report = check_gradient(
        case.network,
        case.params,
        case.x,
        case.y,
        n_coordinates=2,
        n_directions=1,
        tol=1e-7,
        training=case.training,
    )
    assert report.passed, report.table()
    assert report.set_aside + report.unresolved < 2 * report.checked, report.table()


def flip_problem(**options):
    network, params, x, y = single_layer(IF(), n_batch=3, seed=4, **options)
    if not options.get("batch_norm", True):
        params["input.bias"] = np.full(6, 0.8)
        params["input.weight"] = 0.3 * params["input.weight"]
    rng = np.random.default_rng(0)
    frozen = freeze(network, params, x, training=True, rng=rng)
    state = find_equilibrium(frozen, x)
    gradients = backward(frozen, state, loss_gradient(frozen, state, y)).gradients
    return network, params, x, y, gradients


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_flipped_sign_anywhere_fails_the_check(batch_norm):
    network, params, x, y, gradients = flip_problem(batch_norm=batch_norm)

    def check(gradients):
        return check_gradient(network, params, x, y, gradients=gradients, n_coordinates=4, n_directions=0)

    assert check(gradients).passed, check(gradients).table()
    for name in network.trainable:
        if batch_norm and name == "input.bias":
            np.testing.assert_allclose(gradients[name], 0, atol=1e-15)
            continue
        report = check({**gradients, name: -gradients[name]})
        assert not report.passed, name
        wrong = [row.parameter for row in report.rows if not row.max_rel_error <= report.tol]
        assert wrong == [name]
        assert report.max_rel_error == pytest.approx(2, rel=1e-6)
        assert "FAILED" in report.table()


def test_gradients_of_another_shape_are_refused():
    network, params, x, y, gradients = flip_problem()
    with pytest.raises(ValueError, match=r"gradient of 'feedback.weight' has shape \(2,\); expected \(6, 6\)"):
        check_gradient(network, params, x, y, gradients={**gradients, "feedback.weight": np.zeros(2)})
