"""Operator norms of connections: a value, and a bound from above that holds in floating point.

Small maps are decomposed whole. A large convolution is bounded by its symbol: zero padding and a finite picture only
cut a window out of the convolution on the infinite grid, so its norm is at most the largest singular value of the
symbol over all frequencies. ``docs/derivations.md``, "In floating point", has the proofs.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ide_ref.constraints import leading_singular_pair
from ide_ref.synapses import AvgPool2d, ConvTranspose2d, Dense, Synapse

EXACT_SIZE = 1024
"""A map with at most so many rows and columns gets its norm from a full decomposition."""

ROUNDOFF = 2.0**-53
"""Unit roundoff of float64."""

GRAIN = 2.0**-1074
"""The smallest positive float64: what a product may lose to underflow."""

_LAPACK = 8.0  # singular and eigenvalues are off by at most so many roundoffs of the largest per row or column
_PER_DEGREE = 16  # frequencies of the grid for each degree of the symbol

Bounded = TypeVar("Bounded", float, NDArray)


class Norm(NamedTuple):
    """‖A‖₂ of a linear map.

    Attributes
    ----------
    value : float
        As well as it is known; for large maps from a search, which stops from below.
    upper : float
        At least ‖A‖₂, rounding included.
    """

    value: float
    upper: float

    def times(self, factor: float) -> Norm:
        """Of the map times a factor that is not negative."""
        return Norm(self.value * factor, raised(self.upper * factor, 1))


def raised(x: Bounded, n: float) -> Bounded:
    """x ≥ 0, a number or an array, from above: with room for n roundings, each of which may underflow, and its own."""
    return x * (1.0 + (n + 4.0) * ROUNDOFF) + (n + 4.0) * GRAIN


def lowered(x: Bounded, n: float) -> Bounded:
    """x ≥ 0 from below, as ``raised`` from above; what n roundings may have made of 0 is below 0."""
    return x * (1.0 - (n + 4.0) * ROUNDOFF) - (n + 4.0) * GRAIN


def operator_norm(synapse: Synapse, taps: NDArray, scale: NDArray | None, *, bound: bool = True) -> Norm:
    """‖scale ⊙ W‖₂ of a synapse at its input size.

    Parameters
    ----------
    taps : (K, C_in, C_out) array
        W.
    scale : (C,) array or None
        A factor for each receiving channel, None for 1.
    bound : bool
        Whether the bound from above is wanted; without it that of a large convolution is infinite, and takes no time.
    """
    taps = taps.astype(np.float64)
    factors = np.ones(synapse.n_out) if scale is None else synapse.out_channels(scale.astype(np.float64))
    if max(synapse.n_in, synapse.n_out) <= EXACT_SIZE or isinstance(synapse, Dense):
        columns = taps[0] if isinstance(synapse, Dense) else synapse.apply(taps, np.eye(synapse.n_in))
        return matrix_norm(factors[:, None] * columns.T)
    value = leading_singular_pair(
        lambda v: factors * synapse.apply(taps, v[None])[0],
        lambda u: synapse.adjoint(taps, (factors * u)[None])[0],
        np.random.default_rng(0).standard_normal(synapse.n_in),
        tol=math.sqrt(ROUNDOFF),
    ).value
    upper = _symbol_bound(synapse, taps, scale) if bound else math.inf
    # A search comes from below, but for rounding.
    return Norm(min(value, upper), upper)


def matrix_norm(W: NDArray) -> Norm:
    """‖W‖₂ of a matrix (m, n), each of whose entries may be off by one rounding."""
    m, n = W.shape
    if not np.all(np.isfinite(W)):
        return Norm(math.inf, math.inf)
    unit, exponent = _unit(W)
    if m == 1 or n == 1:
        value = _enlarged(math.sqrt(np.sum(np.square(unit))), exponent)
        return Norm(value, raised(value, W.size + 4 if W.size > 1 else 0))
    if max(m, n) <= EXACT_SIZE:
        value = float(np.linalg.svd(W, compute_uv=False)[0])
        # The entries' own rounding changes the norm by less than ‖|W|‖ ≤ √min(m, n) ‖W‖ times a roundoff.
        return Norm(value, raised(value, _LAPACK * max(m, n) + math.sqrt(min(m, n))))
    gram = unit @ unit.T if m <= n else unit.T @ unit
    k = len(gram)
    largest = max(float(np.linalg.eigvalsh(gram)[-1]), 0.0)
    # Each entry of the product is off by max(m, n) roundoffs of |W| |W|ᵀ, whose norm is at most ‖W‖_F².
    frobenius = float(np.sum(np.square(unit)))
    off = ROUNDOFF * (_LAPACK * k * largest + 2.0 * (max(m, n) + 4) * frobenius)
    upper = _enlarged(math.sqrt(largest + off), exponent)
    return Norm(_enlarged(math.sqrt(largest), exponent), raised(upper, 8))


def _unit(x: NDArray) -> tuple[NDArray, int]:
    """x/2^e, whose largest entry is between 1/2 and 1, and e: then no square that counts leaves the range."""
    exponent = math.frexp(float(np.abs(x).max()))[1]
    return np.ldexp(x, -exponent), exponent


def _enlarged(x: float, exponent: int) -> float:
    """x 2^e; infinite beyond the range."""
    with np.errstate(over="ignore"):
        return float(np.ldexp(x, exponent))


def _symbol_bound(synapse: Synapse, taps: NDArray, scale: NDArray | None) -> float:
    """The largest singular value of a convolution's symbol, from above.

    With stride s every window sees s² phases of the picture, each at most ⌈k/s⌉ positions wide, plus one where the
    padding is no multiple of s. |symbol|² between the points of a grid of N frequencies is at most 1/cos(π d/N) times
    its largest value on the grid, d the degree, along each of the two axes (Riesz).
    """
    kernel, stride, padding = synapse.kernel, synapse.stride, synapse.padding  # type: ignore[attr-defined]
    weights = taps if scale is None else taps * scale.astype(np.float64)
    weights, exponent = _unit(weights)
    blocks = weights.reshape(kernel, kernel, *taps.shape[1:])
    if not isinstance(synapse, ConvTranspose2d):  # whose windows are the senders
        blocks = blocks.transpose(0, 1, 3, 2)
    # A pool has a scalar kernel for each channel: one symbol each, the channels as a batch.
    blocks = blocks[..., None] if isinstance(synapse, AvgPool2d) else blocks[:, :, None]
    # blocks: (k, k, batch, windows' channels, picture's channels)
    step, phase = np.divmod(np.arange(kernel) - padding, stride)
    step -= step.min()
    degree = int(step.max())
    n_points = 1 if degree == 0 else _PER_DEGREE * degree
    wave = np.exp(2j * np.pi * np.outer(np.arange(n_points), step) / n_points)
    worst = 0.0
    # The matrices are real, so opposite frequencies have conjugate symbols: half of the first axis will do.
    for i in range(n_points // 2 + 1):
        rows = np.zeros((stride, kernel, *blocks.shape[2:]), np.complex128)
        for t in range(kernel):
            rows[phase[t]] += wave[i, t] * blocks[t]
        for j in range(n_points):
            symbol = np.zeros((stride, stride, *blocks.shape[2:]), np.complex128)
            for t in range(kernel):
                symbol[:, phase[t]] += wave[j, t] * rows[:, t]
            # (batch, windows' channels, phases · picture's channels)
            matrix = symbol.transpose(2, 3, 0, 1, 4).reshape(blocks.shape[2], blocks.shape[3], -1)
            if matrix.shape[1] > matrix.shape[2]:
                matrix = matrix.transpose(0, 2, 1)
            gram = matrix @ matrix.conj().transpose(0, 2, 1)
            frobenius = float(np.max(np.sum(np.abs(matrix) ** 2, axis=(1, 2))))
            top = float(np.max(np.linalg.eigvalsh(gram)[:, -1]))
            k = gram.shape[-1]
            slack = ROUNDOFF * (_LAPACK * k * top + 4.0 * (max(matrix.shape[1:]) + 2 * kernel + 8) * frobenius)
            worst = max(worst, top + slack)
    return raised(_enlarged(math.sqrt(worst) / math.cos(math.pi * degree / n_points), exponent), 32)
