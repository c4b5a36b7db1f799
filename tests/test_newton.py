"""The equilibrium by Newton's method on the active set and by Anderson acceleration."""

import numpy as np
import pytest
from graphs import cases
from hypothesis import given
from hypothesis import strategies as st
from theorems import system_of, systems

from ide_ref import IF, NotConverged, build, equilibrium, find_equilibrium, freeze, solvers
from ide_ref.authors import Profile, edited
from ide_ref.equilibrium import linearise


def feedback_of(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    W = rng.normal(size=(n, n))
    return {
        "random": W,
        "symmetric": W + W.T,
        "skew": W - W.T,
        "excitatory": np.abs(W),
        "inhibitory": -np.abs(W),
        "orthogonal": np.linalg.qr(W)[0],
        "negative": -W @ W.T,
        "positive": W @ W.T,
    }[kind]


def wide(kind: str, gamma: float, seed: int, n: int = 400):
    rng = np.random.default_rng(seed)
    network = build(f"{n} (F{n})", input_shape=(5,), n_classes=2, neuron=IF(), batch_norm=False, restriction=None)
    params = network.init(rng)
    W = feedback_of(kind, n, rng)
    params["feedback.weight"] = W * (2 * gamma / np.linalg.norm(W, 2))
    params["input.weight"] = rng.normal(size=(n, 5))
    params["input.bias"] = rng.normal(0.3, 0.5, n)
    return freeze(network, params), rng.normal(size=(1, 5)), params


@pytest.mark.slow
@pytest.mark.parametrize("sigma", ["clip", "relu"])
def test_newton_ends_within_20_steps_at_dimension_400(sigma):
    kinds = ["random", "symmetric", "skew", "excitatory", "inhibitory", "orthogonal", "negative", "positive"]
    steps = []
    for seed in range(16):
        gamma = 0.99 if seed // 8 else np.random.default_rng(seed).uniform(0, 0.99)
        frozen, x, params = wide(kinds[seed % 8], gamma, seed)
        found = find_equilibrium(frozen, x, method="newton", sigma=sigma, allow_unconverged=True)
        p = found.a @ params["feedback.weight"].T + x @ params["input.weight"].T + params["input.bias"]
        residual = np.linalg.norm(np.clip(p / 2, 0, 1 if sigma == "clip" else np.inf) - found.a)
        good = residual <= 1e-13 * (1 + np.linalg.norm(found.a))
        steps.append(found.iterations if good else np.inf)
    assert np.mean(np.array(steps) <= 20) >= 0.95, steps


@given(system=systems(), sigma=st.sampled_from(["clip", "relu"]))
def test_all_methods_find_the_one_equilibrium(system, sigma):
    truth = system.equilibrium(sigma)
    gamma = equilibrium.contraction(system.frozen)
    for method in ("newton", "anderson", "iterate"):
        found = find_equilibrium(system.frozen, system.x_star, method=method, sigma=sigma, max_iter=20000)
        assert found.converged
        if gamma < 0.9:
            np.testing.assert_allclose(found.a, truth, atol=1e-10)
        p = found.p
        upper = system.v_th if sigma == "clip" else np.inf
        np.testing.assert_array_equal(found.branch, (p > upper).astype(int) - (p < 0))
        np.testing.assert_allclose(found.a, np.clip(p, 0, upper) / system.v_th, atol=1e-13)


@pytest.mark.kernels
@given(case=cases(contractive=True))
def test_newton_agrees_with_the_sweep_for_every_synapse(case):
    by_sweep = find_equilibrium(case.frozen, case.x)
    size, gmres, steps = case.network.feedback_size, solvers.gmres, []

    def watched(*system, **options):
        steps.append(gmres(*system, **options))
        return steps[-1]

    for dense_size in (size, size - 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(equilibrium, "DENSE_SIZE", dense_size)
            patch.setattr(solvers, "gmres", watched)
            found = find_equilibrium(case.frozen, case.x, method="newton")
        assert len(steps) == (found.iterations if dense_size < size else 0)
        assert found.iterations <= 20
        np.testing.assert_allclose(found.a, by_sweep.a, atol=1e-11)
        np.testing.assert_allclose(found.p, by_sweep.p, atol=1e-10 * max(1, np.abs(by_sweep.p).max()))


def test_ends_of_the_slope_are_on_it():
    """p of 0 and of V_th exactly: the closed mask's piece, and for ReLU there is no upper end."""
    network = build("5 (F5)", input_shape=(5,), n_classes=2, neuron=IF(), batch_norm=False, restriction=None)
    params = network.init(np.random.default_rng(0))
    params["input.weight"], params["feedback.weight"] = np.eye(5), np.zeros((5, 5))
    frozen = freeze(network, params)
    p = np.array([[-0.5, 0.0, 1.0, 2.0, 2.5]])
    for sigma, expected in (("clip", [-1, 0, 0, 0, 1]), ("relu", [-1, 0, 0, 0, 0])):
        found = find_equilibrium(frozen, p, sigma=sigma)
        np.testing.assert_array_equal(found.p, p)
        np.testing.assert_array_equal(found.branch[0], expected)
    slope = linearise(frozen, found.a, frozen.drive(p)).slope
    np.testing.assert_array_equal(slope[0] > 0, [False, True, True, True, False])


def test_newton_ends_exactly_where_it_begins_on_the_right_pieces():
    system = system_of(IF(), [30], [(-1, 0), (0, 0)], np.random.default_rng(0), 0.95)
    truth = find_equilibrium(system.frozen, system.x, method="newton")
    near = truth.a + 1e-9 * np.random.default_rng(1).normal(size=truth.a.shape)
    again = find_equilibrium(system.frozen, system.x, method="newton", start=near)
    assert again.iterations == 1
    assert again.residual.max() < 1e-14


def test_newton_finds_a_solution_where_the_sweep_does_not_converge():
    """W = −3: the sweep jumps between 0 and 1 for ever, the solution is d/(V + 3)."""
    network = build("1 (F1)", input_shape=(1,), n_classes=2, neuron=IF(), batch_norm=False, restriction=None)
    params = network.init(np.random.default_rng(0))
    params["feedback.weight"][:] = -3.0
    params["input.weight"][:] = 1.0
    frozen = freeze(network, params)
    x = np.array([[1.5]])
    with pytest.raises(NotConverged, match=r"residual .* after 50 sweeps, tolerance 1e-13; out of .*; gamma is 1\.500"):
        find_equilibrium(frozen, x, max_iter=50)
    jumping = find_equilibrium(frozen, x, max_iter=50, allow_unconverged=True)
    assert not jumping.converged
    assert np.isinf(jumping.certificate).all()
    assert jumping.residual == pytest.approx(0.75)
    found = find_equilibrium(frozen, x, method="newton")
    np.testing.assert_allclose(found.a, [[0.3]], atol=1e-15)
    begun = {"method": "newton", "start": np.ones((1, 1)), "max_iter": 1}
    with pytest.raises(NotConverged, match="after 1 steps of newton"):
        find_equilibrium(frozen, x, **begun)
    # What one step of Newton's leads to is judged as it is.
    one_step = find_equilibrium(frozen, x, **begun, allow_unconverged=True)
    assert (one_step.a, one_step.residual) == (0.0, 0.75)
    # A start that is just good enough is left as it is: f(0) is 0.75.
    assert find_equilibrium(frozen, x, method="newton", tol=0.75).iterations == 0
    # A step must take a tenth off the residual, which was 1: to 0.85 it may stay, not to 0.925; half of it may.
    for drive, a in ((1.7, 0.0), (1.85, 0.5)):
        assert find_equilibrium(frozen, np.array([[drive]]), **begun, allow_unconverged=True).a == a
    # W = 6 and p = 1.98 at 5: only 1/100 of the step stays on the slope, and so short a step gives way to a sweep.
    steep = freeze(network, {**params, "feedback.weight": np.full((1, 1), 6.0)})
    begun["start"] = np.full((1, 1), 5.0)
    swept = find_equilibrium(steep, np.array([[-28.02]]), **begun, allow_unconverged=True).a
    np.testing.assert_allclose(swept, [[0.99]])


@pytest.mark.parametrize("sigma", ["clip", "relu"])
@given(
    n=st.integers(1, 30),
    n_batch=st.integers(1, 9),
    gamma=st.floats(0.0, 3.0),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_newton_takes_every_sample_as_far_as_it_goes_alone(sigma, n, n_batch, gamma, dtype, seed):
    """Of a tolerance beyond the dtype's: each ends where no step makes its own residual smaller."""
    frozen, _, params = wide("random", gamma, seed, n)
    frozen = freeze(frozen.network, {name: value.astype(dtype) for name, value in params.items()})
    x = np.random.default_rng(seed).normal(size=(n_batch, 5)).astype(dtype)
    options = {"method": "newton", "sigma": sigma, "tol": 1e-30, "allow_unconverged": True, "max_iter": 100}
    found = find_equilibrium(frozen, x, **options)
    alone = [find_equilibrium(frozen, x[i : i + 1], **options) for i in range(n_batch)]
    assert found.iterations == max(each.iterations for each in alone) < 40
    for i, each in enumerate(alone):
        np.testing.assert_array_equal(found.a[i], each.a[0])
    if gamma < 0.9:
        assert np.all(found.residual <= 100 * np.finfo(dtype).eps * (1 + np.linalg.norm(found.a, axis=1)))


def test_coupled_samples():
    network = build("6-6 (F6)", input_shape=(3,), n_classes=2, neuron=IF())
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 3))
    frozen = freeze(edited(network, Profile(batch_statistics_in_beta=True)), network.init(rng), x, training=True)
    found = find_equilibrium(frozen, x, method="newton", allow_unconverged=True)
    assert np.all(np.isfinite(found.a))
    # Its Jacobian's products, forwards and back, with the coupling in both.
    jacobian = linearise(frozen, found.a, frozen.drive(x))
    v, w = rng.normal(size=(2, 5, 6))
    one = np.eye(5)[:, :1] * v
    assert np.abs(jacobian.jvp(one)[1:]).max() > 1e-3
    assert np.vdot(w, jacobian.jvp(v)) == pytest.approx(np.vdot(jacobian.vjp(w), v), rel=1e-12)
