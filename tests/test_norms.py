"""Norms from above: never below the exact one, by whatever way they are found."""

import math
from fractions import Fraction

import numpy as np
import pytest
from graphs import synapses_between
from hypothesis import example, given
from hypothesis import strategies as st

from ide_ref import norms
from ide_ref.norms import EXACT_SIZE, matrix_norm, operator_norm
from ide_ref.synapses import AvgPool2d, Conv2d, ConvTranspose2d, Dense

seeds = st.integers(0, 2**32 - 1)
shapes = st.sampled_from([(1,), (3,), (1, 1, 1), (2, 4, 4), (3, 5, 3), (1, 6, 6), (2, 2, 7)])


def exceeds(W, bound: float) -> bool:
    """Whether ‖W‖₂ > bound beyond doubt: ‖W v‖ > bound ‖v‖ for some v, in rational arithmetic."""
    v = np.linalg.svd(W)[2][0]
    rows = [[Fraction(float(w)) for w in row] for row in W]
    vs = [Fraction(float(x)) for x in v]
    image = [sum((w * x for w, x in zip(row, vs, strict=True)), Fraction(0)) for row in rows]
    return sum(x * x for x in image) > Fraction(bound) ** 2 * sum(x * x for x in vs)


@given(m=st.integers(1, 6), n=st.integers(1, 6), seed=seeds, size=st.floats(-280, 140))
def test_no_vector_is_stretched_by_more_than_a_matrix_norm(m, n, seed, size):
    W = np.random.default_rng(seed).normal(size=(m, n)) * 10.0**size
    norm = matrix_norm(W)
    assert not exceeds(W, norm.upper)
    assert exceeds(W, norm.value * (1 - 1e-12) if norm.value > 1e-290 else 0.0)
    assert norm.value <= norm.upper <= norm.value * (1 + 1e-13) + 1e-300


@given(x=st.floats(0, 1e308), n=st.integers(0, 200))
@example(x=1.0, n=100)
@example(x=0.0, n=100)
def test_what_is_raised_or_lowered_has_room_for_so_many_roundings(x, n):
    """Whatever n roundings made x of, with underflow or without; and little more than that is given away."""
    exact, u, grain = Fraction(x), Fraction(1, 2**53), Fraction(1, 2**1074)
    for array in (x, np.array([x])):
        up, down = (Fraction(float(np.max(moved(array, n)))) for moved in (norms.raised, norms.lowered))
        assert exact / (1 - u) ** n + n * grain <= up <= exact * (1 + (n + 7) * u) + (n + 5) * grain
        assert exact / (1 + u) ** n - n * grain >= down >= exact * (1 - (n + 7) * u) - (n + 5) * grain


def test_the_norm_of_nothing_and_of_what_is_not_finite():
    assert matrix_norm(np.zeros((3, 2))).upper < 1e-300
    for value in (np.nan, np.inf):
        assert matrix_norm(np.full((2, 2), value)).upper == math.inf


@given(in_shape=shapes, out_shape=shapes, seed=seeds, dtype=st.sampled_from([np.float32, np.float64]), data=st.data())
def test_symbol_and_gram_bound_the_norm_of_every_synapse(in_shape, out_shape, seed, dtype, data):
    synapse = data.draw(st.sampled_from(synapses_between(in_shape, out_shape, False)))
    rng = np.random.default_rng(seed)
    taps = synapse.to_taps(rng.normal(size=synapse.weight_shape).astype(dtype))
    scale = data.draw(st.sampled_from([None, rng.normal(size=out_shape[0]).astype(dtype)]))
    W = synapse.apply(taps.astype(np.float64), np.eye(synapse.n_in)).T
    if scale is not None:
        W = synapse.out_channels(scale.astype(np.float64))[:, None] * W
    exact = operator_norm(synapse, taps, scale)
    assert not exceeds(W, exact.upper * (1 + 1e-14))
    size = max(synapse.n_in, synapse.n_out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norms, "EXACT_SIZE", size)
        assert operator_norm(synapse, taps, scale) == exact
        patch.setattr(norms, "EXACT_SIZE", size - 1)
        large = operator_norm(synapse, taps, scale)
    assert large.upper >= exact.value * (1 - 1e-13)
    assert large.value <= exact.upper
    if not isinstance(synapse, Dense):
        assert large.upper == norms._symbol_bound(synapse, taps.astype(np.float64), scale)
    else:
        assert large.upper <= exact.value * (1 + 1e-6) + 1e-300


