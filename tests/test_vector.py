"""The vector code of the innermost loops against its twins in plain loops, on exact sums and on any numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from ide_ref._kernels import dense, vector
from ide_ref._kernels.memory import LINE

pytestmark = pytest.mark.kernels


def twins(name):
    """A function of the innermost loops, called from compiled code, and the same in plain loops."""
    function = getattr(vector, name)

    @njit
    def call(*arguments):
        return function(*arguments)

    return call, njit(getattr(vector, f"_{name}"))


ADD_ROWS, ADD_ROWS_THROUGH, ADD_RUNS = map(twins, ("add_rows", "add_rows_through", "add_runs"))
COPY_ACROSS, COPY_PANEL, TILE_PRODUCT = map(twins, ("copy_across", "copy_panel", "tile_product"))
NONZERO, FIRE = map(twins, ("nonzero", "fire"))
DTYPES = st.sampled_from([np.float32, np.float64])


def sixteenths(rng, shape, dtype):
    """Numbers whose sums and products are exact in either dtype, so that the order of a sum does not matter."""
    return (rng.integers(-16, 17, shape) / 16).astype(dtype)


@pytest.mark.parametrize(("setting", "other"), [("BOUNDSCHECK", "DISABLE_JIT"), ("DISABLE_JIT", "BOUNDSCHECK")])
def test_the_twin_is_called_where_bounds_are_checked_or_nothing_is_compiled(monkeypatch, setting, other):
    def twin():
        return "twin"

    monkeypatch.setattr(vector.config, other, 0)  # whatever this run itself is under
    for value, expected in ((1, "twin"), (0, "vector"), (None, "vector")):
        monkeypatch.setattr(vector.config, setting, value)
        chosen = vector._choose(twin, lambda: "vector")
        assert getattr(chosen, "py_func", chosen)() == expected


@given(
    dtype=DTYPES,
    width=st.one_of(st.integers(1, 20), st.integers(1, 300)),
    n_rows=st.integers(1, 9),
    n_events=st.integers(0, 12),
    spare=st.integers(0, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_rows_are_added_where_and_as_often_as_told(dtype, width, n_rows, n_events, spare, seed):
    rng = np.random.default_rng(seed)
    stride = width + spare
    w = sixteenths(rng, (n_rows + 1, stride), dtype)
    out = sixteenths(rng, width + 2 * spare + 1, dtype)
    index = rng.integers(0, n_rows, n_events + spare).astype(np.uint32)
    values = sixteenths(rng, n_events + spare, dtype)
    where = (spare, width, w, spare, stride, index, values, spare, spare + n_events)

    expected = out.copy()
    for e in range(spare, spare + n_events):
        flat = spare + stride * int(index[e])
        expected[spare : spare + width] += values[e] * w.ravel()[flat : flat + width]
    for function in ADD_ROWS:
        found = out.copy()
        function(found, *where)
        np.testing.assert_array_equal(found, expected)

    table = rng.permutation(n_rows).astype(np.uint32)
    through = np.argsort(table).astype(np.uint32)[index]  # table[through] = index
    shifted = np.concatenate([np.full(spare, n_rows, np.uint32), table])
    for function in ADD_ROWS_THROUGH:
        found = out.copy()
        function(found, *where[:5], through, *where[6:], shifted, spare)
        np.testing.assert_array_equal(found, expected)


@given(
    dtype=DTYPES,
    width=st.one_of(st.sampled_from([32, 64]), st.integers(1, 70)),
    n_events=st.integers(0, 20),
    n_runs=st.integers(0, 6),
    seed=st.integers(0, 2**32 - 1),
)
def test_runs_are_summed_one_by_one(dtype, width, n_events, n_runs, seed):
    rng = np.random.default_rng(seed)
    w, out = sixteenths(rng, (14, width), dtype), sixteenths(rng, 5 * width + 3, dtype)
    index, values = rng.integers(3, 10, n_events).astype(np.uint32), sixteenths(rng, n_events, dtype)
    bounds = np.sort(rng.integers(0, n_events + 1, (n_runs + 2, 2)))
    added, at = rng.integers(-1, 2, n_runs + 2), rng.integers(0, 4 * width + 1, n_runs + 2)
    runs = np.column_stack([bounds, added, at]).astype(np.int32)
    expected = out.copy()
    for lo, hi, tap, to in runs[1 : 1 + n_runs]:
        for e in range(lo, hi):
            row = width + 2 * width * tap + width * int(index[e])
            expected[2 + to : 2 + to + width] += values[e] * w.ravel()[row : row + width]
    for function in ADD_RUNS:
        found = out.copy()
        function(found, 2, width, w, width, 2 * width, index, values, runs, 1, 1 + n_runs, 0, 1)
        np.testing.assert_array_equal(found, expected)


@given(dtype=DTYPES, depth=st.integers(0, 40), spare=st.integers(0, 7), seed=st.integers(0, 2**32 - 1))
def test_rows_become_columns(dtype, depth, spare, seed):
    lanes = LINE // np.dtype(dtype).itemsize
    w = np.random.default_rng(seed).normal(size=(lanes, depth + spare + 1)).astype(dtype)
    expected = np.full((depth + 1, lanes + spare), 7, dtype)
    expected[:depth, spare:] = w[:, 1 : 1 + depth].T
    for function in COPY_ACROSS:
        found = np.full_like(expected, 7)
        function(found, spare, lanes + spare, w, 1, depth + spare + 1, depth)
        np.testing.assert_array_equal(found, expected)


@given(dtype=DTYPES, depth=st.integers(0, 40), spare=st.integers(0, 7), seed=st.integers(0, 2**32 - 1))
def test_a_tile_gains_a_product(dtype, depth, spare, seed):
    rng = np.random.default_rng(seed)
    lanes = LINE // np.dtype(dtype).itemsize
    w = sixteenths(rng, (depth + 1, lanes + spare), dtype)
    panels = []
    for function in COPY_PANEL:
        panel = np.full((depth + 1, lanes), 7, dtype)
        function(panel, w, 0, lanes + spare, depth)
        np.testing.assert_array_equal(panel[:depth], w[:depth, :lanes])
        assert np.all(panel[depth] == 7)
        panels.append(panel)
    x = sixteenths(rng, (vector.TILE, depth + spare + 1), dtype)
    out = sixteenths(rng, (vector.TILE, lanes + spare), dtype)
    expected = out.copy()
    expected[:, :lanes] += x[:, :depth] @ w[:depth, :lanes]
    for function in TILE_PRODUCT:
        for read, x_row, x_step in ((x, depth + spare + 1, 1), (np.ascontiguousarray(x.T), 1, vector.TILE)):
            found = out.copy()
            function(found, 0, lanes + spare, read, 0, x_row, x_step, panels[0], depth)
            np.testing.assert_array_equal(found, expected)


@given(dtype=DTYPES, n=st.integers(0, 70), at=st.integers(0, 3), seed=st.integers(0, 2**32 - 1))
def test_searches_find_what_comparisons_find(dtype, n, at, seed):
    rng = np.random.default_rng(seed)
    values = rng.choice([-1.0, 0.0, 0.5, 1.0, np.nan, np.inf], size=n + at + 1).astype(dtype)
    for function in NONZERO:
        found = np.full(n + 2, 99, np.uint32)
        count = function(values, at, n, found, 1)
        expected = np.flatnonzero(values[at : at + n])
        np.testing.assert_array_equal(found[1 : 1 + count], expected)
        assert count == expected.size
        assert found[0] == found[1 + n] == 99


@given(dtype=DTYPES, n=st.integers(0, 70), at=st.integers(0, 3), go_on=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_neurons_fire_and_tell_what_was_not_predicted(dtype, n, at, go_on, seed):
    rng = np.random.default_rng(seed)
    u = rng.choice([-1.0, 0.5, 0.75, 1.0, 2.5, np.nan], size=n + at + 1, p=[0.2, 0.2, 0.1, 0.2, 0.2, 0.1]).astype(dtype)
    a, constant = sixteenths(rng, n + at + 1, dtype), sixteenths(rng, n + 2, dtype)
    predicted = rng.integers(0, 2, n + 2).astype(np.uint8)
    inside = slice(at, at + n)
    s = u[inside] >= 0.75
    distance = np.abs(u[inside] - dtype(0.75))
    u_after, a_after = u.copy(), a.copy()
    u_after[inside] -= dtype(0.75) * s
    if go_on:
        u_after[inside] = dtype(0.5) * u_after[inside] + constant[1 : 1 + n]
    a_after[inside] += dtype(0.25) * s
    told = np.flatnonzero(s != predicted[1 : 1 + n])
    for function in FIRE:
        u_found, a_found = u.copy(), a.copy()
        events, values = np.full(n + 2, 99, np.uint32), np.full(n + 2, 99, dtype)
        n_events, n_spikes, near = function(
            u_found, a_found, at, n, dtype(0.75), dtype(0.25), predicted, events, values, 1, go_on, dtype(0.5), constant
        )
        np.testing.assert_array_equal(u_found, u_after)
        np.testing.assert_array_equal(a_found, a_after)
        assert (n_events, n_spikes) == (told.size, s.sum())
        assert near == np.nanmin(distance, initial=np.inf)
        np.testing.assert_array_equal(events[1 : 1 + n_events], told)
        np.testing.assert_array_equal(values[1 : 1 + n_events], s[told] - predicted[1:][told].astype(dtype))
        for array in (events, values):
            assert array[0] == array[1 + n] == 99


@given(
    dtype=DTYPES,
    n_rows=st.integers(1, 40),
    depth=st.one_of(st.integers(1, 20), st.integers(250, 520)),
    n_columns=st.integers(1, 40),
    cut=st.integers(0, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_are_matrix_products_whatever_the_layout_and_the_batch(dtype, n_rows, depth, n_columns, cut, seed):
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(n_rows, depth)).astype(dtype), rng.normal(size=(depth, n_columns)).astype(dtype)
    row = n_columns + 3

    def product(x, w, *, across=False, add=None):
        """From kernels that read either order of the axes and write rows with something between them."""
        out = np.full((len(x), row), 7, dtype)
        if add is not None:
            out[:, :n_columns] = add
        read = np.ascontiguousarray(x.T if across else x).ravel()
        x_row, x_step = (1, len(x)) if across else (depth, 1)
        dense.matmul(read, x_row, x_step, len(x), w, w.shape[0] != depth, add is not None, out.ravel(), row)
        assert np.all(out[:, n_columns:] == 7)
        return out[:, :n_columns]

    whole = product(x, w)
    exact = x.astype(np.float64) @ w.astype(np.float64)
    scale = np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64)
    assert np.all(np.abs(whole - exact) <= depth * np.finfo(dtype).eps * scale)
    np.testing.assert_array_equal(product(x, w, across=True), whole)
    if depth != n_columns:
        np.testing.assert_array_equal(product(x, np.ascontiguousarray(w.T)), whole)
    before = rng.normal(size=whole.shape).astype(dtype)
    more = product(x, w, add=before)
    assert np.all(np.abs(more - before - exact) <= (depth + 2) * np.finfo(dtype).eps * (scale + np.abs(before)))
    # The same bits from parts of the batch, and from the kernel for few rows.
    for part in (slice(0, cut), slice(cut, None)):
        if len(x[part]):
            np.testing.assert_array_equal(product(x[part], w), whole[part])
            np.testing.assert_array_equal(product(x[part], w, add=before[part]), more[part])
            for add, expected in ((False, whole), (True, more)):
                out = before[part].copy()
                dense.matmul_few(x[part], w, add, out.reshape(-1), n_columns)
                np.testing.assert_array_equal(out, expected[part])
    found = np.empty(n_columns, dtype)
    dense.dots(np.ascontiguousarray(w.T), x[0], found)
    assert np.all(np.abs(found - exact[0]) <= depth * np.finfo(dtype).eps * scale[0])
