"""Matrix product with an order of summation that does not depend on the batch."""

from numba import njit, prange

ROWS = 32  # rows a task, a multiple of 4
DEPTH = 256  # k a block: its rows of w stay in the second-level cache while the task's rows pass


@njit(cache=True, nogil=True, fastmath={"contract"})
def _rows(x, w, out, first, last):
    """Rows first..last of the product. Four rows by four k make 16 products of 4 loads of w."""
    n = x.shape[1]
    m = w.shape[1]
    fours = last - (last - first) % 4
    out[first:last] = 0
    for k_first in range(0, n, DEPTH):
        k_last = min(k_first + DEPTH, n)
        k_fours = k_last - (k_last - k_first) % 4
        for b in range(first, fours, 4):
            o0 = out[b]
            o1 = out[b + 1]
            o2 = out[b + 2]
            o3 = out[b + 3]
            for k in range(k_first, k_fours, 4):
                w0 = w[k]
                w1 = w[k + 1]
                w2 = w[k + 2]
                w3 = w[k + 3]
                x00, x01, x02, x03 = x[b, k], x[b, k + 1], x[b, k + 2], x[b, k + 3]
                x10, x11, x12, x13 = x[b + 1, k], x[b + 1, k + 1], x[b + 1, k + 2], x[b + 1, k + 3]
                x20, x21, x22, x23 = x[b + 2, k], x[b + 2, k + 1], x[b + 2, k + 2], x[b + 2, k + 3]
                x30, x31, x32, x33 = x[b + 3, k], x[b + 3, k + 1], x[b + 3, k + 2], x[b + 3, k + 3]
                for j in range(m):
                    p0 = w0[j]
                    p1 = w1[j]
                    p2 = w2[j]
                    p3 = w3[j]
                    o0[j] = o0[j] + x00 * p0 + x01 * p1 + x02 * p2 + x03 * p3
                    o1[j] = o1[j] + x10 * p0 + x11 * p1 + x12 * p2 + x13 * p3
                    o2[j] = o2[j] + x20 * p0 + x21 * p1 + x22 * p2 + x23 * p3
                    o3[j] = o3[j] + x30 * p0 + x31 * p1 + x32 * p2 + x33 * p3
            for k in range(k_fours, k_last):
                for i in range(b, b + 4):
                    xi = x[i, k]
                    for j in range(m):
                        out[i, j] += xi * w[k, j]
        for i in range(fours, last):
            o0 = out[i]
            for k in range(k_first, k_fours, 4):
                w0 = w[k]
                w1 = w[k + 1]
                w2 = w[k + 2]
                w3 = w[k + 3]
                x00, x01, x02, x03 = x[i, k], x[i, k + 1], x[i, k + 2], x[i, k + 3]
                for j in range(m):
                    o0[j] = o0[j] + x00 * w0[j] + x01 * w1[j] + x02 * w2[j] + x03 * w3[j]
            for k in range(k_fours, k_last):
                xi = x[i, k]
                for j in range(m):
                    out[i, j] += xi * w[k, j]


@njit(parallel=True, cache=True, nogil=True)
def matmul(x, w, out):
    """out = x @ w for C-contiguous x (B, n), w (n, m), out (B, m).

    Every output element is one chain of fused multiply-adds in ascending k, whatever B is and
    however the rows are shared out, so splitting a batch changes no bit (BLAS gives no such promise, and
    its waiting threads take the cores from the other kernels).
    """
    n_rows = x.shape[0]
    for task in prange((n_rows + ROWS - 1) // ROWS):
        _rows(x, w, out, ROWS * task, min(ROWS * (task + 1), n_rows))


@njit(cache=True, nogil=True)
def matmul_few(x, w, out):
    """The same product on the calling thread, for few rows: waking another costs more than it saves."""
    _rows(x, w, out, 0, x.shape[0])