@pytest.mark.parametrize(
    "synapse",
    [
        Conv2d.over((3, 12, 12), 4, kernel=3),
        Conv2d.over((3, 14, 14), 4, kernel=5, stride=2),
        Conv2d.over((2, 16, 16), 3, kernel=4, stride=3, padding=2),
        ConvTranspose2d.over((3, 8, 8), 2, kernel=3),
        AvgPool2d.over((3, 16, 16), kernel=2),
        AvgPool2d.over((3, 16, 16), kernel=3, stride=1, padding=1),
    ],
    ids=str,
)
def test_the_symbols_bound_is_close_on_large_pictures(synapse):
    taps = synapse.to_taps(np.random.default_rng(0).normal(size=synapse.weight_shape))
    scale = np.array([0.5, -2.0, 1.0, 0.25])[: synapse.out_shape[0]]
    W = synapse.out_channels(scale)[:, None] * synapse.apply(taps, np.eye(synapse.n_in)).T
    truth = np.linalg.norm(W, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norms, "EXACT_SIZE", 10)
        found = operator_norm(synapse, taps, scale)
    assert truth <= found.upper <= 1.1 * truth
    assert found.value == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("size", [1e-200, 1e-160, 1.0, 1e160])
def test_a_large_norm_is_bounded_at_any_size(size):
    """Squares of the entries leave the range: the bound of a matrix of 1e-200 would be 0."""
    found = matrix_norm(np.full((EXACT_SIZE + 1, 2), size))
    exact = size * np.sqrt(2 * (EXACT_SIZE + 1))
    assert found.value == pytest.approx(exact, rel=1e-12)
    assert exact * (1 - 1e-15) <= found.upper <= exact * (1 + 1e-6)


@pytest.mark.parametrize("shape", [(1, 2), (EXACT_SIZE + 1, 2)])
def test_a_norm_beyond_the_range_is_infinite_without_a_warning(shape):
    assert matrix_norm(np.full(shape, 1.7e308)) == (math.inf, math.inf)


def test_a_kernel_of_ones_is_largest_on_the_grid():
    """Sixteen points for each degree: on one of them lies its largest."""
    found = norms._symbol_bound(Conv2d.over((1, 8, 8), 1, kernel=3), np.ones((9, 1, 1)), None)
    assert found == pytest.approx(9 / math.cos(math.pi / 16), rel=1e-12)


@given(taps=st.lists(st.floats(-1, 1), min_size=2, max_size=3))
def test_the_symbols_bound_is_one_between_the_points_of_its_grid_too(taps):
    row, synapse = np.array(taps), Conv2d.over((1, 8, 8), 1, kernel=len(taps))
    bound = norms._symbol_bound(synapse, np.outer(row, row).reshape(-1, 1, 1), None)
    finely = np.abs(np.fft.fft(row, 4096)).max() ** 2
    assert finely * (1 - 1e-12) <= bound <= finely * 1.02 + 1e-150


@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (1, EXACT_SIZE + 1), (EXACT_SIZE + 1, 1)])
@pytest.mark.parametrize("size", [1e-200, 1.0, 1e200])
def test_the_norm_of_one_row_or_column_is_its_length_at_any_size(shape, size):
    found = matrix_norm(np.full(shape, size))
    exact = size * np.sqrt(max(shape))
    assert found.value == pytest.approx(exact, rel=1e-13)
    assert exact * (1 - 1e-15) <= found.upper <= exact * (1 + 1e-11)
    assert matrix_norm(size * np.array([[0.0, -3.0, 4.0]])).value == pytest.approx(5 * size, rel=1e-15)
