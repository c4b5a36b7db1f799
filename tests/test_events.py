"""Events and runs: nothing is lost or invented, and they bring what a plain loop over all cells brings."""

import numpy as np
import pytest
from graphs import convolutions
from hypothesis import given
from hypothesis import strategies as st

from ide_ref import IF, build, freeze
from ide_ref import synapses as synapses_module
from ide_ref._kernels import memory, products, propagate
from ide_ref._kernels.layout import in_blocks
from ide_ref.synapses import AvgPool2d, Conv2d, ConvTranspose2d

pytestmark = pytest.mark.kernels


synapses = st.one_of(convolutions(Conv2d), convolutions(ConvTranspose2d))


def sparse(rng, shape, share):
    return rng.normal(size=shape) * (rng.random(shape) < share)


def plain(cells, weights, targets, n_out):
    """The plain twin: every position and tap in turn."""
    out = np.zeros((n_out, weights.shape[2]))
    for p, k in zip(*np.nonzero(targets >= 0), strict=True):
        out[targets[p, k]] += cells[p] @ weights[k]
    return out


def test_tiles_take_as_many_channels_as_divide_them():
    most = propagate.CHUNK
    for c_in in (*range(1, 1200), 33 * 131, 32 * 131):
        best = max(size for size in range(1, min(c_in, most) + 1) if c_in % size == 0)
        assert propagate.chunk_of(c_in) == (best if best > most // 4 or c_in <= most else c_in)


@given(synapse=synapses)
def test_runs_say_what_the_tables_say(synapse):
    for runs, sources in ((synapse.runs, synapse.sources), (synapse.runs_back, synapse.targets)):
        for table in (runs.fine, runs.coarse):
            found = np.full_like(sources, -1)
            for r, q in np.ndindex(*table.shape[:2]):
                first, last, offset = table[r, q]
                for p in range(first, last):
                    assert found[q, p + offset] == -1
                    found[q, p + offset] = p
            np.testing.assert_array_equal(found, sources)
    # The rows of a window are runs; so are those of its reverse where the stride lets one tap through at most.
    windowed = synapse.runs if isinstance(synapse, Conv2d) else synapse.runs_back
    assert windowed.coarse.shape[0] == synapse.kernel


@given(synapse=synapses, share=st.sampled_from([0.0, 0.1, 0.5, 1.0]), n=st.integers(1, 9), seed=st.integers(0, 99))
def test_products_bring_what_the_plain_loop_brings(synapse, share, n, seed):
    rng = np.random.default_rng(seed)
    c_in, c_out = synapse.channels
    taps_ = rng.normal(size=(synapse.kernel**2, c_in, c_out))
    cells = sparse(rng, (n, len(synapse.targets), c_in), share)
    found = synapse.apply(taps_, cells.reshape(n, -1)).reshape(n, -1, c_out)
    # Columns of a wider array are read where they lie.
    wide = rng.normal(size=(n, synapse.n_in + 3))
    wide[:, 2:-1] = cells.reshape(n, -1)
    np.testing.assert_array_equal(synapse.apply(taps_, wide[:, 2:-1]).reshape(found.shape), found)
    # Sample by sample the same bits: neither the block nor the length of the runs changes a sum.
    for b in range(n):
        np.testing.assert_allclose(found[b], plain(cells[b], taps_, synapse.targets, found.shape[1]), atol=1e-12)
        alone = np.empty(synapse.n_out)
        for runs in (synapse.runs.fine, synapse.runs.coarse):
            products.apply_one(
                cells[b].ravel(), len(cells[b]), c_in, taps_, synapse.runs.fine, runs, 3, alone, c_out, False
            )
            np.testing.assert_array_equal(alone, found[b].ravel())


@pytest.mark.parametrize(("c_in", "c_out"), [(3, 2 * propagate.COLUMNS + 5), (256, 2 * propagate.COLUMNS), (5, 64)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_in_blocks_bring_the_same(c_in, c_out, dtype):
    """More outputs than a tile has columns, more channels than it has rows, forward and in reverse."""
    rng = np.random.default_rng(0)
    synapse = Conv2d.over((c_in, 3, 4), c_out, kernel=3)
    # Small whole numbers: every order of summation gives the same bits.
    taps_ = rng.integers(-4, 5, (9, c_in, c_out)).astype(dtype)
    blocks = in_blocks(taps_, np.dtype(dtype))
    assert blocks.size == taps_.size
    for j in range(0, c_out, propagate.COLUMNS):
        width = min(propagate.COLUMNS, c_out - j)
        block = blocks[9 * c_in * j :][: 9 * c_in * width].reshape(9, c_in, width)
        np.testing.assert_array_equal(block, taps_[:, :, j : j + width])
    for share in (0.02, 0.5):
        cells = rng.integers(1, 5, (3, 12, c_in)) * (rng.random((3, 12, c_in)) < share)
        found = synapse.apply(taps_, cells.reshape(3, -1).astype(dtype)).reshape(3, 12, c_out)
        back = rng.integers(1, 5, (3, 12, c_out)) * (rng.random((3, 12, c_out)) < share)
        received = synapse.adjoint(taps_, back.reshape(3, -1).astype(dtype)).reshape(3, 12, c_in)
        for b in range(3):
            np.testing.assert_array_equal(found[b], plain(cells[b], taps_, synapse.targets, 12))
            reverse = plain(back[b], taps_.transpose(0, 2, 1), synapse.sources, 12)
            np.testing.assert_array_equal(received[b], reverse)


def test_weights_are_laid_out_once_for_all_products_of_a_connection(monkeypatch):
    network = build("70C3 (F70C3)", input_shape=(2, 4, 4), n_classes=2, neuron=IF())
    c = freeze(network, network.init(np.random.default_rng(0))).maps[1]
    x = np.random.default_rng(1).normal(size=(3, c.synapse.n_in))
    forward, back = c.synapse.apply(c.folded_taps, x), c.synapse.adjoint(c.folded_taps, x)
    made = []
    monkeypatch.setattr(synapses_module, "in_blocks", lambda *given: made.append(1) or in_blocks(*given))
    for _ in range(2):
        np.testing.assert_array_equal(c.linear(x), forward)
        np.testing.assert_array_equal(c.adjoint(x), back)
    assert len(made) == 2
    # Numbers of another dtype meet weights of theirs.
    c32 = freeze(network, network.init(np.random.default_rng(0), dtype=np.float32)).maps[1]
    np.testing.assert_array_equal(c32.synapse.apply(c32.laid_out, x), c32.synapse.apply(c32.folded_taps, x))


@pytest.mark.parametrize(("shape", "dtype"), [((2, 36), np.float64), ((3, 36), np.float32), ((2, 72), np.float32)])
def test_out_must_fit(shape, dtype):
    synapse = Conv2d.over((3, 3, 4), 2, kernel=3)
    post = np.ones((2, synapse.n_out), np.float32)
    with pytest.raises(ValueError, match="out is"):
        synapse.adjoint(np.ones((9, 3, 2), np.float32), post, out=np.zeros(shape, dtype))


@given(synapse=synapses, shares=st.tuples(*[st.sampled_from([0.0, 0.1, 1.0])] * 2), seed=st.integers(0, 99))
def test_outer_products_are_those_of_the_plain_loop_from_either_side(synapse, shares, seed):
    rng = np.random.default_rng(seed)
    c_in, c_out = synapse.channels
    pre = sparse(rng, (3, len(synapse.targets), c_in), shares[0])
    post = sparse(rng, (3, len(synapse.sources), c_out), shares[1])
    expected = np.zeros((synapse.kernel**2, c_in, c_out))
    for p, k in zip(*np.nonzero(synapse.targets >= 0), strict=True):
        expected[k] += pre[:, p].T @ post[:, synapse.targets[p, k]]
    by_senders, by_receivers = np.empty_like(expected), np.empty_like(expected.transpose(0, 2, 1), order="C")
    senders, receivers = (memory.rows(side.reshape(3, -1)) for side in (pre, post))
    for sides, joins, others, out in (
        ((*senders, *receivers), synapse._joins, post, by_senders),
        ((*receivers, *senders), synapse._joins_back, pre, by_receivers),
    ):
        # Memory that another array was in before.
        rows = np.full(products.shape_of_rows(3, *others.shape[1:]), np.nan)
        products.hebbian(*sides, 3, *joins, rows, out)
    np.testing.assert_allclose(by_senders, expected, atol=1e-12)
    np.testing.assert_allclose(by_receivers.transpose(0, 2, 1), expected, atol=1e-12)
    np.testing.assert_allclose(synapse.hebbian(post.reshape(3, -1), pre.reshape(3, -1)), expected, atol=1e-12)


@given(counts=st.lists(st.integers(0, 4), min_size=1, max_size=6), at=st.integers(0, 3))
def test_events_are_located_by_position(counts, at):
    c_in = 4
    cells = [p * c_in + c for p, count in enumerate(counts) for c in range(count)]
    listed = np.array([0] * at + cells, np.uint32)
    first = np.empty(len(counts) + 1, np.int64)
    propagate.locate(listed, at, len(cells), c_in, first)
    np.testing.assert_array_equal(first, at + np.concatenate([[0], np.cumsum(counts)]))


@given(share=st.sampled_from([0.0, 0.3, 1.0]), seed=st.integers(0, 99))
def test_depthwise_events_keep_their_channel(share, seed):
    rng = np.random.default_rng(seed)
    synapse = AvgPool2d.over((3, 5, 4), kernel=2, padding=1)
    cells = sparse(rng, (len(synapse.targets), 3), share)
    factors = rng.normal(size=(4, 3))
    expected = np.zeros((len(synapse.sources), 3))
    for p, k in zip(*np.nonzero(synapse.targets >= 0), strict=True):
        expected[synapse.targets[p, k]] += factors[k] * cells[p]
    flat = cells.ravel()
    listed = np.flatnonzero(flat).astype(np.uint32)
    first = np.empty(len(cells) + 1, np.int64)
    propagate.locate(listed, 0, len(listed), 3, first)
    out = np.zeros(expected.size)
    propagate.propagate_depthwise(synapse.runs.fine, first, listed, flat[listed], factors.ravel(), 0, 3, out, 0)
    np.testing.assert_allclose(out.reshape(expected.shape), expected, atol=1e-14)
