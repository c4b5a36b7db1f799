"""(NORM), (BN) and dropout: folds and pull-backs against the equations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ide_ref import equations
from ide_ref._kernels import elementwise
from ide_ref.constraints import (
    BatchNorm,
    affine,
    batch_statistics,
    channel_sums,
    dropout_mask,
    leading_singular_pair,
    multiply,
    power_step,
    restrict_pull_back,
    singular_tolerance,
)
from ide_ref.synapses import Conv2d, ConvTranspose2d, Dense

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 40)


def leading(A, start, **options):
    return leading_singular_pair(lambda v: A @ v, lambda u: A.T @ u, start, **{"tol": 1e-12, **options})


def matrix(rng, rows, columns, spectrum):
    """A matrix with the singular values that ``spectrum`` makes of k = 0, 1, ..."""
    k = min(rows, columns)
    u = np.linalg.qr(rng.normal(size=(rows, k)))[0]
    v = np.linalg.qr(rng.normal(size=(columns, k)))[0]
    return u @ np.diag(spectrum(np.arange(k))) @ v.T


SPECTRA = {
    "spread": lambda k: 3.0 * 0.8**k,
    "clustered": lambda k: 2.0 - 1e-4 * k,
    "rank one": lambda k: 1.5 * (k == 0),
    "all equal": lambda k: 0.7 + 0.0 * k,
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@given(rows=sizes, columns=sizes, seed=seeds)
def test_leading_singular_pair_is_the_svd(spectrum, rows, columns, seed):
    rng = np.random.default_rng(seed)
    A = matrix(rng, rows, columns, SPECTRA[spectrum])
    pair = leading(A, rng.normal(size=columns))
    assert pair.value == pytest.approx(np.linalg.norm(A, 2), rel=1e-12)
    assert pair.residual <= 1e-12
    assert np.linalg.norm(pair.left) == pytest.approx(1, abs=1e-12)
    assert np.linalg.norm(pair.right) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(A @ pair.right, pair.value * pair.left, atol=1e-11)
    np.testing.assert_allclose(A.T @ pair.left, pair.value * pair.right, atol=1e-11)


def test_a_good_start_saves_products():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(200, 200)).astype(np.float32)
    products = []

    def apply(v):
        products.append(v)
        return A @ v

    first = leading_singular_pair(apply, lambda u: A.T @ u, rng.normal(size=200).astype(np.float32), tol=1e-5)
    cold = len(products)
    again = leading_singular_pair(apply, lambda u: A.T @ u, first.right, tol=1e-5)
    assert len(products) - cold < cold
    assert again.value == pytest.approx(first.value, rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("place", [1, 2, -1])
def test_a_start_without_the_leading_vector_finds_it(dtype, place):
    """Another singular vector, as when the largest value has been overtaken since the last search."""
    A = matrix(np.random.default_rng(2), 30, 20, SPECTRA["spread"])
    start = np.linalg.svd(A)[2][place].astype(dtype)
    pair = leading(A.astype(dtype), start, tol=singular_tolerance(dtype))
    assert pair.left.dtype == pair.right.dtype == dtype
    assert pair.value == pytest.approx(np.linalg.norm(A, 2), rel=1e-6 if dtype == np.float32 else 1e-12)
    assert singular_tolerance(dtype) == (1e-5 if dtype == np.float32 else 1e-12)
    assert singular_tolerance(dtype, training=True) == (1e-3 if dtype == np.float32 else 1e-12)


SYNAPSES = [
    Dense((30,), (40,)),
    Dense((8,), (50,)),
    Conv2d.over((3, 6, 5), 4, kernel=3),
    Conv2d.over((2, 7, 7), 3, kernel=5, stride=2),
    ConvTranspose2d.over((3, 4, 3), 2, kernel=3),
]


@pytest.mark.parametrize("synapse", SYNAPSES, ids=lambda s: type(s).__name__)
def test_norms_of_drawn_weights_are_within_a_hundred_thousandth(synapse):
    """Float32, from a drawn vector, and from the one found before a step of the optimiser."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        weight = rng.uniform(-1, 1, synapse.weight_shape)
        start = rng.normal(size=synapse.n_in).astype(np.float32)
        for _ in range(3):
            taps = synapse.to_taps(weight.astype(np.float32))
            pair = leading_singular_pair(
                lambda v, taps=taps: synapse.apply(taps, v[None])[0],
                lambda v, taps=taps: synapse.adjoint(taps, v[None])[0],
                start,
                tol=singular_tolerance(np.float32),
            )
            norm = np.linalg.norm(synapse.apply(taps.astype(float), np.eye(synapse.n_in)), 2)
            assert pair.value == pytest.approx(norm, rel=1e-5)
            start = pair.right
            weight = weight + 0.05 * rng.uniform(-1, 1, synapse.weight_shape)


