"""(FP), its Jacobian and its contraction against dense block matrices."""

import numpy as np
import pytest
from graphs import apply, cases
from hypothesis import given
from hypothesis import strategies as st

from ide_ref import (
    IF,
    Connection,
    Dense,
    Network,
    NotConverged,
    Population,
    Readout,
    build,
    contraction,
    find_equilibrium,
    freeze,
    linearise,
)
from ide_ref.equilibrium import Linearisation, fixed_point_map

seeds = st.integers(0, 2**32 - 1)


def dense_jacobian(case, slope):
    """da = D (L da + U dz) on the feedback sources: P (I - D L)⁻¹ D U Pᵀ."""
    forward, feedback, _ = case.blocks()
    D = slope[:, :, None]
    J = np.linalg.solve(np.eye(slope.shape[1]) - D * forward, D * feedback)
    sources = case.feedback_sources()
    return J[:, sources][:, :, sources]


def draw_rates(case, seed):
    return np.random.default_rng(seed).uniform(-0.2, 1.2, (len(case.x), case.network.state_size))


def linearised(case, a, **options):
    frozen = case.frozen
    return linearise(frozen, a, frozen.drive(frozen.mean_input(case.x)), **options)


@given(case=cases(), seed=seeds)
def test_one_sweep_and_its_jacobian_are_the_dense_ones(case, seed):
    sources, given_rates = case.feedback_sources(), draw_rates(case, seed)
    z = given_rates[:, sources]
    a, p = case.sweep(z)
    v_th = case.network.neuron.v_th
    J = dense_jacobian(case, ((p >= 0) & (p <= v_th)) / v_th)
    size = 1 + np.abs(p).max()
    if not case.is_spike_input:
        np.testing.assert_allclose(fixed_point_map(case.frozen, case.x, z), a[:, sources], atol=1e-13 * size)
    at = linearised(case, given_rates, recompute=True)
    v = np.random.default_rng(seed).normal(size=z.shape)
    scale = 1e-12 * (1 + np.abs(J).max())
    np.testing.assert_allclose(at.jvp(v), apply(J, v), atol=scale)
    np.testing.assert_allclose(at.vjp(v), apply(J.swapaxes(1, 2), v), atol=scale)
    np.testing.assert_allclose(at.forward, a, atol=1e-13 * size)


@given(case=cases(), seed=seeds, recompute=st.booleans(), rule=st.sampled_from(["closed", "open", "half"]))
def test_vjp_is_the_adjoint_of_jvp(case, seed, recompute, rule):
    at = linearised(case, draw_rates(case, seed), recompute=recompute, mask_rule=rule)
    v, w = np.random.default_rng(seed).normal(size=(2, len(case.x), case.network.feedback_size))
    for array in (v, w):
        array.flags.writeable = False
    forth, back = np.vdot(w, at.jvp(v)), np.vdot(at.vjp(w), v)
    assert forth == pytest.approx(back, rel=1e-12, abs=1e-12 * np.linalg.norm(w) * np.linalg.norm(at.jvp(v)))


@given(case=cases(contractive=True), seed=seeds)
def test_jvp_is_the_difference_of_the_map(case, seed):
    """σ is piecewise linear: inside a cell the difference is exact, however long the step."""
    if case.is_spike_input:
        return
    sources, given_rates = case.feedback_sources(), draw_rates(case, seed)
    z = given_rates[:, sources]
    _, p = case.sweep(z)
    v_th = case.network.neuron.v_th
    v = np.random.default_rng(seed).normal(size=z.shape)
    # By (COND) no pre-activation moves faster than V_th ‖v‖.
    room = np.minimum(np.abs(p), np.abs(p - v_th)).min(axis=1) / (v_th * np.linalg.norm(v, axis=1))
    h = np.minimum(0.5 * room, 1.0)[:, None] + 1e-300
    change = fixed_point_map(case.frozen, case.x, z + h * v) - fixed_point_map(case.frozen, case.x, z - h * v)
    expected = linearised(case, given_rates, recompute=True).jvp(v)
    assert np.all(np.abs(change / 2 - h * expected) <= 1e-13 * (1 + np.abs(p).max()))


