"""Neurons: (RATE)'s weights, σ and its masks."""

import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ide_ref import IF, LIF, equations
from ide_ref.neurons import Neuron

leaks = st.floats(0.05, 1.0)


slow = st.builds(lambda k, digit: 1 - digit * 10.0**-k, st.integers(1, 16), st.integers(1, 9))


@settings(max_examples=100)
@given(leak=slow | st.floats(1e-300, 1, exclude_min=True), t=st.integers(0, 10_000) | st.integers(0, 3))
@example(leak=1 - 2.0**-53, t=10_000)
@example(leak=5e-324, t=2)
def test_total_weight_is_right_to_rounding(leak, t):
    """Against 40 digits more than any that matters; the powers are exact in fractions, cut where they are longer."""
    exact = (1 - power(Fraction(leak), t)) / (1 - Fraction(leak)) if leak < 1 else Fraction(t)
    error = abs(Fraction(Neuron(leak).total_weight(t)) - exact)
    assert error <= exact * Fraction(1e-14)


def power(base, exponent):
    """baseᵗ to 10⁻⁹⁰, as a fraction whose length does not grow with t."""
    result, scale = Fraction(1), 2**300
    while exponent:
        if exponent & 1:
            result = Fraction(round(result * base * scale), scale)
        base = Fraction(round(base * base * scale), scale)
        exponent >>= 1
    return result


@given(leak=slow, n_steps=st.integers(1, 300), train_seed=st.integers(0, 99))
def test_a_slow_leak_averages_what_the_weights_say(leak, n_steps, train_seed):
    x = np.random.default_rng(train_seed).integers(0, 2, (1, n_steps)).astype(float)
    weights = [Fraction(leak) ** i if i < 3 else power(Fraction(leak), i) for i in range(n_steps - 1, -1, -1)]
    exact = float(sum(w for w, on in zip(weights, x[0], strict=True) if on) / sum(weights))
    assert Neuron(leak).time_average(x)[0] == pytest.approx(exact, rel=1e-13, abs=0)


@given(leak=leaks, n_steps=st.integers(1, 12), seed=st.integers(0, 99))
def test_time_average_is_the_equation_s(leak, n_steps, seed):
    x = np.random.default_rng(seed).normal(size=(2, n_steps, 3, 2))
    expected = equations.average(x.reshape(2, n_steps, 6), leak).reshape(2, 3, 2)
    np.testing.assert_allclose(Neuron(leak).time_average(x), expected, atol=1e-12)


def test_time_average_keeps_floats_and_lifts_integers():
    x = np.array([[[0], [1], [1]]], np.uint8)
    assert IF().time_average(x) == pytest.approx(2 / 3)
    assert IF().time_average(x).dtype == np.float64
    assert LIF().time_average(x.astype(np.float32)).dtype == np.float32
    for shape in ((2, 0, 3), (2,), ()):
        with pytest.raises(ValueError, match=re.escape(f"x has shape {shape}; expected (batch, steps, ...) with")):
            IF().time_average(np.zeros(shape))


def test_sigma_and_masks_at_the_ends():
    p = np.array([-0.5, 0.0, 1.0, 2.0, 2.5])
    neuron = IF(2.0)
    np.testing.assert_array_equal(neuron.sigma(p), [0, 0, 0.5, 1, 1])
    np.testing.assert_array_equal(neuron.mask(p), [0, 1, 1, 1, 0])
    np.testing.assert_array_equal(neuron.mask(p, "closed"), [0, 1, 1, 1, 0])
    np.testing.assert_array_equal(neuron.mask(p, "open"), [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(neuron.mask(p, "half"), [0, 0, 1, 1, 0])
    assert neuron.sigma(p.astype(np.float32)).dtype == np.float32
    for function in (neuron.mask, neuron.slope):
        with pytest.raises(ValueError, match="mask rule 'shut' is unknown; expected 'closed', 'open' or 'half'"):
            function(p, "shut")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rule", ["closed", "open", "half"])
def test_slopes_are_where_the_masks_are(rule, dtype):
    neuron = IF(0.7)
    v_th = dtype(0.7)
    ends = [-1, -0.0, 0, np.nextafter(dtype(0), dtype(1)), np.nextafter(v_th, dtype(0)), v_th]
    p = np.array([*ends, np.nextafter(v_th, dtype(1)), np.inf, -np.inf, np.nan], dtype)
    p = np.random.default_rng(0).permuted(np.tile(p, (7, 5)), axis=1)
    slope = neuron.slope(p, rule)
    assert slope.dtype == dtype
    np.testing.assert_array_equal(slope, neuron.mask(p, rule) / v_th)
    np.testing.assert_array_equal(neuron.slope(p[:, ::2], rule), slope[:, ::2])


def test_lif_is_no_if():
    with pytest.raises(ValueError, match=r"use IF\(\) for 1"):
        LIF(1.0)
