"""What is done cell by cell: batch normalisation and its derivative, masks, and the step of the optimiser.

Sums over samples are taken by slices of the rows, each in float64, and then in the slices' order: the same bits from
any number of threads.
"""

import numpy as np
from numba import njit, prange

SLICES = 16


@njit(cache=True, nogil=True)
def _add(row, total):
    for c in range(row.shape[0]):
        total[c] += row[c]


@njit(cache=True, nogil=True)
def _add_squares(row, mean, total):
    for c in range(row.shape[0]):
        total[c] += (row[c] - mean[c]) ** 2


@njit(parallel=True, cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def _add_products(delta, z, mean, inverse, along, total):
    for c in range(z.shape[0]):
        along[c] += delta[c] * ((z[c] - mean[c]) * inverse[c])
        total[c] += delta[c]


@njit(cache=True, nogil=True, fastmath={"contract"})
def _back(delta, z, mean, scale, constant, slope, d_z):
    for c in range(z.shape[0]):
        d_z[c] = scale[c] * (delta[c] - constant[c] - slope[c] * (z[c] - mean[c]))


@njit(parallel=True, cache=True, nogil=True)
def normalised_back(delta, z, mean, deviation, weight, from_batch, d_z, d_weight, d_bias):
    """Derivatives of weight · ẑ + bias, ẑ = (z − mean)/deviation, in z, weight and bias, (BN).

    Parameters
    ----------
    delta, z : (N, C)  ∂L/∂y, and what was normalised.
    mean, deviation, weight : (C,)
    from_batch : whether mean and deviation are those of z itself, and the derivative passes through them.
    d_z : (N, C)  overwritten.
    d_weight, d_bias : (C,) float64  overwritten.
    """
    n, n_channels = z.shape
    partial = np.zeros((SLICES, 2, n_channels))
    inverse = 1 / deviation
    for i in prange(SLICES):
        for row in range(i * n // SLICES, (i + 1) * n // SLICES):
            _add_products(delta[row], z[row], mean, inverse, partial[i, 0], partial[i, 1])
    d_weight[:] = 0
    d_bias[:] = 0
    for i in range(SLICES):
        for c in range(n_channels):
            d_weight[c] += partial[i, 0, c]
            d_bias[c] += partial[i, 1, c]
    scale = weight / deviation
    # Taken off with the batch's own statistics: the parts along the constant and along ẑ.
    constant = np.zeros_like(scale)
    slope = np.zeros_like(scale)
    if from_batch:
        for c in range(n_channels):
            constant[c] = d_bias[c] / n
            slope[c] = d_weight[c] / (n * deviation[c])
    for i in prange(SLICES):
        for row in range(i * n // SLICES, (i + 1) * n // SLICES):
            _back(delta[row], z[row], mean, scale, constant, slope, d_z[row])


@njit(cache=True, nogil=True, fastmath={"contract"})
def _scale(x, scale, shift, out):
    for c in range(x.shape[0]):
        out[c] = scale[c] * x[c] + shift[c]


@njit(cache=True, nogil=True, fastmath={"contract"})
def _scale_and_mask(x, scale, shift, keep, out):
    for c in range(x.shape[0]):
        out[c] = keep[c] * (scale[c] * x[c] + shift[c])


@njit(parallel=True, cache=True, nogil=True)
def affine(x, scale, shift, keep, out):
    """out = keep ⊙ (scale ⊙ x + shift), x and out (B, P, C), scale and shift (C,), keep (B, P, C) or (0, 0, 0) for 1.

    ``out`` may be x.
    """
    for b in prange(x.shape[0]):
        for p in range(x.shape[1]):
            if keep.shape[0] > 0:
                _scale_and_mask(x[b, p], scale, shift, keep[b, p], out[b, p])
            else:
                _scale(x[b, p], scale, shift, out[b, p])


@njit(cache=True, nogil=True, fastmath={"contract"})
def _momentum(theta, gradient, velocity, momentum, decay, rate, new_theta, new_velocity):
    for j in range(theta.shape[0]):
        v = momentum * velocity[j] + (gradient[j] + decay * theta[j])
        new_velocity[j] = v
        new_theta[j] = theta[j] - rate * v


@njit(parallel=True, cache=True, nogil=True)
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


@njit(cache=True, nogil=True, fastmath={"contract"})
def _off(d_weight, d_norm, along, factor, out):
    for j in range(out.shape[0]):
        out[j] = factor * (d_weight[j] - along * d_norm[j])


@njit(parallel=True, cache=True, nogil=True)
def take_off(d_weight, d_norm, along, factor, out):
    """out = factor · (d_weight − along · d_norm) for flat arrays; overwrites out."""
    n = out.shape[0]
    for i in prange(SLICES):
        lo = i * n // SLICES
        hi = (i + 1) * n // SLICES
        _off(d_weight[lo:hi], d_norm[lo:hi], along, factor, out[lo:hi])
