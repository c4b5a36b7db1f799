"""What is done cell by cell against the same in NumPy; what lies around the arrays is neither read nor written."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ide_ref._kernels import elementwise

pytestmark = pytest.mark.kernels

DTYPES = st.sampled_from([np.float32, np.float64])
SEEDS = st.integers(0, 2**32 - 1)
ROWS, CHANNELS = st.one_of(st.just(33), st.integers(0, 40)), st.integers(1, 9)
FLAT = st.one_of(st.integers(0, 20), st.integers(0, 200))
SPARE = st.integers(1, 5)


class Interpreted:
    """A module's kernels by Python itself, which refuses a place that compiled code, unchecked, takes for another."""

    def __getattr__(self, name):
        kernel = getattr(elementwise, name)
        return getattr(getattr(kernel, "one", kernel), "py_func", kernel)


@pytest.fixture(scope="module", autouse=True, params=[elementwise, Interpreted()], ids=["compiled", "interpreted"])
def kernels_in_turn(request):
    global kernels
    kernels = request.param


WALL = 12345.0  # Beside what is written; NaN beside what is read.


class Room:
    """Arrays that lie between others in memory, which are still what they were when the kernel has run."""

    def __init__(self, seed, dtype, spare):
        self.rng, self.dtype, self.spare, self.walls = np.random.default_rng(seed), np.dtype(dtype), spare, []

    def wall(self, part, value):
        part[...] = value
        self.walls.append((part, value))

    def place(self, values, dtype=None, wall=np.nan):
        values = np.asarray(values, dtype or self.dtype)
        memory = np.empty((values.shape[0] + 2 * self.spare, *values.shape[1:]), values.dtype)
        inner = memory[self.spare : self.spare + values.shape[0]]
        inner[...] = values
        self.wall(memory[: self.spare], wall)
        self.wall(memory[self.spare + values.shape[0] :], wall)
        return inner

    def draw(self, *shape):
        return self.place(self.rng.normal(size=shape))

    def out(self, *shape, dtype=None):
        return self.place(np.full(shape, 7.0), dtype, WALL)

    def check(self):
        for part, value in self.walls:
            np.testing.assert_array_equal(part, np.broadcast_to(value, part.shape))


def close(found, expected, dtype, scale=1.0):
    """To rounding of a sum of parts whose sizes add up to ``scale``."""
    assert found.shape == np.shape(expected)
    assert (np.abs(found - expected) <= 64 * np.finfo(dtype).eps * (scale + np.abs(expected))).all()


@given(SEEDS, DTYPES, ROWS, CHANNELS, SPARE)
def test_moments_of_columns(seed, dtype, n, n_channels, spare):
    room = Room(seed, dtype, spare)
    z = room.draw(max(n, 1), n_channels)
    mean, variance = room.out(n_channels, dtype=np.float64), room.out(n_channels, dtype=np.float64)
    kernels.moments(z, mean, variance)
    close(mean, z.mean(0, dtype=np.float64), np.float64)
    close(variance, z.astype(np.float64).var(0), np.float64)
    room.check()


@given(SEEDS, DTYPES, ROWS, CHANNELS, SPARE, st.booleans())
def test_normalisation_is_pulled_back(seed, dtype, n, n_channels, spare, from_batch):
    n = max(n, 2)
    room = Room(seed, dtype, spare)
    delta, z = room.draw(n, n_channels), room.draw(n, n_channels)
    wide = z.astype(np.float64)
    mean = room.place(wide.mean(0)) if from_batch else room.draw(n_channels)
    deviation = room.place(np.sqrt(wide.var(0) + 1e-3) if from_batch else 1 + room.rng.random(n_channels))
    weight = room.draw(n_channels)
    d_z, d_weight, d_bias = (
        room.out(n, n_channels), room.out(n_channels, dtype=np.float64), room.out(n_channels, dtype=np.float64),
    )  # fmt: skip
    kernels.normalised_back(delta, z, mean, deviation, weight, from_batch, np.finfo(dtype).eps, d_z, d_weight, d_bias)
    z_hat = (wide - (wide.mean(0) if from_batch else mean)) / deviation
    scale = 1 + np.abs(delta).sum(0) * np.abs(z_hat).max(0)
    close(d_weight, (delta * z_hat).sum(0), dtype, scale)
    close(d_bias, delta.sum(0, dtype=np.float64), dtype, scale)
    through = delta - from_batch * (d_bias + d_weight * z_hat) / n
    close(d_z, weight / deviation * through, dtype, np.abs(weight / deviation) * scale)
    room.check()


