"""What is done cell by cell: batch normalisation and its derivative, masks, and the step of the optimiser.

Sums over samples are taken by slices of the rows, each in float64, and then in the slices' order: the same bits from
any number of threads.
"""

import numpy as np
from numba import njit, prange

SLICES = 16


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
                    for c in range(n_channels):
                        total[c] += z[row, c]
                else:
                    for c in range(n_channels):
                        total[c] += (z[row, c] - mean[c]) ** 2
        into = variance if again else mean
        into[:] = 0
        for i in range(SLICES):
            for c in range(n_channels):
                into[c] += partial[i, c] / n


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
    for i in prange(SLICES):
        along, total = partial[i, 0], partial[i, 1]
        for row in range(i * n // SLICES, (i + 1) * n // SLICES):
            for c in range(n_channels):
                along[c] += delta[row, c] * ((z[row, c] - mean[c]) / deviation[c])
                total[c] += delta[row, c]
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
            for c in range(n_channels):
                d_z[row, c] = scale[c] * (delta[row, c] - constant[c] - slope[c] * (z[row, c] - mean[c]))


@njit(parallel=True, cache=True, nogil=True)
def affine(x, scale, shift, keep, out):
    """out = keep ⊙ (scale ⊙ x + shift), x and out (B, P, C), scale and shift (C,), keep (B, P, C) or (0, 0, 0) for 1.

    ``out`` may be x.
    """
    n_channels = x.shape[2]
    for b in prange(x.shape[0]):
        for p in range(x.shape[1]):
            if keep.shape[0] > 0:
                for c in range(n_channels):
                    out[b, p, c] = keep[b, p, c] * (scale[c] * x[b, p, c] + shift[c])
            else:
                for c in range(n_channels):
                    out[b, p, c] = scale[c] * x[b, p, c] + shift[c]


@njit(parallel=True, cache=True, nogil=True)
def momentum_step(theta, gradient, velocity, momentum, decay, rate, new_theta, new_velocity):
    """v ← μ v + (∇L + κ θ), θ ← θ − η v for flat arrays; overwrites the last two."""
    n = theta.shape[0]
    for i in prange(SLICES):
        for j in range(i * n // SLICES, (i + 1) * n // SLICES):
            v = momentum * velocity[j] + (gradient[j] + decay * theta[j])
            new_velocity[j] = v
            new_theta[j] = theta[j] - rate * v
