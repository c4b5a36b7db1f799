"""Every synapse is a linear map with its transpose and its outer product; the kernels keep their bits."""

import itertools
from unittest import mock

import numba
import numpy as np
import pytest
from graphs import MAX_THREADS, convolutions, dense_matrix, flat_or_image, pictures
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ide_ref import equations, synapses
from ide_ref._kernels import dense, products
from ide_ref._kernels.vector import TILE
from ide_ref.synapses import AvgPool2d, Conv2d, ConvTranspose2d, Dense, from_channels_last, matmul, to_channels_last
from ide_ref.verify.specification import tie

pytestmark = pytest.mark.kernels


def dense_loop(synapse, weight, x):
    """Dense by definition, on images as they are."""
    flat = x.reshape(len(x), -1)
    out = np.zeros((len(x), synapse.n_out))
    for b, i, j in itertools.product(range(len(x)), range(synapse.n_out), range(synapse.n_in)):
        out[b, i] += weight[i, j] * flat[b, j]
    return out.reshape(-1, *synapse.out_shape)


def windows(synapse, small, large):
    """(tap row, tap column, small row, small column, large row, large column) of every contact."""
    for i, j, r, c in itertools.product(*map(range, (*small[1:], synapse.kernel, synapse.kernel))):
        y, x = i * synapse.stride + r - synapse.padding, j * synapse.stride + c - synapse.padding
        if 0 <= y < large[1] and 0 <= x < large[2]:
            yield r, c, i, j, y, x


def conv_loop(synapse, weight, x):
    out = np.zeros((len(x), *synapse.out_shape))
    for r, c, i, j, y, z in windows(synapse, synapse.out_shape, synapse.in_shape):
        out[:, :, i, j] += x[:, :, y, z] @ weight[:, :, r, c].T
    return out


def transpose_loop(synapse, weight, x):
    out = np.zeros((len(x), *synapse.out_shape))
    for r, c, i, j, y, z in windows(synapse, synapse.in_shape, synapse.out_shape):
        out[:, :, y, z] += x[:, :, i, j] @ weight[:, :, r, c]
    return out


def pool_loop(synapse, weight, x):
    out = np.zeros((len(x), *synapse.out_shape))
    for _, _, i, j, y, z in windows(synapse, synapse.out_shape, synapse.in_shape):
        out[:, :, i, j] += x[:, :, y, z] / synapse.kernel**2
    return out


@st.composite
def poolings(draw):
    return AvgPool2d.over(
        draw(pictures),
        kernel=draw(st.integers(1, 3)),
        stride=draw(st.none() | st.integers(1, 2)),
        padding=draw(st.integers(0, 1)),
    )


# A kind of synapse joins by a strategy that draws it and the loop that defines it.
SYNAPSES = {
    "dense": (st.builds(Dense, flat_or_image(), flat_or_image()), dense_loop),
    "conv": (convolutions(Conv2d), conv_loop),
    "transposed": (convolutions(ConvTranspose2d), transpose_loop),
    "pool": (poolings(), pool_loop),
}
kinds = pytest.mark.parametrize("kind", SYNAPSES)


def draw_synapse(data, kind):
    """A synapse, its loop, weight, input and output cells, all read-only."""
    strategy, loop = SYNAPSES[kind]
    synapse = data.draw(strategy)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    weight = rng.normal(size=synapse.weight_shape)
    # Sparse and dense samples take different ways through the kernels, and the sparser side is taken by its events.
    n_batch = data.draw(st.integers(1, 9))
    shares = data.draw(st.tuples(*[st.sampled_from([0.0, 0.05, 0.3, 1.0])] * 2))
    pre, post = (
        rng.normal(size=(n_batch, n)) * (rng.random((n_batch, n)) < share)
        for n, share in zip((synapse.n_in, synapse.n_out), shares, strict=True)
    )
    for array in (weight, pre, post):
        array.flags.writeable = False
    return synapse, loop, weight, pre, post


@kinds
@given(data=st.data())
def test_apply_is_the_loop(kind, data):
    synapse, loop, weight, pre, _ = draw_synapse(data, kind)
    out = from_channels_last(synapse.apply(synapse.to_taps(weight), pre), synapse.out_shape)
    np.testing.assert_allclose(out, loop(synapse, weight, from_channels_last(pre, synapse.in_shape)), atol=1e-12)


