import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ide_ref import SGD
from ide_ref.training.schedule import learning_rate

unit = st.floats(0, 0.99)


@given(unit, unit, st.floats(-2, 2), st.floats(0.01, 0.5), st.integers(1, 8))
def test_steps_on_a_parabola_are_powers_of_a_matrix(momentum, decay, curvature, rate, n):
    """For L = c θ²/2 a step is linear in (θ, v): v' = μ v + (c + κ) θ, θ' = θ - η v'."""
    sgd = SGD(momentum=momentum, weight_decay=decay)
    pull = curvature + decay
    matrix = np.array([[1 - rate * pull, -rate * momentum], [pull, momentum]])
    params = {"w": np.array([1.0, -3.0]), "alpha": np.array(0.5), "running_mean": np.array([7.0])}
    start, velocity = dict(params), sgd.start(params, ("w", "alpha"))
    for _ in range(n):
        for array in (*params.values(), *velocity.values()):
            array.flags.writeable = False
        gradients = {name: curvature * params[name] for name in velocity}
        params, velocity = sgd.step(params, velocity, gradients, rate=rate)
    power = np.linalg.matrix_power(matrix, n)
    for name in ("w", "alpha"):
        np.testing.assert_allclose(params[name], power[0, 0] * start[name], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(velocity[name], power[1, 0] * start[name], rtol=1e-9, atol=1e-9)
        assert params[name].shape == start[name].shape
    assert params["running_mean"] is start["running_mean"]


def test_the_parameters_type_is_kept():
    params = {"w": np.ones(3, np.float32), "alpha": np.ones((), np.float32)}
    sgd = SGD()
    gradients = {"w": np.ones(3), "alpha": np.float64(1)}
    for arrays in sgd.step(params, sgd.start(params, params), gradients, rate=0.1):
        assert {(type(a), a.dtype) for a in arrays.values()} == {(np.ndarray, np.dtype(np.float32))}


def test_the_rate_falls_after_each_milestone():
    rates = [learning_rate(0.5, epoch=e, step=100, milestones=(2, 3), gamma=0.1) for e in range(5)]
    assert rates == pytest.approx([0.5, 0.5, 0.05, 0.005, 0.005])


def test_the_rate_rises_to_its_value_within_the_warm_up():
    rates = [learning_rate(0.8, epoch=0, step=s, warmup_steps=4) for s in range(6)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


@pytest.mark.parametrize(("shape", "ulps"), [((3, 4), 0), ((400, 350), 8)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps_are_those_of_the_formula(dtype, shape, ulps):
    """To the last bit; large arrays, which the kernel may fuse, to rounding."""
    rng = np.random.default_rng(3)
    theta = rng.normal(size=shape).astype(dtype)
    sgd, mu, kappa = SGD(momentum=0.9, weight_decay=0.01), dtype(0.9), dtype(0.01)
    params, velocity = {"w": theta}, sgd.start({"w": theta}, ["w"])
    expected, v = theta.copy(), np.zeros_like(theta)
    for rate in (0.5, 0.25, 0.125):
        gradient = rng.normal(size=shape).astype(dtype)
        params, velocity = sgd.step(params, velocity, {"w": gradient}, rate=rate)
        v = expected * kappa + gradient + v * mu
        expected = expected - v * dtype(rate)
    tolerance = ulps * np.finfo(dtype).eps
    for found, known in ((params["w"], expected), (velocity["w"], v)):
        assert found.dtype == dtype
        np.testing.assert_allclose(found, known, rtol=tolerance, atol=tolerance)
