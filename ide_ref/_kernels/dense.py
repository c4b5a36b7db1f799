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
def _tiles(x, w, transposed, out, first, last, j, panel):
    """Rows first..last, a multiple of TILE, of the columns from j on, at most a panel's width of them."""
    n = x.shape[1]
    m = out.shape[1]
    lanes = panel.shape[1]
    width = min(lanes, m - j)
    spare = np.zeros((TILE, lanes), x.dtype)
    out[first:last, j : j + width] = 0
    for k in range(0, n, DEPTH):
        depth = min(DEPTH, n - k)
        _pack(w, transposed, k, depth, j, width, panel)
        for row in range(first, last, TILE):
            if width == lanes:
                tile_product(out, row * m + j, m, x, row * n + k, n, panel, depth)
                continue
            for r in range(TILE):
                for c in range(width):
                    spare[r, c] = out[row + r, j + c]
            tile_product(spare, 0, lanes, x, row * n + k, n, panel, depth)
            for r in range(TILE):
                for c in range(width):
                    out[row + r, j + c] = spare[r, c]


@njit(parallel=True, cache=True, nogil=True)
def matmul(x, w, transposed, out):
    """out = x @ w for C-contiguous x (B, n), w (n, m), out (B, m); or x @ wᵀ for w (m, n).

    Every output element is one chain of fused multiply-adds in ascending k, whatever B is and
    however the rows are shared out, so splitting a batch changes no bit (BLAS gives no such promise, and
    its waiting threads take the cores from the other kernels).
    """
    n_rows, n = x.shape
    m = out.shape[1]
    lanes = LINE // x.itemsize
    whole = n_rows - n_rows % TILE
    n_chunks = (whole + ROWS - 1) // ROWS
    # Rows that fill no tile go into one of their own.
    rest = np.zeros((TILE, n), x.dtype)
    rest[: n_rows - whole] = x[whole:]
    of_rest = np.empty((TILE, m), x.dtype)
    n_tasks = n_chunks + (whole < n_rows)
    for task in prange(n_tasks * ((m + lanes - 1) // lanes)):
        panel = np.zeros((min(DEPTH, n), lanes), x.dtype)
        j = task // n_tasks * lanes
        chunk = task % n_tasks
        if chunk < n_chunks:
            _tiles(x, w, transposed, out, chunk * ROWS, min((chunk + 1) * ROWS, whole), j, panel)
        else:
            _tiles(rest, w, transposed, of_rest, 0, TILE, j, panel)
    out[whole:] = of_rest[: n_rows - whole]


@njit(cache=True, nogil=True)
def matmul_few(x, w, out):
    """The product x @ w on the calling thread, for few rows: waking another costs more than it saves."""
    n, m = w.shape
    every = np.arange(n).astype(np.uint32)
    for row in range(x.shape[0]):
        out[row, :] = 0
        add_rows(out, row * m, m, w, 0, m, every, x[row], 0, n)
