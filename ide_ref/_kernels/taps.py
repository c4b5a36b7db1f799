"""Products along the taps of a connection: apply, adjoint and Hebbian of every convolution.

A population of P positions with C channels is an array (B, P, C). The pairs starts[k] .. starts[k + 1] of
``reads`` and ``writes`` are the positions that tap k joins; a position is written at most once a tap.
Exchanging ``reads`` and ``writes`` (and the axes of the weights) transposes the map.
"""

import numpy as np
from numba import njit, prange

from ide_ref._kernels.events import group_cells, propagate

NEAR = 32768  # bytes of a tap's weights that stay in the first-level cache
DENSE = 0.9  # share of cells that are not 0 up to which events win over blocks where weights stay near
SPARSE = 0.4  # the same where they do not
SLICES = 16  # of a batch, whose outer products are summed apart


@njit(cache=True, nogil=True, fastmath={"contract"})
def _sample(cells, weights, starts, reads, writes, out):
    """out[q] = Σ over taps k and pairs (p, q) of cells[p] @ weights[k], for one sample.

    Four pairs by four channels make 16 products of 4 loads of the weights. Channels in which all four cells are
    0 are passed over: Mβ and rates are sparse, (ACTIVE).
    """
    n_taps, c_in, c_out = weights.shape
    active = np.empty(c_in, np.int64)
    out[:, :] = 0
    for k in range(n_taps):
        w = weights[k]
        first = starts[k]
        last = starts[k + 1]
        fours = last - (last - first) % 4
        for i in range(first, fours, 4):
            x0 = cells[reads[i]]
            x1 = cells[reads[i + 1]]
            x2 = cells[reads[i + 2]]
            x3 = cells[reads[i + 3]]
            o0 = out[writes[i]]
            o1 = out[writes[i + 1]]
            o2 = out[writes[i + 2]]
            o3 = out[writes[i + 3]]
            n_active = 0
            for c in range(c_in):
                active[n_active] = c
                n_active += (x0[c] != 0) | (x1[c] != 0) | (x2[c] != 0) | (x3[c] != 0)
            for e in range(0, n_active - 3, 4):
                c0 = active[e]
                c1 = active[e + 1]
                c2 = active[e + 2]
                c3 = active[e + 3]
                w0 = w[c0]
                w1 = w[c1]
                w2 = w[c2]
                w3 = w[c3]
                a00, a01, a02, a03 = x0[c0], x0[c1], x0[c2], x0[c3]
                a10, a11, a12, a13 = x1[c0], x1[c1], x1[c2], x1[c3]
                a20, a21, a22, a23 = x2[c0], x2[c1], x2[c2], x2[c3]
                a30, a31, a32, a33 = x3[c0], x3[c1], x3[c2], x3[c3]
                for j in range(c_out):
                    p0 = w0[j]
                    p1 = w1[j]
                    p2 = w2[j]
                    p3 = w3[j]
                    o0[j] = o0[j] + a00 * p0 + a01 * p1 + a02 * p2 + a03 * p3
                    o1[j] = o1[j] + a10 * p0 + a11 * p1 + a12 * p2 + a13 * p3
                    o2[j] = o2[j] + a20 * p0 + a21 * p1 + a22 * p2 + a23 * p3
                    o3[j] = o3[j] + a30 * p0 + a31 * p1 + a32 * p2 + a33 * p3
            for e in range(n_active - n_active % 4, n_active):
                c0 = active[e]
                a00, a10, a20, a30 = x0[c0], x1[c0], x2[c0], x3[c0]
                w0 = w[c0]
                for j in range(c_out):
                    p0 = w0[j]
                    o0[j] = o0[j] + a00 * p0
                    o1[j] = o1[j] + a10 * p0
                    o2[j] = o2[j] + a20 * p0
                    o3[j] = o3[j] + a30 * p0
        for i in range(fours, last):
            x0 = cells[reads[i]]
            o0 = out[writes[i]]
            for c in range(c_in):
                a00 = x0[c]
                if a00 != 0:
                    w0 = w[c]
                    for j in range(c_out):
                        o0[j] = o0[j] + a00 * w0[j]