@given(SEEDS, DTYPES, FLAT, SPARE, st.sampled_from([0.0, 1e-3, 0.5, 0.9]))
def test_lengths_where_squares_leave_the_range(seed, dtype, n, spare, share):
    """A power of two scales a length, up to rounding, as far as the numbers themselves stay in range."""
    room = Room(seed, dtype, spare)
    rows, out = room.draw(4, n), room.out(4, dtype=np.float64)
    info = np.finfo(dtype)
    for exponent in (int(share * info.minexp), int(share * info.maxexp)):
        scaled = np.ldexp(rows, exponent).astype(dtype)
        kernels.norms(scaled, out)
        # What of them is left where they are subnormal.
        plain = np.ldexp(scaled.astype(np.float64), -exponent)
        close(np.ldexp(out, -exponent), np.sqrt((plain**2).sum(1)), dtype)


@given(SEEDS, DTYPES, FLAT, SPARE)
def test_inner_products_and_lengths(seed, dtype, n, spare):
    room = Room(seed, dtype, spare)
    x, y = room.draw(n), room.draw(n)
    wide = x.astype(np.float64)
    close(np.asarray(kernels.inner(x, y)), wide @ y.astype(np.float64), np.float64, n + 1)
    rows, out = room.draw(4, n), room.out(4, dtype=np.float64)
    kernels.norms(rows, out)
    close(out, np.sqrt((rows.astype(np.float64) ** 2).sum(1)), dtype)
    b, sizes = room.draw(4, n), np.empty((4, 4))
    y = room.draw(4, n)
    kernels.judge(rows, y, b, sizes)
    left = (b.astype(np.float64) + y) - rows
    for found, of in zip(sizes, (left, b, y, rows), strict=True):
        close(found, np.sqrt((of.astype(np.float64) ** 2).sum(1)), dtype)
    after, r = room.out(4, n), room.out(4, n)
    kernels.move(y, b, rows, after, r, out)
    np.testing.assert_array_equal(after, y + b)
    np.testing.assert_array_equal(r, after - rows)
    close(out, np.sqrt((r.astype(np.float64) ** 2).sum(1)), dtype)
    room.check()


@given(
    SEEDS, DTYPES, st.one_of(st.just(5), st.integers(0, 6)), st.one_of(st.just(7), st.integers(1, 8)), CHANNELS, SPARE
)
def test_what_is_done_to_samples_with_rows_of_their_own(seed, dtype, n_batch, n_positions, n_channels, spare):
    """A sample's numbers begin at a multiple of a longer row, and behind the last sample lies another."""
    room, n = Room(seed, dtype, spare), n_positions * n_channels
    row = n + spare

    def batch(values, wall=np.nan):
        memory = np.empty((n_batch + 1, row), dtype)
        memory[:n_batch, :n] = values
        room.wall(memory[:n_batch, n:], wall)
        room.wall(memory[n_batch], wall)
        return memory.ravel(), memory[:n_batch, :n]

    (x, x2), (y, y2) = (batch(room.rng.normal(size=(n_batch, n))) for _ in range(2))
    total = room.out(n_channels, dtype=np.float64)
    kernels.sums(x, row, n_batch, n, total)
    close(total, x2.astype(np.float64).reshape(-1, n_channels).sum(0), np.float64, n_batch * n_positions)

    product, product2 = batch(7.0, WALL)
    kernels.multiply(x, row, y, row, n_batch, n, product, row)
    np.testing.assert_array_equal(product2, x2 * y2)

    scale, shift = room.draw(n_channels), room.draw(n_channels)
    for masked in (False, True):
        for add in (False, True):
            out, out2 = batch(7.0, WALL)
            kernels.affine(x, row, n_batch, n, scale, shift, masked, y, row, add, out, row)
            expected = np.tile(scale, n_positions) * x2 + np.tile(shift, n_positions)
            expected = (y2 if masked else 1) * expected + (7 if add else 0)
            close(out2, expected, dtype, 1 + 40 * np.abs(expected).max(initial=0))
    room.check()