@given(case=cases(contractive=True))
def test_the_equilibrium_solves_the_equation(case):
    found = find_equilibrium(case.frozen, case.x)
    forward, feedback, drive = case.blocks()
    p = apply(forward + feedback, found.a) + drive
    size = 1 + np.abs(drive).max()
    np.testing.assert_allclose(found.a, np.clip(p / case.network.neuron.v_th, 0, 1), rtol=0, atol=1e-13 * size)
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
def test_the_certificate_bounds_the_error(case, sweeps):
    sources = case.feedback_sources()
    exact = find_equilibrium(case.frozen, case.x).a[:, sources]
    early = find_equilibrium(case.frozen, case.x, max_iter=sweeps, allow_unconverged=True)
    assert early.iterations <= sweeps
    error = np.linalg.norm(early.a[:, sources] - exact, axis=1)
    assert (error <= early.certificate * (1 + 1e-9) + 1e-12).all()
    assert early.why_not == ""
    if len(case.network.populations) == 1:
        # One population's (CERT) as it is written, and what rounding adds to it.
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
        # ... and the products use the slope they are given.
        at = Linearisation(case.frozen, case.frozen.maps, slope, slope, slope)
        v = rng.normal(size=(len(case.x), case.network.feedback_size))
        np.testing.assert_allclose(
            at.jvp(v), apply(dense_jacobian(case, slope), v), atol=1e-12 * (1 + norm) * np.linalg.norm(v)
        )


def chain(norms, v_th=2.0):
    """One neuron a layer in a ring, where the bound is attained."""
    n = len(norms)
    network = Network(
        (1,),
        tuple(Population(f"a{i}", (1,)) for i in range(n)),
        (
            Connection("input", "input", "a0", Dense((1,), (1,)), bias=True),
            *(Connection(f"c{i}", f"a{i}", f"a{(i + 1) % n}", Dense((1,), (1,))) for i in range(n)),
        ),
        Readout(f"a{n - 1}", Dense((1,), (2,))),
        IF(v_th),
    )
    params = network.init(np.random.default_rng(0))
    params["input.weight"] = np.ones((1, 1))
    params |= {f"c{i}.weight": np.array([[norm]]) for i, norm in enumerate(norms)}
    return network, params


@pytest.mark.parametrize("norms", [[1.5], [-1.5], [1.0, 3.0], [0.5, 2.0, -1.5]])
def test_contraction_of_a_ring_is_the_product(norms):
    assert contraction(freeze(*chain(norms))) == pytest.approx(np.prod(np.abs(norms)) / 2.0 ** len(norms))


def test_contraction_of_one_layer_is_its_operator_norm():
    network = build("6 (F6)", input_shape=(2,), n_classes=2, neuron=IF(3.0), restriction=None)
    params = network.init(np.random.default_rng(0))
    expected = np.linalg.norm(params["feedback.weight"], 2) / 3
    assert contraction(freeze(network, params)) == pytest.approx(expected, rel=1e-12)


def test_without_feedback_one_sweep_is_the_answer():
    network = build("5-4", input_shape=(3,), n_classes=2, neuron=IF())
    params, x = network.init(np.random.default_rng(0)), np.random.default_rng(1).normal(1, 1, (4, 3))
    frozen = freeze(network, params, x, training=True)
    found = find_equilibrium(frozen, x)
    assert contraction(frozen) == 0
    assert found.iterations == 1
    np.testing.assert_array_equal(found.certificate, 0)
    first = found.of("a1")
    scale = 1 / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(
        found.of("a2"), np.clip(scale * first @ params["hidden1.weight"].T / 2, 0, 1), atol=1e-14
    )


def test_an_oscillation_is_reported():
    """a ← clip(1.5 - 1.5 a) jumps between two values; (COND) does not hold, and an equilibrium exists."""
    network, params = chain([-3.0])
    params["input.bias"] = np.array([3.0])
    frozen, x = freeze(network, params), np.zeros((2, 1))
    with pytest.raises(NotConverged, match=r"residual .* after 50 sweeps, tolerance 1e-13; out of .*; gamma is 1\.500"):
        find_equilibrium(frozen, x, max_iter=50)
    found = find_equilibrium(frozen, x, max_iter=50, allow_unconverged=True)
    assert not found.converged
    assert np.isinf(found.certificate).all()
    assert found.residual == pytest.approx(np.ones(2))


def test_a_train_stands_for_its_weighted_average():
    network, params = chain([1.0])
    frozen = freeze(network, params)
    x = np.random.default_rng(0).random((3, 6, 1))
    a = find_equilibrium(frozen, x).a
    np.testing.assert_allclose(a, find_equilibrium(frozen, x.mean(axis=1)).a, atol=1e-13)
    np.testing.assert_allclose(a, x.mean(axis=1) / (2 - 1), atol=1e-12)


@pytest.mark.parametrize("shape", [(4,), (3, 2), (2, 3, 4, 1)])
def test_inputs_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"x has shape .*; expected"):
        find_equilibrium(freeze(*chain([1.0])), np.zeros(shape))