@kinds
@given(data=st.data())
def test_adjoint_is_the_transpose(kind, data):
    synapse, _, weight, pre, post = draw_synapse(data, kind)
    taps = synapse.to_taps(weight)
    forth, back = np.vdot(synapse.apply(taps, pre), post), np.vdot(pre, synapse.adjoint(taps, post))
    assert forth == pytest.approx(back, abs=1e-12, rel=1e-12)


@kinds
@settings(max_examples=2 * settings.default.max_examples)
@given(data=st.data())
def test_hebbian_is_the_derivative(kind, data):
    """Of ⟨post, W pre⟩ by each weight, the sum of post preᵀ over the places where it stands; by each tap of a pool."""
    synapse, _, weight, pre, post = draw_synapse(data, kind)
    gradient = synapse.hebbian(post, pre)
    taps = synapse.to_taps(weight)
    assert gradient.shape == taps.shape
    if kind != "pool":
        expected = equations.untied(equations.hebb(post, pre), tie(synapse), weight)
        np.testing.assert_allclose(synapse.from_taps(gradient), expected, atol=1e-12)
        return
    for index in np.ndindex(taps.shape):
        unit = np.zeros_like(taps)
        unit[index] = 1
        assert gradient[index] == pytest.approx(np.vdot(post, synapse.apply(unit, pre)), abs=1e-12)


@pytest.mark.parametrize("kind", [kind for kind in SYNAPSES if kind != "pool"])
@given(data=st.data())
def test_taps_hold_the_weights(kind, data):
    synapse, _, weight, _, _ = draw_synapse(data, kind)
    taps = synapse.to_taps(weight)
    # Dense weights are read as they lie.
    assert (taps.transpose(0, 2, 1) if kind == "dense" else taps).flags.c_contiguous
    assert taps.shape == (synapse.targets.shape[1], *synapse.channels)
    np.testing.assert_array_equal(synapse.from_taps(taps), weight)
    np.testing.assert_array_equal(synapse.kernel_matrix(weight), weight.reshape(len(weight), -1))
    if kind == "dense" and len(synapse.in_shape) == len(synapse.out_shape) == 1:
        assert np.shares_memory(taps, weight)
        assert np.shares_memory(synapse.from_taps(taps), weight)


@kinds
@given(data=st.data())
def test_a_sample_does_not_depend_on_the_others(kind, data):
    synapse, _, weight, pre, post = draw_synapse(data, kind)
    taps = synapse.to_taps(weight)
    for product, cells in ((synapse.apply, pre), (synapse.adjoint, post)):
        alone = np.concatenate([product(taps, row[None]) for row in cells])
        np.testing.assert_array_equal(product(taps, cells), alone)


@kinds
@given(data=st.data(), dtype=st.sampled_from([np.float32, np.float64]), beside=st.integers(0, 2))
def test_an_adjoint_is_added_to_what_is_there(kind, data, dtype, beside):
    """To an array of its own or to columns of a wider one."""
    synapse, _, weight, _, post = draw_synapse(data, kind)
    taps, post = synapse.to_taps(weight).astype(dtype), post.astype(dtype)
    wide = np.random.default_rng(0).normal(size=(len(post), synapse.n_in + 2 * beside)).astype(dtype)
    before, columns = wide.copy(), slice(beside, beside + synapse.n_in)
    out = wide[:, columns]
    assert synapse.adjoint(taps, post, out) is out
    expected = before.copy()
    expected[:, columns] += synapse.adjoint(taps, post)
    np.testing.assert_allclose(wide, expected, rtol=0, atol=1e-5 if dtype == np.float32 else 1e-13)
    expected[:, columns] = wide[:, columns]
    np.testing.assert_array_equal(wide, expected)