@given(SEEDS, DTYPES, FLAT, SPARE)
def test_masks_are_of_what_is_strictly_more_or_less(seed, dtype, n, spare):
    room = Room(seed, dtype, spare)
    bits = room.rng.integers(0, 5, n).astype(np.uint16)
    out = room.out(n)
    kernels.keep(bits, 3, dtype(1.25), out)
    np.testing.assert_array_equal(out, np.where(bits >= 3, 1.25, 0))
    p = room.place(room.rng.integers(-2, 7, n) / 2)
    for lower in (False, True):
        for upper in (False, True):
            kernels.slope(p, lower, upper, dtype(2), dtype(0.5), out)
            inside = (p > 0) & (p < 2) | lower & (p == 0) | upper & (p == 2)
            np.testing.assert_array_equal(out, np.where(inside, 0.5, 0))
    assert kernels.all_finite(p)
    for wild in (np.nan, np.inf, -np.inf)[: 3 * (n > 0)]:
        at = room.rng.integers(n)
        before, p[at] = p[at], wild
        assert not kernels.all_finite(p)
        p[at] = before
    room.check()


@given(SEEDS, DTYPES, st.integers(0, 5), st.integers(0, 30), SPARE)
def test_a_vector_loses_what_it_has_along_orthonormal_ones(seed, dtype, n, extra, spare):
    room, size = Room(seed, dtype, spare), n + extra
    q, _ = np.linalg.qr(room.rng.normal(size=(max(size, 1), n)))
    vectors = room.place(q.T[:, :size])
    v, along = room.draw(size), room.out(n + 1, dtype=np.float64)
    parts = vectors.astype(np.float64) @ v
    rest = v - parts @ vectors.astype(np.float64)
    length = kernels.orthogonalise(vectors, n, v, along)
    close(along[:n], parts, dtype, size + 1)
    assert along[n] == 7
    close(np.asarray(length), np.linalg.norm(rest), dtype, size + 1)
    if extra:
        close(v * length, rest, dtype, size + 1)
        close(np.linalg.norm(v, keepdims=True)[0], 1, dtype, size + 1)
    room.check()


@given(SEEDS, DTYPES, FLAT, SPARE)
def test_a_step_with_momentum(seed, dtype, n, spare):
    room = Room(seed, dtype, spare)
    theta, gradient, velocity = (room.draw(n) for _ in range(3))
    new_theta, new_velocity = room.out(n), room.out(n)
    momentum, decay, rate = map(dtype, (0.9, 0.125, 0.05))
    kernels.momentum_step(theta, gradient, velocity, momentum, decay, rate, new_theta, new_velocity)
    expected = 0.9 * velocity.astype(np.float64) + (gradient + 0.125 * theta.astype(np.float64))
    close(new_velocity, expected, dtype, 8.0)
    close(new_theta, theta - 0.05 * expected, dtype, 8.0)
    room.check()


@given(SEEDS, DTYPES, ROWS, st.integers(1, 30), SPARE)
def test_a_norm_s_part_is_taken_off(seed, dtype, n_rows, n, spare):
    room = Room(seed, dtype, spare)
    left, right, d_weight = room.draw(n_rows), room.draw(n), room.draw(n_rows * n)
    out = room.out(n_rows * n)
    kernels.take_off(d_weight, left, right, dtype(0.75), dtype(2.0), out)
    expected = 2 * (d_weight - 0.75 * np.outer(left, right).ravel().astype(np.float64))
    close(out, expected, dtype, 8 + np.abs(expected).max(initial=0))
    room.check()
