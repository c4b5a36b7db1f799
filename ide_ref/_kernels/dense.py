"""Matrix product with an order of summation that does not depend on the batch."""

import numpy as np
from numba import njit, prange

from ide_ref._kernels.rows import LINE, TILE, add_rows, copy_panel, tile_product

ROWS = 24 * TILE  # rows a task
DEPTH = 256  # k a block: its part of a panel stays in the first-level cache while the task's rows pass


@njit(cache=True, nogil=True)
def _tiles(x, w, out, first, last, j, panel):
    """Rows first..last, a multiple of TILE, of the columns from j on, at most a panel's width of them."""
    n = x.shape[1]
    m = w.shape[1]
    lanes = panel.shape[1]
    width = min(lanes, m - j)
    spare = np.zeros((TILE, lanes), x.dtype)
    for k in range(0, n, DEPTH):
        depth = min(DEPTH, n - k)
        if width == lanes:
            copy_panel(panel, w, k * m + j, m, depth)
            for row in range(first, last, TILE):
                tile_product(out, row * m + j, m, x, row * n + k, n, panel, depth)
        else:
            for i in range(depth):
                for c in range(width):
                    panel[i, c] = w[k + i, j + c]
            for row in range(first, last, TILE):
                for r in range(TILE):
                    for c in range(width):
                        spare[r, c] = out[row + r, j + c]
                tile_product(spare, 0, lanes, x, row * n + k, n, panel, depth)
                for r in range(TILE):
                    for c in range(width):
                        out[row + r, j + c] = spare[r, c]


@njit(cache=True, nogil=True)
def _row(x, w, out, row, every):
    out[row, :] = 0
    m = w.shape[1]
    add_rows(out, row * m, m, w, 0, m, every, x[row], 0, every.shape[0])


@njit(parallel=True, cache=True, nogil=True)
def matmul(x, w, out):
    """out = x @ w for C-contiguous x (B, n), w (n, m), out (B, m).

    Every output element is one chain of fused multiply-adds in ascending k, whatever B is and
    however the rows are shared out, so splitting a batch changes no bit (BLAS gives no such promise, and
    its waiting threads take the cores from the other kernels).
    """
    n_rows, n = x.shape
    lanes = LINE // x.itemsize
    tiled = n_rows - n_rows % TILE
    n_chunks = (tiled + ROWS - 1) // ROWS
    n_panels = (w.shape[1] + lanes - 1) // lanes
    for task in prange(n_chunks * n_panels):
        panel = np.zeros((min(DEPTH, n), lanes), x.dtype)
        first = task % n_chunks * ROWS
        last = min(first + ROWS, tiled)
        j = task // n_chunks * lanes
        out[first:last, j : j + lanes] = 0
        _tiles(x, w, out, first, last, j, panel)
    every = np.arange(n).astype(np.uint32)
    for row in prange(tiled, n_rows):
        _row(x, w, out, row, every)


@njit(cache=True, nogil=True)
def matmul_few(x, w, out):
    """The same product on the calling thread, for few rows: waking another costs more than it saves."""
    every = np.arange(x.shape[1]).astype(np.uint32)
    for row in range(x.shape[0]):
        _row(x, w, out, row, every)
