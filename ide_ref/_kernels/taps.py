"""Moving cells along the taps of a connection: the sparse half of every synapse.

A population of P positions with C channels is an array (B, P, C). ``table[q, k]`` is the position
that output q sees through tap k, or -1 outside the picture.
"""

from numba import njit, prange


@njit(parallel=True, cache=True, nogil=True)
def gather(cells, table, columns):
    """columns[b, q, k, :] = cells[b, table[q, k], :], zero outside. Overwrites columns (B, Q, K, C)."""
    n_batch, n_out, n_taps, _ = columns.shape
    for b in prange(n_batch):
        for q in range(n_out):
            for k in range(n_taps):
                p = table[q, k]
                if p >= 0:
                    columns[b, q, k, :] = cells[b, p, :]
                else:
                    columns[b, q, k, :] = 0


@njit(parallel=True, cache=True, nogil=True)
def scatter(columns, table, cells):
    """The transpose of ``gather``: cells[b, table[q, k], :] += columns[b, q, k, :]. Overwrites cells."""
    n_batch, n_out, n_taps, n_channels = columns.shape
    for b in prange(n_batch):
        cells[b] = 0
        for q in range(n_out):
            for k in range(n_taps):
                p = table[q, k]
                if p >= 0:
                    for c in range(n_channels):
                        cells[b, p, c] += columns[b, q, k, c]
