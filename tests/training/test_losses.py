import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ide_ref import cross_entropy


@st.composite
def batches(draw):
    n, k = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    logits = draw(arrays(np.float64, (n, k), elements=st.floats(-8, 8)))
    logits.flags.writeable = False
    return logits, np.array(draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n)))


@given(batches())
def test_the_gradient_is_the_loss_s_difference(batch):
    logits, y = batch
    loss, gradient = cross_entropy(logits, y)
    h = 1e-5
    for i in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[i] = h
        difference = (cross_entropy(logits + step, y)[0] - cross_entropy(logits - step, y)[0]) / (2 * h)
        assert gradient[i] == pytest.approx(difference, abs=1e-9)
    assert loss >= 0


@given(batches(), st.floats(-1e3, 1e3))
def test_a_constant_added_to_a_sample_changes_nothing(batch, constant):
    logits, y = batch
    loss, gradient = cross_entropy(logits, y)
    moved, moved_gradient = cross_entropy(logits + constant, y)
    assert moved == pytest.approx(loss, abs=1e-11)
    np.testing.assert_allclose(moved_gradient, gradient, atol=1e-11)
    np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_logit_is_too_large(dtype):
    loss, gradient = cross_entropy(np.array([[1e4, -1e4], [-1e4, 1e4]], dtype), [0, 0])
    assert loss == 1e4
    assert gradient.dtype == dtype
    np.testing.assert_array_equal(gradient, [[0, 0], [-0.5, 0.5]])


@pytest.mark.parametrize(
    ("logits", "y", "message"),
    [
        (np.zeros((2, 3)), [0], "y has shape (1,), expected (2,): one label per sample"),
        (np.zeros((2, 3)), [0.0, 1.0], "y has dtype float64, expected integers"),
        (np.zeros((2, 3)), [0, 3], "y holds labels 0 to 3, expected 0 to 2"),
        (np.zeros((2, 3)), [-1, 0], "y holds labels -1 to 0, expected 0 to 2"),
        (np.zeros(3), [0], "logits has shape (3,) and dtype float64, expected floats of shape (B, n_classes)"),
        (np.zeros((2, 3), int), [0, 1], "logits has shape (2, 3) and dtype int64, expected floats"),
        (np.zeros((0, 3)), [], "logits has shape (0, 3)"),
    ],
)
def test_wrong_arguments(logits, y, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        cross_entropy(logits, y)


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
