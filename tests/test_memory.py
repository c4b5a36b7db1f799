"""Where arrays lie in memory: at cache lines, and rows of a wider array where they are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ide_ref._kernels import memory

pytestmark = pytest.mark.kernels


def address(array):
    return array.__array_interface__["data"][0]


@given(
    shape=st.one_of(st.integers(0, 300), st.lists(st.integers(0, 40), max_size=3).map(tuple)),
    dtype=st.sampled_from([np.float32, np.float64, np.uint8]),
)
def test_new_arrays_begin_at_a_cache_line(shape, dtype):
    source = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    for array in (
        memory.empty(shape, dtype),
        memory.zeros(shape, dtype),
        memory.copied(source),
        memory.aligned(source),
    ):
        assert address(array) % memory.LINE == 0
        assert (array.shape, array.dtype) == (source.shape, source.dtype)
    assert not memory.zeros(shape, dtype).any()
    np.testing.assert_array_equal(memory.copied(source.T), source.T)
    np.testing.assert_array_equal(memory.aligned(source.T, np.float64), source.T)


def test_arrays_that_lie_well_are_not_copied():
    array = memory.empty((4, 16), np.float32)
    assert memory.aligned(array) is array
    assert memory.copied(array) is not array
    for other in (array[:, 1:], array.T, array[:, ::2]):
        assert not np.shares_memory(memory.aligned(other), array)


@given(
    n_rows=st.integers(0, 4),
    n=st.integers(1, 5),
    before=st.integers(0, 2),
    after=st.integers(0, 2),
    step=st.integers(1, 2),
)
def test_rows_are_the_memory_they_lie_in(n_rows, n, before, after, step):
    width = before + n * step + after
    whole = np.arange(n_rows * width, dtype=np.float64).reshape(n_rows, width)
    x = whole[:, before : before + n * step : step]
    flat, row = memory.rows(x)
    for b in range(n_rows):
        np.testing.assert_array_equal(flat[b * row : b * row + n], x[b])
    if x.size and n > 1 and step > 1:
        with pytest.raises(ValueError, match="side by side"):
            memory.rows(x, written=True)
    if x.size and step == 1:
        flat[-1] = -1
        assert x[-1, -1] == -1
