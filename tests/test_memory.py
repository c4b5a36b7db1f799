"""Memory that is used again: whose it is, when it comes back, and how much of it is kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ide_ref._kernels import memory

pytestmark = pytest.mark.kernels


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(memory, "_spare", {})
    monkeypatch.setattr(memory, "_sizes", [0, 0])


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_memory_comes_back_when_the_last_array_on_it_is_gone(dtype):
    n = memory.LARGE // np.dtype(dtype).itemsize
    array = memory.empty((2, n), dtype)
    array[:] = 1
    where, size = address(array), array.nbytes
    assert where % memory.LINE == 0
    assert (array.shape, array.dtype) == ((2, n), dtype)
    view = array[1:, 3:].T
    del array
    assert memory.spare() == 0
    another = memory.empty((2, n), dtype)
    assert not np.shares_memory(another, view)
    assert np.all(view == 1)
    del view
    assert memory.spare() == size
    again = memory.empty(2 * n, dtype)
    assert address(again) == where
    assert memory.spare() == 0


def test_small_arrays_are_not_kept():
    array = memory.empty(memory.LARGE - 1, np.uint8)
    assert address(array) % memory.LINE == 0
    del array
    assert memory.spare() == 0
    # ... and cost nothing that is kept.
    old = memory.empty(memory.LARGE, np.uint8)
    del old
    assert memory.empty(7, np.float32).shape == (7,)
    assert memory.spare() == memory.LARGE


def test_every_array_begins_at_a_cache_line():
    # The allocator's own addresses are multiples of 16: of many, some are in each place of a line.
    arrays = [memory.empty(n, np.uint8) for n in range(1, 400)]
    assert {address(array) % memory.LINE for array in arrays} == {0}


def test_what_is_kept_is_bounded_and_what_came_last(monkeypatch):
    monkeypatch.setattr(memory, "MOST", 3 * memory.LARGE)
    first, second, third = (memory.empty(memory.LARGE, np.uint8) for _ in range(3))
    new = memory.empty(2 * memory.LARGE, np.uint8)
    where = address(third)
    del first, second, third
    assert memory.spare() == 3 * memory.LARGE
    del new
    assert memory.spare() == 3 * memory.LARGE
    last = memory.empty(memory.LARGE, np.uint8)
    assert address(last) == where
    assert memory.spare() == 2 * memory.LARGE


def test_what_is_new_comes_in_exchange_for_what_was_kept():
    old = memory.empty(4 * memory.LARGE, np.uint8)
    del old
    new = memory.empty(3 * memory.LARGE, np.uint8)
    assert new.size == 3 * memory.LARGE
    assert memory.spare() == 0


def test_what_is_kept_stays_while_all_together_is_no_more_than_there_once_was(monkeypatch):
    monkeypatch.setattr(memory, "MOST", 3 * memory.LARGE)
    large, small = memory.empty(3 * memory.LARGE, np.uint8), memory.empty(2 * memory.LARGE, np.uint8)
    del small, large  # five in all, of which three are kept
    new = memory.empty(2 * memory.LARGE, np.uint8)
    assert memory.spare() == 3 * memory.LARGE
    more = memory.empty(memory.LARGE, np.uint8)
    assert memory.spare() == 0
    assert new.size + more.size == 3 * memory.LARGE


def test_zeros_and_copies_are_not_what_lay_there_before():
    array = memory.empty((1024, 1024), np.float32)
    array[:] = 7
    del array
    zeros = memory.zeros((1024, 1024), np.float32)
    assert not zeros.any()
    zeros[0] = 1
    np.testing.assert_array_equal(memory.copied(zeros.T), zeros.T)


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