@given(rows=st.integers(2, 40), columns=st.integers(2, 40), seed=seeds, gap=st.floats(-7, -1), place=st.integers(0, 1))
def test_the_error_is_bounded_by_the_residual_and_the_start(rows, columns, seed, gap, place):
    """‖A‖ ≤ σ (1 + r c / (2 c₁)), the two largest values close and the start the second's vector, or drawn."""
    rng = np.random.default_rng(seed)
    A = matrix(rng, rows, columns, lambda k: np.where(k == 1, 1 - 10**gap, 0.9 ** (k + (k > 0))))
    _, s, Vt = np.linalg.svd(A)
    met = []

    def apply(v):
        met.append(v)
        return A @ v

    start = Vt[1] if place else rng.normal(size=columns)
    pair = leading_singular_pair(apply, lambda u: A.T @ u, start, tol=1e-3)
    found, leading_one = abs(met[0] @ pair.right), abs(met[0] @ Vt[0])
    assert pair.value <= s[0] * (1 + 1e-13)
    assert s[0] <= pair.value * (1 + pair.residual * found / (2 * leading_one)) * (1 + 1e-9)
    assert np.abs(s / pair.value - 1).min() <= pair.residual + 1e-13


def test_an_early_stop_tells_its_residual():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(60, 60))
    pair = leading(A, rng.normal(size=60), max_restarts=1, n_vectors=4)
    found = np.linalg.norm(A.T @ pair.left - pair.value * pair.right) / pair.value
    assert pair.residual == pytest.approx(found, rel=1e-8)
    assert pair.residual > 1e-3
    assert pair.value < np.linalg.norm(A, 2)


def test_a_power_step_of_nothing_finds_nothing():
    pair = power_step(lambda v: np.zeros(2), lambda u: np.zeros(3), np.ones(3))
    assert (pair.value, pair.residual) == (0.0, 0.0)


def test_what_is_computed_cell_by_cell_is_not_written_into_a_copy():
    x, channels = np.ones((3, 4)), np.ones(4)
    for write in (lambda out: multiply(x, x, out), lambda out: affine(x, channels, channels, None, out)):
        with pytest.raises(ValueError, match="out has strides"):
            write(np.zeros((3, 8))[:, ::2])


def test_power_steps_arrive_where_the_svd_is():
    rng = np.random.default_rng(1)
    A = matrix(rng, 7, 5, SPECTRA["spread"])
    # A receiver that nothing reaches changes nothing.
    A = np.concatenate([A, np.zeros((1, 5))])
    first = pair = power_step(lambda v: A @ v, lambda u: A.T @ u, rng.normal(size=5))
    for _ in range(200):
        pair = power_step(lambda v: A @ v, lambda u: A.T @ u, pair.right)
    assert first.value < pair.value == pytest.approx(3.0, rel=1e-12)
    np.testing.assert_allclose(A @ pair.right, pair.value * pair.left, atol=1e-10)
    for step, most in ((first, np.inf), (pair, 1e-9)):
        rest = np.linalg.norm(A.T @ step.left - step.value * step.right) / step.value
        assert step.residual == pytest.approx(rest, rel=1e-9, abs=1e-14)
        assert rest < most


