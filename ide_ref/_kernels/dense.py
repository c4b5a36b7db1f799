"""Matrix product with an order of summation that does not depend on the batch."""

import numpy as np
from numba import njit, prange

from ide_ref._kernels.rows import LINE, TILE, add_rows, copy_panel, tile_product

ROWS = 24 * TILE  # rows a task
DEPTH = 256  # k a block: its part of a panel stays in the first-level cache while the task's rows pass


@njit(cache=True, nogil=True)
def _pack(w, transposed, k, depth, j, width, panel):
    """panel = w[k : k + depth, j : j + width], or of wᵀ."""
    if transposed:
        for c in range(width):
            for i in range(depth):
                panel[i, c] = w[j + c, k + i]
    elif width == panel.shape[1]:
        copy_panel(panel, w, k * w.shape[1] + j, w.shape[1], depth)
    else:
        for i in range(depth):
            for c in range(width):
                panel[i, c] = w[k + i, j + c]


@njit(cache=True, nogil=True)
def _part_of_tile(x, out, row, k, depth, j, width, panel, spare_x, spare):
    """A tile's product where rows or columns are missing, by copies of what there is."""
    n_rows = min(TILE, x.shape[0] - row)
    for r in range(n_rows):
        for i in range(depth):
            spare_x[r, i] = x[row + r, k + i]
        for c in range(width):
            spare[r, c] = out[row + r, j + c]
    tile_product(spare, 0, panel.shape[1], spare_x, 0, spare_x.shape[1], panel, depth)
    for r in range(n_rows):
        for c in range(width):
            out[row + r, j + c] = spare[r, c]


@njit(cache=True, nogil=True)
def _tiles(x, w, transposed, out, first, j):
    """Up to ROWS rows from ``first`` on, of the columns from j on, at most a panel's width of them."""
    n_rows, n = x.shape
    m = out.shape[1]
    lanes = LINE // x.itemsize
    width = min(lanes, m - j)
    last = min(first + ROWS, n_rows)
    panel = np.zeros((min(DEPTH, n), lanes), x.dtype)
    spare_x = np.zeros((TILE, panel.shape[0]), x.dtype)
    spare = np.zeros((TILE, lanes), x.dtype)
    for row in range(first, last):
        for c in range(width):
            out[row, j + c] = 0
    for k in range(0, n, DEPTH):
        depth = min(DEPTH, n - k)
        _pack(w, transposed, k, depth, j, width, panel)
        for row in range(first, last, TILE):
            if width == lanes and row + TILE <= n_rows:
                tile_product(out, row * m + j, m, x, row * n + k, n, panel, depth)
            else:
                _part_of_tile(x, out, row, k, depth, j, width, panel, spare_x, spare)


@njit(parallel=True, cache=True, nogil=True)
def matmul(x, w, transposed, out):
    """out = x @ w for C-contiguous x (B, n), w (n, m), out (B, m); or x @ wᵀ for w (m, n).

    Every output element is one chain of fused multiply-adds in ascending k, whatever B is and
    however the rows are shared out, so splitting a batch changes no bit (BLAS gives no such promise, and
    its waiting threads take the cores from the other kernels).
    """
    n_chunks = (x.shape[0] + ROWS - 1) // ROWS
    lanes = LINE // x.itemsize
    for task in prange(n_chunks * ((out.shape[1] + lanes - 1) // lanes)):
        _tiles(x, w, transposed, out, task % n_chunks * ROWS, task // n_chunks * lanes)


@njit(cache=True, nogil=True)
def matmul_few(x, w, out):
    """The product x @ w on the calling thread, for few rows: waking another costs more than it saves."""
    n, m = w.shape
    every = np.arange(n).astype(np.uint32)
    for row in range(x.shape[0]):
        for c in range(m):
            out[row, c] = 0
        add_rows(out, row * m, m, w, 0, m, every, x[row], 0, n)