@kinds
@given(data=st.data())
def test_products_keep_the_dtype(kind, data):
    synapse, _, weight, pre, post = draw_synapse(data, kind)
    taps, pre32, post32 = (a.astype(np.float32) for a in (synapse.to_taps(weight), pre, post))
    exact = synapse.apply(synapse.to_taps(weight), pre), synapse.adjoint(synapse.to_taps(weight), post)
    for narrow, wide in zip((synapse.apply(taps, pre32), synapse.adjoint(taps, post32)), exact, strict=True):
        assert narrow.dtype == np.float32
        np.testing.assert_allclose(narrow, wide, atol=2e-5)
    narrow, wide = synapse.hebbian(post32, pre32), synapse.hebbian(post, pre)
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, wide, atol=2e-4)


@kinds
@given(data=st.data())
def test_counts_and_channels(kind, data):
    synapse, _, weight, _, _ = draw_synapse(data, kind)
    # Distinct taps never meet in one entry of the matrix, and no weight drawn is 0.
    assert synapse.n_multiplications == np.count_nonzero(dense_matrix(synapse, weight))
    channels = synapse.out_shape[0]
    spread = synapse.out_channels(np.arange(channels))
    image = from_channels_last(spread[None], synapse.out_shape)[0].reshape(channels, -1)
    np.testing.assert_array_equal(image, np.arange(channels)[:, None] * np.ones_like(image))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Conv2d((2, 4, 4), (3, 4, 4), 3, 1, 0),
            r"Conv2d maps \(4, 4\) to \(2, 2\), but out_shape is \(3, 4, 4\)",
        ),
        (lambda: Conv2d((4,), (3, 4, 4), 3, 1, 0), r"Conv2d has in_shape \(4,\); expected \(channels, rows, columns\)"),
        (lambda: Conv2d.over((2, 2, 2), 3, kernel=5, padding=0), r"out_shape of Conv2d is \(3, -2, -2\); expected"),
        (lambda: Conv2d((2, 4, 4), (3, 4, 4), 3, 0, 0), "kernel 3, stride 0, padding 0; expected"),
        (
            lambda: ConvTranspose2d.over((2, 4, 4), 3, kernel=3, output_padding=2),
            "output_padding is 2; expected 0 to stride - 1 = 1",
        ),
        (
            lambda: ConvTranspose2d((2, 4, 4), (3, 9, 9), 3, 2, 1, 2),
            "output_padding is 2; expected 0 to stride - 1 = 1",
        ),
        (lambda: ConvTranspose2d((2, 4, 4), (3, 8, 9), 3, 2, 1, 1), r"ConvTranspose2d maps \(4, 4\) to \(8, 8\)"),
        (
            lambda: Conv2d((2, 4, 4), (4,), 3, 1, 1),
            r"Conv2d has out_shape \(4,\); expected \(channels, rows, columns\)",
        ),
        (lambda: AvgPool2d((2, 4, 4), (3, 2, 2), 2, 2, 0), "the channels must be the same"),
        (lambda: AvgPool2d((2, 4, 4), (2, 3, 2), 2, 2, 0), r"AvgPool2d maps \(4, 4\) to \(2, 2\)"),
    ],
)
def test_windows_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@given(shape=flat_or_image())
def test_cells_go_and_come_back(shape):
    x = np.arange(2.0 * np.prod(shape)).reshape(2, *shape)
    cells = to_channels_last(x, shape)
    assert cells.flags.c_contiguous
    np.testing.assert_array_equal(from_channels_last(cells, shape), x)
    if len(shape) == 3:
        np.testing.assert_array_equal(cells[0, : shape[0]], x[0, :, 0, 0])


@given(
    rows=st.integers(1, 70),
    depth=st.integers(1, 600),
    columns=st.integers(1, 40),
    cut=st.integers(0, 70),
    dtype=st.sampled_from([np.float32, np.float64]),
    little=st.sampled_from([0, 2**13, 2**22]),
)
@example(rows=33, depth=259, columns=7, cut=5, dtype=np.float64, little=0)
@example(rows=64, depth=256, columns=8, cut=64, dtype=np.float32, little=2**22)
@example(rows=64, depth=256, columns=8, cut=63, dtype=np.float64, little=2**13)
def test_matmul_is_the_product_to_rounding_and_keeps_its_bits(rows, depth, columns, cut, dtype, little):
    """Under splits and threads, and whichever code a product of its size is left to.

    How the kernel reads and adds is tested with the innermost loops.
    """
    with mock.patch.object(synapses, "LITTLE", little):
        _check_matmul(rows, depth, columns, cut, dtype)