@njit(cache=True, nogil=True)
def _either(cells, weights, starts, reads, writes, targets, out):
    """One sample, event by event where that is quicker; the choice depends on the sample alone."""
    n_positions, c_in = cells.shape
    n_active = 0
    for p in range(n_positions):
        for c in range(c_in):
            n_active += cells[p, c] != 0
    near = weights[0].size * weights.itemsize <= NEAR
    if n_active > (DENSE if near else SPARSE) * cells.size:
        _sample(cells, weights, starts, reads, writes, out)
        return
    largest = n_positions * ((c_in + 3) // 4) + 1
    positions = np.empty(largest, np.uint32)
    channels = np.empty((largest, 4), np.uint32)
    factors = np.empty((largest, 4), cells.dtype)
    n_groups = group_cells(cells, positions, channels, factors)
    out[:, :] = 0
    rows = weights.reshape(weights.shape[0] * c_in, weights.shape[2])
    propagate(positions, channels, factors, n_groups, targets, rows, out)


@njit(parallel=True, cache=True, nogil=True)
def product(cells, weights, starts, reads, writes, targets, out):
    """The map of a batch: cells (B, P, C_in), weights (K, C_in, C_out); overwrites out (B, Q, C_out).

    The pairs starts, reads, writes and the table targets (P, K) say the same twice, tap by tap and position by
    position.
    """
    for b in prange(cells.shape[0]):
        _either(cells[b], weights, starts, reads, writes, targets, out[b])


@njit(cache=True, nogil=True)
def product_one(cells, weights, starts, reads, writes, targets, out):
    """The same for one sample, on the calling thread."""
    _either(cells[0], weights, starts, reads, writes, targets, out[0])


@njit(cache=True, nogil=True, fastmath={"contract"})
def _outer(pre, post, reads, writes, first, last, active, w):
    """Add the outer products of one sample along the pairs first..last of a tap to w (C_in, C_out).

    Four pairs by four channels, as in the product; channels silent at all four positions are passed over.
    """
    c_in, c_out = w.shape
    fours = last - (last - first) % 4
    for i in range(first, fours, 4):
        x0 = pre[reads[i]]
        x1 = pre[reads[i + 1]]
        x2 = pre[reads[i + 2]]
        x3 = pre[reads[i + 3]]
        d0 = post[writes[i]]
        d1 = post[writes[i + 1]]
        d2 = post[writes[i + 2]]
        d3 = post[writes[i + 3]]
        n_active = 0
        for c in range(c_in):
            active[n_active] = c
            n_active += (x0[c] != 0) | (x1[c] != 0) | (x2[c] != 0) | (x3[c] != 0)
        c_fours = n_active - n_active % 4
        for e in range(0, c_fours, 4):
            c0 = active[e]
            c1 = active[e + 1]
            c2 = active[e + 2]
            c3 = active[e + 3]
            w0 = w[c0]
            w1 = w[c1]
            w2 = w[c2]
            w3 = w[c3]
            a00, a01, a02, a03 = x0[c0], x1[c0], x2[c0], x3[c0]
            a10, a11, a12, a13 = x0[c1], x1[c1], x2[c1], x3[c1]
            a20, a21, a22, a23 = x0[c2], x1[c2], x2[c2], x3[c2]
            a30, a31, a32, a33 = x0[c3], x1[c3], x2[c3], x3[c3]
            for j in range(c_out):
                p0 = d0[j]
                p1 = d1[j]
                p2 = d2[j]
                p3 = d3[j]
                w0[j] = w0[j] + a00 * p0 + a01 * p1 + a02 * p2 + a03 * p3
                w1[j] = w1[j] + a10 * p0 + a11 * p1 + a12 * p2 + a13 * p3
                w2[j] = w2[j] + a20 * p0 + a21 * p1 + a22 * p2 + a23 * p3
                w3[j] = w3[j] + a30 * p0 + a31 * p1 + a32 * p2 + a33 * p3
        for e in range(c_fours, n_active):
            c0 = active[e]
            w0 = w[c0]
            a00, a01, a02, a03 = x0[c0], x1[c0], x2[c0], x3[c0]
            for j in range(c_out):
                w0[j] = w0[j] + a00 * d0[j] + a01 * d1[j] + a02 * d2[j] + a03 * d3[j]
    for i in range(fours, last):
        x0 = pre[reads[i]]
        d0 = post[writes[i]]
        for c in range(c_in):
            a00 = x0[c]
            if a00 != 0:
                w0 = w[c]
                for j in range(c_out):
                    w0[j] = w0[j] + a00 * d0[j]


@njit(parallel=True, cache=True, nogil=True)
def hebbian(pre, post, starts, reads, writes, partial, out):
    """out[k, c, :] = Σ over samples and pairs (p, q) of tap k of pre[b, p, c] post[b, q, :].

    pre (B, P, C_in), post (B, Q, C_out); overwrites out (K, C_in, C_out). The samples are shared out among the
    slices of partial (S, K, C_in, C_out), whose sum is taken in their order: the same bits from any number of
    threads.
    """
    n_batch, _, c_in = pre.shape
    n_slices, n_taps, _, _ = partial.shape
    share = (n_batch + n_slices - 1) // n_slices
    for i in prange(n_slices):
        w = partial[i]
        w[:] = 0
        active = np.empty(c_in, np.int64)
        for b in range(i * share, min((i + 1) * share, n_batch)):
            for k in range(n_taps):
                _outer(pre[b], post[b], reads, writes, starts[k], starts[k + 1], active, w[k])
    for k in prange(n_taps):
        out[k] = partial[0, k]
        for i in range(1, n_slices):
            for c in range(c_in):
                for j in range(out.shape[2]):
                    out[k, c, j] += partial[i, k, c, j]


@njit(parallel=True, cache=True, nogil=True)
def depthwise(cells, factors, starts, reads, writes, out):
    """out[b, q, c] = Σ over taps k and pairs (p, q) of factors[k, c] cells[b, p, c]. Overwrites out."""
    for b in prange(cells.shape[0]):
        out[b] = 0
        for k in range(factors.shape[0]):
            for i in range(starts[k], starts[k + 1]):
                x = cells[b, reads[i]]
                o = out[b, writes[i]]
                for c in range(factors.shape[1]):
                    o[c] += factors[k, c] * x[c]
