import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ide_ref import cross_entropy


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_logit_is_too_large(dtype):
    # Each row's own largest logit is taken off: the second row's are far below the first's.
    loss, gradient = cross_entropy(np.array([[1e4, -1e4], [-3e4, -1e4]], dtype), [0, 0])
    assert (loss, gradient.dtype) == (1e4, dtype)
    np.testing.assert_array_equal(gradient, [[0, 0], [-0.5, 0.5]])
    loss, gradient = cross_entropy(np.array([[1.5e38, 1.5e38, -1.5e38]], dtype), [0])
    assert loss == pytest.approx(np.log(2))
    np.testing.assert_allclose(gradient, [[-0.5, 0.5, 0]])


@pytest.mark.parametrize(
    ("logits", "y", "message"),
    [
        (np.zeros((2, 3)), [0, 3], "y holds labels 0 to 3, expected 0 to 2"),
        (np.zeros((2, 3)), [-1, 2], "y holds labels -1 to 2, expected 0 to 2"),
        *((np.zeros((1, 3)), np.array([label]), f"y holds labels {label} to ") for label in (2**63, -(2**63))),
        (np.zeros(3), [0], "logits has shape (3,) and dtype float64, expected floats of shape (B, n_classes)"),
        (np.zeros((2, 3), int), [0, 1], "logits has shape (2, 3) and dtype int64, expected floats"),
    ],
)
def test_wrong_arguments(logits, y, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        cross_entropy(logits, y)


@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 99), st.floats(-1e3, 1e3))
def test_the_loss_is_the_mean_of_minus_the_log_of_the_softmax(n, k, seed, constant):
    """... and the gradient softmax minus one-hot, whatever constant is added to the logits."""
    rng = np.random.default_rng(seed)
    logits, y = rng.normal(0, 3, (n, k)), rng.integers(0, k, n)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    exact = -np.mean([np.log(row[label]) for row, label in zip(p, y, strict=True)])
    for moved, rel, tol in ((logits, 1e-12, 1e-15), (logits + constant, 0, 1e-11)):
        moved.flags.writeable = False
        loss, gradient = cross_entropy(moved, y)
        assert loss == pytest.approx(exact, rel=rel, abs=1e-11)
        np.testing.assert_allclose(gradient, (p - np.eye(k)[y]) / n, atol=tol)
        np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-15)


@given(st.integers(1, 6), st.integers(1, 7), st.floats(0, 0.99), st.sampled_from([np.float32, np.float64]))
def test_smoothed_labels_share_with_all_classes(n, k, smoothing, dtype):
    rng = np.random.default_rng(n + 10 * k)
    logits, y = rng.normal(0, 3, (n, k)).astype(dtype), rng.integers(0, k, n)
    exact = logits.astype(float)
    p = np.exp(exact) / np.exp(exact).sum(axis=1, keepdims=True)
    q = (1 - smoothing) * np.eye(k)[y] + smoothing / k
    loss, gradient = cross_entropy(logits, y, label_smoothing=smoothing)
    tol = 20 * float(np.finfo(dtype).eps)
    assert loss == pytest.approx(-np.mean(np.sum(q * np.log(p), axis=1)), rel=tol, abs=10 * tol)
    np.testing.assert_allclose(gradient, (p - q) / n, rtol=0, atol=tol)
    assert gradient.dtype == dtype


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, None, "x", float("nan")])
def test_wrong_smoothing(smoothing):
    with pytest.raises(ValueError, match=r"label_smoothing is .*; expected a number in \[0, 1\)"):
        cross_entropy(np.zeros((1, 2)), [0], label_smoothing=smoothing)


def test_smoothed_losses_of_large_logits_do_not_overflow():
    loss, gradient = cross_entropy(np.array([[1e38, -1e38, -1e38]], np.float32), [0], label_smoothing=0.3)
    assert loss == pytest.approx(0.3 * 2 / 3 * 2e38)
    np.testing.assert_allclose(gradient, [[0.2, -0.1, -0.1]], rtol=1e-6)