def _check_matmul(rows, depth, columns, cut, dtype):
    rng = np.random.default_rng(rows)
    x, w = rng.normal(size=(rows, depth)).astype(dtype), rng.normal(size=(depth, columns)).astype(dtype)
    numba.set_num_threads(MAX_THREADS)
    out = matmul(x, w)
    assert out.dtype == dtype
    bound = depth * np.finfo(dtype).eps * (np.abs(x).astype(float) @ np.abs(w).astype(float))
    assert (np.abs(out - x.astype(float) @ w.astype(float)) <= bound).all()
    there = rng.normal(size=out.shape).astype(dtype)
    # A chain of additions that begins with what is there, whichever way the weights lie.
    for weights in (w, np.asfortranarray(w)):
        total = there.copy()
        assert matmul(x, weights, total) is total
        expected = there + x.astype(float) @ w.astype(float)
        assert (np.abs(total - expected) <= 2 * (bound + depth * np.finfo(dtype).eps * np.abs(there))).all()
    numba.set_num_threads(1)
    parts = [matmul(part, w) for part in (x[:cut], x[cut:])]
    np.testing.assert_array_equal(np.concatenate(parts), out)
    np.testing.assert_array_equal(np.concatenate([matmul(row[None], w) for row in x]), out)
    # Views, and of two dtypes the wider.
    transposed = matmul(np.asfortranarray(x), w.astype(np.float64))
    assert transposed.dtype == np.float64
    np.testing.assert_allclose(transposed, x.astype(float) @ w.astype(float), rtol=0, atol=1e-9)


def test_products_take_the_way_for_their_number_of_samples_and_copy_nothing(monkeypatch):
    """Few rows on the calling thread, more by blocks, whose factors are read as they lie; one sample in shares."""
    monkeypatch.setattr(synapses, "LITTLE", 20 * 120)
    taken = []

    def listen(module, name):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given: taken.append((name, given)) or original(*given))

    for module, name in ((dense, "matmul_few"), (dense, "matmul"), (products, "apply_one"), (products, "apply")):
        listen(module, name)
    # In float64 more rows than that, for the code by blocks takes long to compile, and float32 asks for it anyway.
    for dtype, first in ((np.float32, TILE), (np.float64, 21)):
        w = np.ones((40, 3), dtype)
        for rows, way in ((1, "matmul_few"), (first - 1, "matmul_few"), (first, "matmul"), (50, "matmul")):
            wide = np.ones((rows, 60), dtype)
            for x in (np.ones((rows, 40), dtype), np.ones((40, rows), dtype).T, wide[:, 5:45]):
                for weights in (w, np.asfortranarray(w)):
                    matmul(x, weights)
                    name, (read, *_, transposed, _, _, _) = taken[-1]
                    assert name == way
                    if way == "matmul":
                        assert np.shares_memory(read, x)
                        matrix = taken[-1][1][4]
                        assert np.shares_memory(matrix, weights)
                        assert transposed == (weights is not w)
    synapse = Conv2d.over((2, 3, 3), 2, kernel=3)
    for rows in (1, 2):
        synapse.apply(np.ones((9, 2, 2)), np.ones((rows, 18)))
        assert taken[-1][0] == ("apply_one" if rows == 1 else "apply")


@pytest.mark.parametrize("n", [2, 40])
def test_a_product_is_never_written_into_a_copy(n):
    """Rows whose numbers do not lie side by side cannot be written where they lie."""
    out = np.zeros((5, n)).T
    with pytest.raises(ValueError, match="expected rows whose numbers lie side by side"):
        matmul(np.ones((n, 3)), np.ones((3, 5)), out)
    assert not out.any()


def test_windows_are_padded_by_half_of_what_they_reach_beyond_their_middle():
    for kernel, padding in ((1, 0), (2, 0), (3, 1), (4, 1), (5, 2)):
        for cls in (Conv2d, ConvTranspose2d):
            assert cls.over((1, 6, 6), 1, kernel=kernel).padding == padding


def test_tables_that_are_shared_cannot_be_written_to():
    assert not Dense((2,), (3,)).targets.flags.writeable
