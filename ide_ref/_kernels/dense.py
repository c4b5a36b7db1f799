"""Matrix product with an order of summation that does not depend on the batch."""

import numpy as np
from numba import prange

from ide_ref._kernels._jit import helper, njit
from ide_ref._kernels.memory import LINE
from ide_ref._kernels.vector import TILE, add_rows, copy_across, copy_panel, tile_product

TASK_ROWS = 24 * TILE  # rows a task,
ACROSS = 72 * TILE  # or so many where the rows of x lie across, whose columns are read anyway,
FEW = 4 * TILE  # or so many where there are few columns, so that every thread has some
DEPTH = 256  # k per block: its part of a panel stays in the first-level cache while the task's rows pass


@helper
def _pack(w, transposed, k, depth, j, width, panel):
    """panel = w[k : k + depth, j : j + width], or of wᵀ."""
    if width == panel.shape[1]:
        if transposed:
            copy_across(panel, 0, width, w, j * w.shape[1] + k, w.shape[1], depth)
        else:
            copy_panel(panel, w, k * w.shape[1] + j, w.shape[1], depth)
    else:
        for i in range(depth):
            for c in range(width):
                panel[i, c] = w[j + c, k + i] if transposed else w[k + i, j + c]


@helper
def _part_of_tile(x, x_at, x_row, x_step, out, at, out_row, depth, n_rows, width, panel, spare_x, spare):
    """A tile's product where rows or columns are missing, by copies of what there is."""
    for r in range(n_rows):
        for i in range(depth):
            spare_x[r, i] = x[x_at + r * x_row + i * x_step]
        for c in range(width):
            spare[r, c] = out[at + r * out_row + c]
    tile_product(spare, 0, panel.shape[1], spare_x, 0, spare_x.shape[1], 1, panel, depth)
    for r in range(n_rows):
        for c in range(width):
            out[at + r * out_row + c] = spare[r, c]


@helper
def _tiles(x, x_row, x_step, n_rows, w, transposed, add, out, out_row, first, last, j):
    """The rows from ``first`` to ``last``, of the columns from j on, at most a panel's width of them."""
    n = w.shape[1] if transposed else w.shape[0]
    m = w.shape[0] if transposed else w.shape[1]
    lanes = LINE // x.itemsize
    width = min(lanes, m - j)
    panel = np.zeros((min(DEPTH, n), lanes), x.dtype)
    spare_x = np.zeros((TILE, panel.shape[0]), x.dtype)
    spare = np.zeros((TILE, lanes), x.dtype)
    if not add:
        for row in range(first, last):
            for c in range(width):
                out[row * out_row + j + c] = 0
    for k in range(0, n, DEPTH):
        depth = min(DEPTH, n - k)
        _pack(w, transposed, k, depth, j, width, panel)
        for row in range(first, last, TILE):
            x_at, at = row * x_row + k * x_step, row * out_row + j
            if width == lanes and row + TILE <= n_rows:
                tile_product(out, at, out_row, x, x_at, x_row, x_step, panel, depth)
            else:
                here = min(TILE, n_rows - row)
                _part_of_tile(x, x_at, x_row, x_step, out, at, out_row, depth, here, width, panel, spare_x, spare)


@njit(parallel=True)
def matmul(x, x_row, x_step, n_rows, w, transposed, add, out, out_row):
    """out = x @ w, or that added to out, for x (B, n), w (n, m), out (B, m); x @ wᵀ for w (m, n).

    x and out are flat: x[b, k] lies at b x_row + k x_step, so either order of its axes, out[b, j] at b out_row + j.
    Every output element is one chain of fused multiply-adds in ascending k, from 0 or from what it was, whatever B is
    and however the rows are shared out, so splitting a batch changes no bit (BLAS gives no such promise, and its
    waiting threads take the cores from the other kernels).
    """
    lanes = LINE // x.itemsize
    n_panels = ((w.shape[0] if transposed else w.shape[1]) + lanes - 1) // lanes
    share = FEW if n_panels <= 4 else TASK_ROWS if x_step == 1 else ACROSS
    n_chunks = (n_rows + share - 1) // share
    for task in prange(n_chunks * n_panels):
        first = task % n_chunks * share
        last = min(first + share, n_rows)
        _tiles(x, x_row, x_step, n_rows, w, transposed, add, out, out_row, first, last, task // n_chunks * lanes)


@njit
def matmul_few(x, w, add, out, out_row):
    """The product x @ w of 2-d arrays on the calling thread, for few rows: waking another costs more than it saves."""
    n, m = w.shape
    every = np.arange(n).astype(np.uint32)
    for row in range(x.shape[0]):
        if not add:
            for c in range(m):
                out[row * out_row + c] = 0
        add_rows(out, row * out_row, m, w, 0, m, every, x[row], 0, n)


@njit(fastmath={"reassoc", "contract"})
def dot(x, y):
    """x · y, in their dtype and in the order that suits the processor."""
    total = x.dtype.type(0)
    for j in range(x.shape[0]):
        total += x[j] * y[j]
    return total


@njit
def dots(w, v, out):
    """out = w v for w (m, n), a row at a time."""
    for i in range(w.shape[0]):
        out[i] = dot(w[i], v)