@given(rows=st.integers(1, 5), columns=st.integers(1, 5), seed=seeds, alpha=st.floats(-1, 1))
def test_restriction_pulls_back(rows, columns, seed, alpha):
    rng = np.random.default_rng(seed)
    raw, d_weight = matrix(rng, rows, columns, SPECTRA["spread"]), rng.normal(size=(rows, columns))
    pair = leading(raw, rng.normal(size=columns))
    expected = equations.restrict_back(d_weight, raw, alpha, pair.value, np.outer(pair.left, pair.right))
    whole = np.outer(pair.left, pair.right).ravel(), np.ones(1)
    for singular in ((pair.left, pair.right), whole):
        d_raw, d_alpha = restrict_pull_back(d_weight, raw, np.asarray(alpha), pair.value, singular)
        np.testing.assert_allclose(d_raw, expected[0], rtol=0, atol=1e-13)
        assert d_alpha == pytest.approx(expected[1], abs=1e-13)
    # The restricted weight does not change along W̄.
    assert np.vdot(d_raw, raw) == pytest.approx(0, abs=1e-11)


@pytest.mark.parametrize("from_batch", [False, True])
def test_batch_norm_pulls_back(from_batch):
    rng = np.random.default_rng(5)
    z, delta, v = rng.normal(1, 2, (3, 6, 8))
    channel = np.arange(8) % 4
    weight, bias, mean, variance = rng.uniform(0.5, 2, (4, 4))
    if from_batch:
        mean, variance = batch_statistics(z, 4)
        for found, expected in zip((mean, variance), equations.moments(z, channel), strict=True):
            np.testing.assert_allclose(found[channel], expected, atol=1e-14)
    norm = BatchNorm(weight, bias, mean, variance, from_batch)
    spread = tuple(part[channel] for part in (weight, bias, mean, variance))
    np.testing.assert_allclose(
        z * norm.scale[channel] + norm.shift[channel], equations.normalise(z, *spread), atol=1e-13
    )
    expected = equations.normalise_back(delta, z, spread, channel, from_batch)
    for found, known in zip(norm.pull_back(delta, z), expected, strict=True):
        np.testing.assert_allclose(found, known, atol=1e-12)
    # Its derivative is symmetric, so it serves as its own transpose.
    np.testing.assert_allclose(norm.linear(delta, z), expected[0], atol=1e-12)
    assert np.vdot(v, norm.linear(delta, z)) == pytest.approx(np.vdot(norm.linear(v, z), delta), abs=1e-12)


def test_how_a_mean_was_rounded_is_no_part_of_the_derivative():
    """A change of all cells alike is taken off whole, though float32 keeps no mean of 2^20 + z to a hundredth."""
    z = np.random.default_rng(0).normal([2.0**20, 1.0], 1, (50, 2)).astype(np.float32)
    norm = BatchNorm(*np.ones((2, 2), np.float32), *batch_statistics(z, 2), from_batch=True)
    assert np.abs(z.mean(axis=0, dtype=float) - norm.mean).max() > 0.01
    np.testing.assert_allclose(norm.linear(np.ones_like(z), z), 0, atol=1e-5)


def test_batch_statistics_sum_float32_in_float64():
    """Half of 2^25 + {0, 4} are lost to a float32 sum, and the variance with them."""
    z = np.float32(2**25) + np.float32([[0], [4]] * 500)
    mean, variance = batch_statistics(z, 1)
    assert (mean.dtype, variance.dtype) == (np.float32, np.float32)
    assert abs(float(mean[0]) - (2**25 + 2)) <= 2
    assert variance[0] == pytest.approx(4, abs=5)


