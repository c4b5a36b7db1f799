"""Loss and optimiser against their formulas, written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ide_ref import SGD, cross_entropy


@given(st.integers(1, 6), st.integers(2, 7), st.integers(0, 99))
def test_the_loss_is_the_mean_of_minus_the_log_of_the_softmax(n, k, seed):
    rng = np.random.default_rng(seed)
    logits, y = rng.normal(0, 3, (n, k)), rng.integers(0, k, n)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss, gradient = cross_entropy(logits, y)
    assert loss == pytest.approx(-np.mean([np.log(row[label]) for row, label in zip(p, y, strict=True)]), rel=1e-12)
    np.testing.assert_allclose(gradient, (p - np.eye(k)[y]) / n, atol=1e-15)


def test_the_largest_logits_of_float32_give_no_nan():
    loss, gradient = cross_entropy(np.array([[1.5e38, 1.5e38, -1.5e38]], np.float32), [0])
    assert loss == pytest.approx(np.log(2))
    np.testing.assert_allclose(gradient, [[-0.5, 0.5, 0]])


@pytest.mark.parametrize("label", [2**63, -(2**63)])
def test_a_label_beyond_every_class_is_refused(label):
    with pytest.raises(ValueError, match="expected 0 to 2"):
        cross_entropy(np.zeros((1, 3)), np.array([label]))


def test_two_steps_by_hand():
    """θ = 2, ∇L = 1 and then 3, μ = 1/2, κ = 1/4, η = 1/8: every number is exact."""
    sgd = SGD(momentum=0.5, weight_decay=0.25)
    params, velocity = sgd.step({"w": np.array([2.0])}, {"w": np.zeros(1)}, {"w": np.array([1.0])}, rate=0.125)
    assert (velocity["w"][0], params["w"][0]) == (1.5, 1.8125)
    params, velocity = sgd.step(params, velocity, {"w": np.array([3.0])}, rate=0.125)
    assert (velocity["w"][0], params["w"][0]) == (4.203125, 1.287109375)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps_are_those_of_a_loop_over_numbers(dtype):
    rng = np.random.default_rng(3)
    theta = rng.normal(size=(3, 4)).astype(dtype)
    sgd, mu, kappa = SGD(momentum=0.9, weight_decay=0.01), dtype(0.9), dtype(0.01)
    params, velocity = {"w": theta}, sgd.start({"w": theta}, ["w"])
    expected, v = theta.copy(), np.zeros_like(theta)
    for rate in (0.5, 0.25, 0.125):
        gradient = rng.normal(size=theta.shape).astype(dtype)
        params, velocity = sgd.step(params, velocity, {"w": gradient}, rate=rate)
        for i in np.ndindex(theta.shape):
            v[i] = expected[i] * kappa + gradient[i] + v[i] * mu
            expected[i] = expected[i] - v[i] * dtype(rate)
    assert params["w"].tobytes() == expected.tobytes()
    assert velocity["w"].tobytes() == v.tobytes()
