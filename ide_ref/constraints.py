"""What stands between the parameters and the plain affine maps of a frozen network.

The spectral restriction (NORM), batch normalisation (BN) and dropout, each as a pair: *fold* turns
parameters into a scaled and shifted linear map, *pull back* turns the Hebbian gradient of that map into
gradients of the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ide_ref import _checks
from ide_ref._kernels import dense as _dense
from ide_ref._kernels import elementwise as _elementwise
from ide_ref._kernels import memory

EPSILON = 1e-5
"""Added to every variance before the root, in simulation, equilibrium and gradient alike."""

MOMENTUM = 0.1
"""Weight of a new batch in the running statistics."""


@dataclass(frozen=True)
class Restriction:
    """(NORM): W = α W̄ / ‖W̄‖, α ∈ [−c, c].

    Parameters
    ----------
    c : float
        Largest |α|.
    norm : {"operator", "kernel"}
        ``operator``: ‖·‖₂ of the linear map at the given input size, which certifies (COND). ``kernel``: of
        the weight array reshaped to (first axis, rest), as the authors' program has it; for convolutions the
        operator's norm can be up to k times larger. The same for dense connections.
    """

    c: float = 1.0
    norm: Literal["operator", "kernel"] = "operator"

    def __post_init__(self) -> None:
        if not (_checks.is_real(self.c) and self.c > 0):
            raise ValueError(f"c is {self.c!r}; expected a positive, finite bound for |alpha|")
        if not _checks.is_one_of(self.norm, ("operator", "kernel")):
            raise ValueError(f"norm is {self.norm!r}; expected 'operator' or 'kernel'")


@dataclass(frozen=True)
class SingularPair:
    """Leading singular triple: ‖A‖₂ ≈ value, A right ≈ value · left, in the shapes of the map's output and input.

    ``residual`` is ‖Aᵀ left − value · right‖ / value, which bounds the error of the vectors up to the gap.
    """

    value: float
    left: NDArray
    right: NDArray
    residual: float


def singular_tolerance(dtype: DTypeLike, *, training: bool = False) -> float:
    """Relative residual to which ‖W̄‖₂ is computed: 1e-12 in float64, to verify; 1e-5 in float32.

    While training in float32, 1e-3: a search at each step goes on from the last one's vector. The norm's error is of
    the second order in it but where two singular values cross; 0.35 % was the largest seen there.
    """
    if np.dtype(dtype) == np.float64:
        return 1e-12
    return 1e-3 if training else 1e-5


_LOOKS = (1, 4, 6, 8, 12, 16, 20)
_UNIT = np.ones((1, 1))

STRAY = 0.03
"""Length of the random vector that a search adds to its unit start: see :func:`leading_singular_pair`."""


def leading_singular_pair(
    apply: Callable[[NDArray], NDArray],
    adjoint: Callable[[NDArray], NDArray],
    start: NDArray,
    *,
    tol: float,
    max_restarts: int = 200,
    n_vectors: int = 24,
) -> SingularPair:
    """Largest singular value of a linear map by thick-restarted Golub-Kahan bidiagonalisation.

    Parameters
    ----------
    apply, adjoint : callables
        v ↦ A v and u ↦ Aᵀ u on vectors.
    start : (n,) array
        Where to begin; a vector from an earlier, similar map saves some of the work. Not zero.
    tol : float
        Stop when the relative residual falls below this.
    max_restarts, n_vectors : int
        At most max_restarts runs in a space of n_vectors ≥ 2 dimensions, a third of which each run takes over
        from the one before.

    Returns
    -------
    SingularPair
        Of ``start``'s dtype; the caller decides what to do with a residual above ``tol``. Value and residual
        are NaN where a product is not finite.

    Notes
    -----
    The value σ is a lower bound of ‖A‖₂. With the relative residual r, some singular value lies within r σ of it.
    As nothing was found above, the polynomial of Aᵀ A that took the first vector to the one found grows beyond
    σ², so the latter kept at least the share c₁/c of the leading vector, and before any restart (which favours
    that end further)

        ‖A‖₂ ≤ σ (1 + r c / (2 c₁)),

    c and c₁ the cosines of the first vector with the one found and with the leading one. A start from an earlier
    map may have no share in the leading vector at all; a fixed pseudo-random vector, of length ``STRAY`` beside
    the start's 1, is added, with which c₁ is of the order of ``STRAY``/√n. Where the two largest values are
    further apart than r, the error is of the second order in r.

    Full reorthogonalisation: n_vectors is small. Sources: Golub and Kahan (1965); Baglama and Reichel (2005) for
    the restart.
    """
    dtype = start.dtype
    n_vectors = min(n_vectors, start.size)
    rights = np.empty((n_vectors + 1, start.size), dtype)
    projected, along = np.zeros((n_vectors, n_vectors)), np.empty(n_vectors + 1)
    rights[0] = start / dtype.type(_length(start)) + dtype.type(STRAY) * _stray(start.size).astype(dtype)
    rights[0] /= dtype.type(_length(rights[0]))
    kept = 0
    for _ in range(max_restarts):
        for k in range(kept, n_vectors):
            # Copies, for they are changed in place: a map may return what it was given.
            u = np.array(apply(rights[k]), order="C")
            if k == 0:
                lefts = np.empty((n_vectors, u.size), u.dtype)
            # B = Uᵀ A V is upper bidiagonal in exact arithmetic, but for the column after those kept; keeping
            # whole columns keeps that one and their rounding.
            alpha = _elementwise.orthogonalise(lefts, k, u, along)
            projected[:k, k] = along[:k]
            projected[k, k] = alpha
            lefts[k] = u
            w = np.array(adjoint(u), order="C")
            beta = _elementwise.orthogonalise(rights, k + 1, w, along)
            if not (math.isfinite(alpha) and math.isfinite(beta)):
                return SingularPair(float("nan"), u, w, float("nan"))
            size = k + 1
            # Past this only rounding is left: the start's whole invariant space has been seen.
            exhausted = size == start.size or min(alpha, beta) <= 10.0 * np.finfo(dtype).eps * projected.max()
            # The projected problem is looked at now and then, and at the end.
            if size in _LOOKS or size == n_vectors or exhausted:
                # One number is its own singular value, and costs no call.
                x, s, yt = np.linalg.svd(projected[:size, :size]) if size > 1 else (_UNIT, projected[0, :1], _UNIT)
                # Aᵀ (U x) − s (V y) = beta · x_k · w/beta, the standard Lanczos residual.
                residual = abs(beta * x[k, 0]) / s[0] if s[0] > 0 else 0.0
                if residual <= tol or exhausted:
                    break
            rights[size] = w
        kept = min(max(1, n_vectors // 3), size)
        lefts[:kept] = _combined(x.T[:kept].astype(dtype), lefts[:size])
        rights[:kept] = _combined(yt[:kept].astype(dtype), rights[:size])
        if residual <= tol or exhausted:
            break
        rights[kept] = rights[size]
        projected[:] = 0
        projected[range(kept), range(kept)] = s[:kept]
    return SingularPair(float(s[0]), lefts[0].copy(), rights[0] / dtype.type(_length(rights[0])), float(residual))


def _combined(weights: NDArray, vectors: NDArray) -> NDArray:
    """weights @ vectors, (k, i) and (i, n). Not by BLAS, whose threads change the order of sums."""
    out = np.empty((len(weights), vectors.shape[1]), vectors.dtype)
    _dense.matmul_few(np.ascontiguousarray(weights), vectors, False, out.ravel(), out.shape[1])
    return out


@lru_cache(maxsize=16)
def _stray(size: int) -> NDArray:
    """A fixed pseudo-random vector of length 1."""
    vector = np.random.default_rng(size).standard_normal(size)
    vector /= _length(vector)
    vector.flags.writeable = False
    return vector


def power_step(
    apply: Callable[[NDArray], NDArray], adjoint: Callable[[NDArray], NDArray], start: NDArray
) -> SingularPair:
    """One step of power iteration from ``start``, of the input's shape: what the authors' program does at a call."""
    left = apply(start)
    if not left.any():
        return SingularPair(0.0, left, start, 0.0)
    left = left / left.dtype.type(_length(left))
    right = adjoint(left)
    right = right / right.dtype.type(_length(right))
    value = inner(left, apply(right))
    return SingularPair(value, left, right, _length(adjoint(left) - value * right) / value)


def inner(x: NDArray, y: NDArray) -> float:
    """x · y of arrays of one shape, summed in float64 in an order that is theirs alone.

    BLAS sums in an order that depends on its number of threads, and on how the arrays lie in memory.
    """
    return float(_elementwise.inner(np.ravel(x), np.ravel(y)))


def _length(x: NDArray) -> float:
    """Euclidean norm of a vector."""
    return math.sqrt(inner(x, x))


def batch_statistics(z: NDArray, n_channels: int) -> tuple[NDArray, NDArray]:
    """Mean and biased variance per channel of cells z (B, n): two (n_channels,) arrays, summed in float64.

    Of z's dtype; infinite where they are beyond it.
    """
    mean, variance = np.empty(n_channels), np.empty(n_channels)
    _elementwise.moments(np.ascontiguousarray(z).reshape(-1, n_channels), mean, variance)
    with np.errstate(over="ignore"):
        return mean.astype(z.dtype), variance.astype(z.dtype)


def running_update(running: NDArray, batch: NDArray, momentum: float = MOMENTUM) -> NDArray:
    """A running statistic, (C,), after one more batch."""
    return running + running.dtype.type(momentum) * (batch - running)


def dropout_mask(
    shape: tuple[int, int], rate: float, rng: np.random.Generator, dtype: DTypeLike, out: NDArray | None = None
) -> NDArray:
    """Mask (B, n), one draw per batch: 0 with probability ``rate``, to a multiple of 2⁻¹⁶, else 1/(1 − rate).

    Overwrites ``out``, of that shape and dtype, where it is given.
    """
    n = math.prod(shape)
    # Each number is four draws of 16 bits.
    bits = rng.integers(0, (1 << 64) - 1, -(-n // 4), dtype=np.uint64, endpoint=True).view(np.uint16)[:n]
    mask = memory.empty(shape, dtype) if out is None else out
    factor = mask.dtype.type(1.0 / (1.0 - rate))
    _elementwise.keep(bits, round(rate * (1 << 16)), factor, mask.ravel())
    return mask


def channel_sums(x: NDArray, n_channels: int) -> NDArray:
    """Sum of each channel of cells x (B, n), a float64 (n_channels,) array."""
    out = np.empty(n_channels)
    cells, row = memory.rows(x)
    _elementwise.sums(cells, row, len(x), x.shape[1], out)
    return out


def affine(x: NDArray, scale: NDArray, shift: NDArray, keep: NDArray | None, out: NDArray | None = None) -> NDArray:
    """keep ⊙ (scale ⊙ x + shift) of a state (B, n), scale and shift per channel, keep (B, n) or None for 1.

    Added to ``out``, cells of the same dtype, where it is given.
    """
    into = memory.empty(x.shape, x.dtype) if out is None else out
    cells, row = memory.rows(x)
    kept, kept_row = (cells, row) if keep is None else memory.rows(keep.astype(x.dtype, copy=False))
    written, out_row = memory.rows(into, written=True)
    _elementwise.affine(
        cells, row, *x.shape, scale, shift, keep is not None, kept, kept_row, out is not None, written, out_row
    )
    return into


def multiply(x: NDArray, y: NDArray, out: NDArray | None = None) -> NDArray:
    """x ⊙ y of a state (B, n), in ``out`` where it is given."""
    dtype = np.result_type(x, y)
    out = memory.empty(x.shape, dtype) if out is None else out
    (left, row), (right, right_row) = (memory.rows(factor.astype(dtype, copy=False)) for factor in (x, y))
    written, out_row = memory.rows(out, written=True)
    _elementwise.multiply(left, row, right, right_row, len(x), x.shape[1], written, out_row)
    return out


@dataclass(frozen=True)
class BatchNorm:
    """(BN) of one connection: y = weight · (z − mean)/√(variance + ε) + bias per channel, arrays of shape (C,).

    ``from_batch`` says that mean and variance are those of the batch itself, so that gradients pass through
    them; otherwise they are constants.
    """

    weight: NDArray
    bias: NDArray
    mean: NDArray
    variance: NDArray
    from_batch: bool
    epsilon: float = EPSILON

    @property
    def scale(self) -> NDArray:
        """(C,) factor on z."""
        return self.weight / self.deviation

    @property
    def deviation(self) -> NDArray:
        """(C,) √(variance + ε)."""
        return np.sqrt(self.variance + self.variance.dtype.type(self.epsilon))

    @property
    def shift(self) -> NDArray:
        """(C,) what is added after scaling z."""
        return self.bias - self.scale * self.mean

    def linear(self, v: NDArray, z: NDArray) -> NDArray:
        """Derivative of y along a change v of z, (B, n): symmetric, so it is its own transpose.

        With constant statistics v is scaled. With the batch's own, its parts along the constant and along z
        are taken off first, which couples the samples.
        """
        columns = v.reshape(-1, self.weight.shape[0])
        if self.from_batch:
            n = columns.shape[0]
            z_hat = z.reshape(columns.shape) - self.mean
            # The mean is rounded: what it leaves would count as a part along the constant.
            z_hat = (z_hat - z_hat.mean(axis=0)) / self.deviation
            along = np.einsum("nc,nc->c", columns, z_hat)
            columns = columns - columns.sum(axis=0) / n - z_hat * (along / n)
        return (columns * self.scale).reshape(v.shape)

    def pull_back(self, delta: NDArray, z: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        """From ∂L/∂y to ∂L/∂z, ∂L/∂weight, ∂L/∂bias.

        Parameters
        ----------
        delta, z : (B, n) cells
            ∂L/∂y, and the map's output before normalisation.
        """
        n_channels = self.weight.shape[0]
        columns, rows = (np.ascontiguousarray(v).reshape(-1, n_channels) for v in (delta, z))
        d_z = memory.empty(rows.shape, rows.dtype)
        d_weight, d_bias = np.empty(n_channels), np.empty(n_channels)
        _elementwise.normalised_back(
            columns, rows, self.mean, self.deviation, self.weight, self.from_batch, float(np.finfo(rows.dtype).eps),
            d_z, d_weight, d_bias,
        )  # fmt: skip
        return d_z.reshape(delta.shape), d_weight.astype(z.dtype), d_bias.astype(z.dtype)


def restrict_pull_back(
    d_weight: NDArray, unrestricted: NDArray, alpha: NDArray | float, norm: float, d_norm: tuple[NDArray, NDArray]
) -> tuple[NDArray, NDArray]:
    """From ∂L/∂W to ∂L/∂W̄ and ∂L/∂α, W = α W̄/‖W̄‖ (NORM).

    Parameters
    ----------
    d_weight, unrestricted : arrays of the weight's shape
        ∂L/∂W and W̄.
    alpha : 0-d array or float
    norm : float
        ‖W̄‖.
    d_norm : (m,) and (n,) arrays
        ∂‖W̄‖/∂W̄ as left rightᵀ, (m, n), the weight's numbers in their order: the leading singular pair where W̄ is
        taken as a matrix; for any other norm the whole of it, and [1].
    """
    along = inner(d_weight, unrestricted) / norm
    dtype = unrestricted.dtype
    out = memory.empty(unrestricted.shape, dtype)
    change = np.ascontiguousarray(d_weight, dtype).ravel()
    left, right = (np.ascontiguousarray(side, dtype) for side in d_norm)
    _elementwise.take_off(change, left, right, dtype.type(along), dtype.type(float(alpha) / norm), out.ravel())
    return out, np.asarray(along, dtype)
