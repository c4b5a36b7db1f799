"""What is done cell by cell: batch normalisation and its derivative, masks, and the step of the optimiser.

States are flat arrays in which sample b begins at b · row, see ``memory.rows``.

Sums over samples are taken by slices of the rows, each in float64, and then in the slices' order: the same bits from
any number of threads.
"""

import numpy as np
from numba import prange

from ide_ref._kernels._jit import helper, njit
from ide_ref._kernels.dense import dot

SLICES = 16


@helper
def _add(row, total):
    for c in range(row.shape[0]):
        total[c] += row[c]


@helper
def _add_squares(row, mean, total):
    for c in range(row.shape[0]):
        total[c] += (row[c] - mean[c]) ** 2


@njit(parallel=True)
def moments(z, mean, variance):
    """Mean and biased variance of each column of z (N, C), in float64: overwrites mean and variance (C,)."""
    n, n_channels = z.shape
    partial = np.zeros((SLICES, n_channels))
    for again in range(2):
        for i in prange(SLICES):
            total = partial[i]
            total[:] = 0
            for row in range(i * n // SLICES, (i + 1) * n // SLICES):
                if again == 0:
                    _add(z[row], total)
                else:
                    _add_squares(z[row], mean, total)
        into = variance if again else mean
        into[:] = 0
        for i in range(SLICES):
            for c in range(n_channels):
                into[c] += partial[i, c] / n


@helper
def _add_products(delta, z, mean, inverse, along, total, rest):
    for c in range(z.shape[0]):
        centred = z[c] - mean[c]
        along[c] += delta[c] * (centred * inverse[c])
        total[c] += delta[c]
        rest[c] += centred


@helper(fastmath={"contract"})
def _back(delta, z, mean, scale, constant, slope, d_z):
    for c in range(z.shape[0]):
        d_z[c] = scale[c] * (delta[c] - constant[c] - slope[c] * (z[c] - mean[c]))


@njit(parallel=True)
def normalised_back(delta, z, mean, deviation, weight, from_batch, eps, d_z, d_weight, d_bias):
    """Derivatives of weight · ẑ + bias, ẑ = (z − mean)/deviation, in z, weight and bias, (BN).

    Parameters
    ----------
    delta, z : (N, C)  ∂L/∂y, and what was normalised.
    mean, deviation, weight : (C,)
    from_batch : whether mean and deviation are those of z itself, and the derivative passes through them.
    eps : of the dtype to which the mean was rounded.
    d_z : (N, C)  overwritten.
    d_weight, d_bias : (C,) float64  overwritten.
    """
    n, n_channels = z.shape
    partial = np.zeros((SLICES, 3, n_channels))
    inverse = 1 / deviation
    for i in prange(SLICES):
        for row in range(i * n // SLICES, (i + 1) * n // SLICES):
            _add_products(delta[row], z[row], mean, inverse, partial[i, 0], partial[i, 1], partial[i, 2])
    d_weight[:] = 0
    d_bias[:] = 0
    rest = np.zeros(n_channels)
    for i in range(SLICES):
        for c in range(n_channels):
            d_weight[c] += partial[i, 0, c]
            d_bias[c] += partial[i, 1, c]
            rest[c] += partial[i, 2, c]
    scale = weight / deviation
    # Taken off with the batch's own statistics: the parts along the constant and along ẑ.
    constant = np.zeros_like(scale)
    slope = np.zeros_like(scale)
    if from_batch:
        for c in range(n_channels):
            # The mean is rounded, so z − mean has a mean itself, ``rest``/n. Unless that is taken off, d_z does not add
            # up to 0 over the samples, and inputs that lie far from 0 make much of it: an error of their square. More
            # than rounding, it is not: then the mean given is not z's, and is taken as it is.
            if abs(rest[c]) > n * (2 * eps + n * 2.0**-52) * abs(mean[c]):
                rest[c] = 0
            d_weight[c] -= d_bias[c] / n * (rest[c] * inverse[c])
            slope[c] = d_weight[c] / (n * deviation[c])
            constant[c] = (d_bias[c] - slope[c] * rest[c]) / n
    for i in prange(SLICES):
        for row in range(i * n // SLICES, (i + 1) * n // SLICES):
            _back(delta[row], z[row], mean, scale, constant, slope, d_z[row])


@njit(parallel=True)
def inner(x, y):
    """x · y of flat arrays, in float64."""
    n = x.shape[0]
    partial = np.empty(SLICES)
    for i in prange(SLICES):
        lo = i * n // SLICES
        hi = (i + 1) * n // SLICES
        partial[i] = _dot(x[lo:hi], y[lo:hi])
    total = 0.0
    for i in range(SLICES):
        total += partial[i]
    return total


@njit(parallel=True)
def sums(x, row, n_batch, n, out):
    """Sum of each channel of x (B, n), channels innermost, in float64: overwrites out (C,)."""
    n_channels = out.shape[0]
    n_positions = n // n_channels
    n_rows = n_batch * n_positions
    partial = np.zeros((SLICES, n_channels))
    for i in prange(SLICES):
        for r in range(i * n_rows // SLICES, (i + 1) * n_rows // SLICES):
            at = r // n_positions * row + r % n_positions * n_channels
            _add(x[at : at + n_channels], partial[i])
    out[:] = 0
    for i in range(SLICES):
        for c in range(n_channels):
            out[c] += partial[i, c]


@helper(fastmath={"contract"})
def _affine(x, scale, shift, masked, keep, add, out):
    for c in range(scale.shape[0]):
        value = scale[c] * x[c] + shift[c]
        if masked:
            value = keep[c] * value
        out[c] = out[c] + value if add else value


@njit(parallel=True)
def affine(x, row, n_batch, n, scale, shift, masked, keep, keep_row, add, out, out_row):
    """out = keep ⊙ (scale ⊙ x + shift), or that added to out: x, keep and out (B, n), scale and shift per channel (C,).

    ``masked`` tells whether there is a mask; otherwise ``keep`` is any array that is as large.
    """
    n_channels = scale.shape[0]
    for b in prange(n_batch):
        for at in range(0, n, n_channels):
            i, j, k = b * row + at, b * keep_row + at, b * out_row + at
            _affine(x[i : i + n_channels], scale, shift, masked, keep[j : j + n_channels], add, out[k : k + n_channels])


@helper
def _multiply(x, y, out):
    for j in range(out.shape[0]):
        out[j] = x[j] * y[j]


@njit(parallel=True)
def multiply(x, row, y, y_row, n_batch, n, out, out_row):
    """out = x ⊙ y, (B, n) each."""
    for b in prange(n_batch):
        _multiply(x[b * row : b * row + n], y[b * y_row : b * y_row + n], out[b * out_row : b * out_row + n])


@helper
def _keep(bits, least, factor, out):
    for j in range(out.shape[0]):
        out[j] = factor if bits[j] >= least else 0


@njit(parallel=True)
def keep(bits, least, factor, out):
    """out = factor where bits are at least ``least``, 0 elsewhere: dropout's mask, flat arrays."""
    n = out.shape[0]
    for i in prange(SLICES):
        lo = i * n // SLICES
        hi = (i + 1) * n // SLICES
        _keep(bits[lo:hi], least, factor, out[lo:hi])


@helper(fastmath={"reassoc", "contract"})
def _dot(x, y):
    total = 0.0
    for j in range(x.shape[0]):
        total += np.float64(x[j]) * np.float64(y[j])
    return total


@helper(fastmath={"contract"})
def _add_multiple(factor, x, y):
    for j in range(y.shape[0]):
        y[j] += factor * x[j]


@njit
def orthogonalise(vectors, n, v, along):
    """Make v orthogonal to the first n of orthonormal vectors, and of unit length unless it is 0: in place.

    Overwrites along[:n] with what it has along each, and returns the length that is left. Classical Gram and Schmidt,
    twice.
    """
    found = np.empty(n)
    along[:n] = 0
    for _ in range(2):
        for i in range(n):
            found[i] = _dot(vectors[i], v)
            along[i] += found[i]
        for i in range(n):
            _add_multiple(v.dtype.type(-found[i]), vectors[i], v)
    length = np.sqrt(_dot(v, v))
    if length > 0:
        for j in range(v.shape[0]):
            v[j] /= length
    return length


@helper
def _length(x):
    """Euclidean norm of x, also where squares leave the range of its dtype."""
    length = np.sqrt(dot(x, x))
    if (1e-13 < length < 1e18) if x.itemsize == 4 else (1e-140 < length < 1e150):
        return np.float64(length)
    largest = 0.0
    for j in range(x.shape[0]):
        if not abs(x[j]) < np.inf:
            return np.float64(abs(x[j]))
        largest = max(largest, np.float64(abs(x[j])))
    if largest == 0:
        return 0.0
    total = 0.0
    for j in range(x.shape[0]):
        total += (np.float64(x[j]) / largest) ** 2
    return largest * np.sqrt(total)


@njit(parallel=True)
def norms(x, out):
    """Euclidean norm of each row of x (B, n): overwrites out (B,)."""
    for b in prange(x.shape[0]):
        out[b] = _length(x[b])


@helper
def _residual(x, y, b, r):
    for j in range(x.shape[0]):
        r[j] = (np.float64(b[j]) + np.float64(y[j])) - np.float64(x[j])


@njit(parallel=True)
def judge(x, y, b, sizes):
    """Norms of b + y − x, b, y and x, the difference in float64, for each row of (B, n): overwrites sizes (4, B)."""
    for i in prange(x.shape[0]):
        r = np.empty(x.shape[1])
        _residual(x[i], y[i], b[i], r)
        sizes[0, i] = _length(r)
        sizes[1, i] = _length(b[i])
        sizes[2, i] = _length(y[i])
        sizes[3, i] = _length(x[i])


@helper
def _move(y, b, x, after, r):
    for j in range(y.shape[0]):
        after[j] = y[j] + b[j]
        r[j] = after[j] - x[j]


@njit(parallel=True)
def move(y, b, x, after, r, norm):
    """after = y + b and r = after − x, (B, n) each, and the norm of each row of r: overwrites the last three."""
    for i in prange(y.shape[0]):
        _move(y[i], b[i], x[i], after[i], r[i])
        norm[i] = _length(r[i])


@helper
def _slope(p, lower, upper, v_th, inverse, out):
    for j in range(out.shape[0]):
        # No short cuts: they are branches, and half of them are not foreseen.
        after = (p[j] > 0) | (lower & (p[j] == 0))
        before = (p[j] < v_th) | (upper & (p[j] == v_th))
        out[j] = inverse if after & before else 0


@njit(parallel=True)
def slope(p, lower, upper, v_th, inverse, out):
    """(MASK): out = inverse where 0 < p < v_th, or p is an end that counts, and 0 elsewhere; flat arrays."""
    n = out.shape[0]
    for i in prange(SLICES):
        lo = i * n // SLICES
        hi = (i + 1) * n // SLICES
        _slope(p[lo:hi], lower, upper, v_th, inverse, out[lo:hi])


@helper
def _n_wild(x):
    count = 0
    for j in range(x.shape[0]):
        count += not abs(x[j]) < np.inf
    return count


@njit(parallel=True)
def all_finite(x):
    """Whether no number of a flat array is NaN or infinite."""
    n = x.shape[0]
    count = 0
    for i in prange(SLICES):
        count += _n_wild(x[i * n // SLICES : (i + 1) * n // SLICES])
    return count == 0


@helper(fastmath={"contract"})
def _momentum(theta, gradient, velocity, momentum, decay, rate, new_theta, new_velocity):
    for j in range(theta.shape[0]):
        v = momentum * velocity[j] + (gradient[j] + decay * theta[j])
        new_velocity[j] = v
        new_theta[j] = theta[j] - rate * v


@njit(parallel=True)
def momentum_step(theta, gradient, velocity, momentum, decay, rate, new_theta, new_velocity):
    """v ← μ v + (∇L + κ θ), θ ← θ − η v for flat arrays; overwrites the last two."""
    n = theta.shape[0]
    for i in prange(SLICES):
        lo = i * n // SLICES
        hi = (i + 1) * n // SLICES
        # Slices of their own: the vectoriser does not see through the loop over threads.
        _momentum(
            theta[lo:hi], gradient[lo:hi], velocity[lo:hi], momentum, decay, rate, new_theta[lo:hi], new_velocity[lo:hi]
        )


@helper(fastmath={"contract"})
def _off(d_weight, d_norm, along, factor, out):
    for j in range(out.shape[0]):
        out[j] = factor * (d_weight[j] - along * d_norm[j])


@njit(parallel=True)
def take_off(d_weight, left, right, along, factor, out):
    """out = factor · (d_weight − along · left rightᵀ), both flat, a row for each number of left; overwrites out."""
    n = right.shape[0]
    for i in prange(SLICES):
        if n == 1:
            lo = i * left.shape[0] // SLICES
            hi = (i + 1) * left.shape[0] // SLICES
            _off(d_weight[lo:hi], left[lo:hi], along * right[0], factor, out[lo:hi])
        else:
            for row in range(i * left.shape[0] // SLICES, (i + 1) * left.shape[0] // SLICES):
                here = slice(row * n, (row + 1) * n)
                _off(d_weight[here], right, along * left[row], factor, out[here])