@given(rate=st.sampled_from([0.1, 0.2, 0.5, 0.9]), seed=seeds, dtype=st.sampled_from([np.float32, np.float64]))
def test_dropout_masks_have_mean_one(rate, seed, dtype):
    mask = dropout_mask((50, 400), rate, np.random.default_rng(seed), dtype)
    assert mask.dtype == dtype
    assert set(np.unique(mask)) == {dtype(0), dtype(1 / (1 - rate))}
    deviation = np.sqrt(rate / (1 - rate) / mask.size)
    assert abs(mask.mean(dtype=float) - 1) < 6 * deviation
    # Every sample has a mask of its own.
    assert len(np.unique(mask, axis=0)) == len(mask)
    np.testing.assert_array_equal(mask, dropout_mask((50, 400), rate, np.random.default_rng(seed), dtype))
    # The same bits as the generator's own draws of 16.
    bits = np.random.default_rng(seed).integers(0, 1 << 16, (50, 400), dtype=np.uint16)
    np.testing.assert_array_equal(mask != 0, bits >= round(rate * (1 << 16)))
    assert dropout_mask((3, 3), rate, np.random.default_rng(seed), dtype).shape == (3, 3)


@given(n=st.integers(0, 4), size=st.integers(8, 40), seed=seeds, dtype=st.sampled_from([np.float32, np.float64]))
def test_vectors_are_made_orthogonal_and_of_unit_length(n, size, seed, dtype):
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.normal(size=(size, 4)))[0].T.astype(dtype).copy()
    # Mostly along them, so that one pass is not enough.
    v = (1e3 * vectors[:n].T @ rng.normal(size=n) + rng.normal(size=size)).astype(dtype)
    found, along = v.copy(), np.full(5, 7.0)
    length = elementwise.orthogonalise(vectors, n, found, along)
    eps = float(np.finfo(dtype).eps)
    exact = v - vectors[:n].T.astype(float) @ (vectors[:n].astype(float) @ v)
    assert length == pytest.approx(np.linalg.norm(exact), abs=1e4 * eps * size)
    assert np.all(along[n:] == 7.0)
    np.testing.assert_allclose(vectors[:n].astype(float) @ found, 0, atol=200 * eps)
    assert np.linalg.norm(found.astype(float)) == pytest.approx(1, abs=20 * eps)
    np.testing.assert_allclose(along[:n] @ vectors[:n] + length * found, v, atol=2e4 * eps)
    zero = np.zeros(size, dtype)
    assert elementwise.orthogonalise(vectors, n, zero, along) == 0
    assert not zero.any()


@given(n=st.integers(0, 5), n_positions=st.integers(1, 4), masked=st.booleans(), spare=st.integers(0, 2), seed=seeds)
def test_cells_are_scaled_masked_multiplied_and_summed_by_channel(n, n_positions, masked, spare, seed):
    """Whole arrays, and columns of wider ones, of which the others stay as they are."""
    rng = np.random.default_rng(seed)
    size = 3 * n_positions
    wide = rng.normal(size=(4, n, size + spare))
    inside = slice(spare // 2, spare // 2 + size)
    x, keep, _, y = wide[..., inside]
    keep *= rng.integers(0, 2, keep.shape)
    scale, shift = rng.normal(size=3), rng.normal(size=3)
    expected = x * np.tile(scale, n_positions) + np.tile(shift, n_positions)
    expected = keep * expected if masked else expected
    np.testing.assert_allclose(affine(x, scale, shift, keep if masked else None), expected, atol=1e-14)
    np.testing.assert_array_equal(multiply(x, y), x * y)
    np.testing.assert_allclose(channel_sums(x, 3), x.reshape(n, n_positions, 3).sum(axis=(0, 1)), atol=1e-12)
    after = wide.copy()
    assert affine(x, scale, shift, keep if masked else None, after[2][:, inside]).shape == x.shape
    multiply(x, y, after[3][:, inside])
    expected_wide = wide.copy()
    expected_wide[2][:, inside] += expected
    expected_wide[3][:, inside] *= x
    np.testing.assert_allclose(after, expected_wide, atol=1e-14)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_map_to_nothing_has_norm_0_and_is_known_to(n):
    nothing = np.zeros((n, n))
    found = leading_singular_pair(lambda v: nothing @ v, lambda u: nothing @ u, np.ones(n), tol=1e-12)
    assert found.value == found.residual == 0.0
