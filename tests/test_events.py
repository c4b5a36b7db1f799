"""Events in groups of four: nothing is lost or invented, and they bring what a dense product brings."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ide_ref._kernels import events, taps

pytestmark = pytest.mark.kernels


def scratch(n_positions, n_channels):
    largest = n_positions * ((n_channels + 3) // 4) + 1
    return np.empty(largest, np.uint32), np.empty((largest, 4), np.uint32), np.empty((largest, 4))


@st.composite
def sparse_cells(draw):
    n_positions, n_channels = draw(st.integers(1, 6)), draw(st.integers(1, 11))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    return rng.normal(size=(n_positions, n_channels)) * (rng.random((n_positions, n_channels)) < share)


def spread(groups, n_groups, shape):
    """The cells that groups stand for; every channel of a group adds its value."""
    positions, channels, factors = groups
    out = np.zeros(shape)
    for g in range(n_groups):
        for i in range(4):
            out[positions[g], channels[g, i]] += factors[g, i]
    return out


@given(cells=sparse_cells())
def test_both_ways_of_grouping_hold_the_same_cells(cells):
    of_cells, of_list = scratch(*cells.shape), scratch(*cells.shape)
    n = events.group_cells(cells, *of_cells)
    flat = cells.ravel()
    indices = np.flatnonzero(flat).astype(np.int32)
    n_listed = events.group(indices, flat[indices], len(indices), cells.shape[1], *of_list)
    assert n == n_listed == sum(-(-np.count_nonzero(row) // 4) for row in cells)
    for groups in (of_cells, of_list):
        np.testing.assert_array_equal(spread(groups, n, cells.shape), cells)
    for one, other in zip(of_cells, of_list, strict=True):
        np.testing.assert_array_equal(one[:n], other[:n])


def plain(cells, weights, targets, n_out):
    """The plain twin: every position, tap and channel in turn."""
    out = np.zeros((n_out, weights.shape[2]))
    for p in range(cells.shape[0]):
        for k in range(weights.shape[0]):
            if targets[p, k] >= 0:
                for c in range(cells.shape[1]):
                    out[targets[p, k]] += cells[p, c] * weights[k, c]
    return out


@given(cells=sparse_cells(), n_taps=st.integers(1, 3), c_out=st.integers(1, 9), seed=st.integers(0, 99))
def test_events_and_blocks_bring_what_the_plain_loop_brings(cells, n_taps, c_out, seed):
    rng = np.random.default_rng(seed)
    n_positions, c_in = cells.shape
    # A tap joins a position with at most one other, and some with none.
    targets = np.stack([rng.permutation(n_positions) for _ in range(n_taps)], axis=1).astype(np.int32)
    targets[rng.random(targets.shape) < 0.3] = -1
    weights = rng.normal(size=(n_taps, c_in, c_out))
    expected = plain(cells, weights, targets, n_positions)

    groups = scratch(n_positions, c_in)
    n = events.group_cells(cells, *groups)
    out = np.zeros((n_positions, c_out))
    events.propagate(*groups[:3], n, targets, weights.reshape(-1, c_out), out)
    np.testing.assert_allclose(out, expected, atol=1e-12)

    tap, reads = np.nonzero(targets.T >= 0)
    starts = np.searchsorted(tap, np.arange(n_taps + 1))
    writes = targets[reads, tap]
    blocks = np.empty_like(out)
    taps._sample(cells, weights, starts, reads, writes, blocks)
    np.testing.assert_allclose(blocks, expected, atol=1e-12)
    either = np.empty_like(out)
    taps._either(cells, weights, starts, reads, writes, targets, either)
    np.testing.assert_allclose(either, expected, atol=1e-12)


@given(cells=sparse_cells(), seed=st.integers(0, 99))
def test_depthwise_events_keep_their_channel(cells, seed):
    rng = np.random.default_rng(seed)
    targets = rng.permutation(len(cells))[:, None].astype(np.int32)
    weights = rng.normal(size=(1, cells.shape[1]))
    groups = scratch(*cells.shape)
    out = np.zeros_like(cells)
    events.propagate_depthwise(*groups, events.group_cells(cells, *groups), targets, weights, out)
    expected = np.zeros_like(cells)
    expected[targets[:, 0]] = cells * weights
    np.testing.assert_allclose(out, expected, atol=1e-14)
