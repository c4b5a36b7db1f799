"""Linear fixed-point equations x = J x + b, a batch at a time. Knows no neuron.

Every solver takes the product v ↦ J v on arrays (B, n), where sample b's row depends on row b alone, and
returns a :class:`Solution` with the residual of each sample. Nothing here raises because a system was hard:
``converged`` says it, and :func:`require` turns that into an error where the caller wants one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ide_ref._checks import is_one_of, positive, whole
from ide_ref._kernels import cells as _cells

Product = Callable[[NDArray], NDArray]


class NotConverged(RuntimeError):
    """A solver stopped before its tolerance; the message gives the residual it reached."""


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Attributes
    ----------
    x : (B, n) array
    residual : (B,) array
        ‖b + J x − x‖₂ of each sample.
    relative : (B,) array
        The same over ‖b‖₂ (0 where b is 0).
    iterations, n_products : int
        Steps of the method, and products with J over the whole batch.
    converged : bool
        Whether every sample's relative residual is at most ``tol``.
    tol : float
    method : str
    history : tuple of float
        Largest relative residual after each step, where the method knows it.
    """

    x: NDArray
    residual: NDArray
    relative: NDArray
    iterations: int
    n_products: int
    converged: bool
    tol: float
    method: str
    history: tuple[float, ...] = field(default=(), repr=False)


def norms(x: NDArray) -> NDArray:
    """Euclidean norm of each row."""
    out = np.empty(len(x), x.dtype)
    _cells.norms(np.ascontiguousarray(x), out)
    return out


def _relative(residual: NDArray, size: NDArray) -> NDArray:
    # A NaN in either, like a residual where b is 0, is infinitely far from solved.
    out = np.where(residual == 0, 0.0, np.inf).astype(residual.dtype)
    return np.divide(residual, size, out=out, where=(size > 0) & np.isfinite(residual))


def _solution(
    x: NDArray, r: NDArray, b: NDArray, tol: float, method: str, iterations: int, n_products: int, history: list[float]
) -> Solution:
    residual = norms(r)
    relative = _relative(residual, norms(b))
    # Written so that a NaN counts as not converged.
    converged = bool(np.all(relative <= tol))
    return Solution(x, residual, relative, iterations, n_products, converged, tol, method, tuple(history))


def fixed_point(product: Product, b: NDArray, *, tol: float, max_iter: int, x0: NDArray | None = None) -> Solution:
    """x^{k+1} = J x^k + b, the iteration of (BETA); converges when the spectral radius of J is below 1."""
    b = np.ascontiguousarray(b)
    size = norms(b)
    x = b if x0 is None else np.ascontiguousarray(x0, b.dtype)
    history: list[float] = []
    r, norm = np.empty_like(b), np.empty_like(size)
    for k in range(max_iter):
        after = np.empty_like(b)
        _cells.move(np.ascontiguousarray(product(x), b.dtype), b, x, after, r, norm)
        worst = float(np.max(_relative(norm, size), initial=0.0))
        history.append(worst)
        if worst <= tol or not np.isfinite(worst):
            return _solution(x, r, b, tol, "fixed_point", k, k + 1, history)
        x = after
    return _solution(x, product(x) + b - x, b, tol, "fixed_point", max_iter, max_iter + 1, history)


def gmres(product: Product, b: NDArray, *, tol: float, max_iter: int, x0: NDArray | None = None) -> Solution:
    """``scipy.sparse.linalg.gmres`` on (I − J) x = b, the batch as one block-diagonal system.

    One Krylov space serves all samples, so that each step is one product for the batch; restarted every 40
    steps. SciPy's tolerance is on the whole batch; it is tightened until every sample meets ``tol``.
    """
    from scipy.sparse.linalg import LinearOperator
    from scipy.sparse.linalg import gmres as scipy_gmres

    n_products = 0
    size = norms(b)
    # Rows of unit length, so that one tolerance for the batch serves every sample.
    scale = np.where(size > 0, size, 1.0).astype(b.dtype)[:, None]
    right = b / scale

    def scaled(rows: NDArray) -> NDArray:
        return rows - product(rows * scale) / scale

    def matvec(v: NDArray) -> NDArray:
        nonlocal n_products
        n_products += 1
        return scaled(v.reshape(b.shape).astype(b.dtype, copy=False)).ravel()

    operator = LinearOperator((b.size, b.size), matvec=matvec, dtype=b.dtype)
    x = np.zeros_like(b) if x0 is None else x0 / scale
    history: list[float] = []
    restart = max(1, min(40, b.size, max_iter))
    target = tol
    r = right - scaled(x)
    n_products += 1
    while n_products < max_iter:
        residual = norms(r)
        worst = float(np.max(residual, initial=0.0))
        history.append(worst)
        if not np.isfinite(worst) or worst <= tol:
            break
        correction, _ = scipy_gmres(operator, r.ravel(), rtol=0.0, atol=target, restart=restart, maxiter=1)
        x = x + correction.reshape(b.shape).astype(b.dtype, copy=False)
        r = right - scaled(x)
        n_products += 1
        target *= 0.1
        # Stagnation is judged on the whole batch, whose norm is what a Krylov step makes smaller.
        if not np.linalg.norm(r) < np.linalg.norm(residual):
            break
    return _solution(x * scale, r * scale, b, tol, "gmres", n_products, n_products, history)


def _dot(x: NDArray, y: NDArray) -> NDArray:
    return np.einsum("bn,bn->b", x, y)


def anderson(
    product: Product, b: NDArray, *, tol: float, max_iter: int, x0: NDArray | None = None, memory: int = 6
) -> Solution:
    """Anderson acceleration (type II) of the fixed-point iteration, every sample with its own weights.

    The step is the combination of the last ``memory`` iterates whose residual is smallest. On a linear
    equation that is GMRES with a sliding window, so it also converges for many J of spectral radius above 1.
    """
    n_batch, n = b.shape
    size = norms(b)
    x = np.zeros_like(b) if x0 is None else x0
    # Of the last steps: changes of the residual, and steps plus changes. Memory is touched for steps taken alone.
    sums, changes = np.empty((2, memory, n_batch, n), b.dtype)
    gram = np.zeros((n_batch, memory, memory))
    ridge = 10.0 * np.finfo(b.dtype).eps
    history: list[float] = []
    r = b - x if x0 is None else b + product(x) - x
    n_products = 0 if x0 is None else 1
    r_before = move = r
    for k in range(max_iter):
        relative = _relative(norms(r), size)
        worst = float(np.max(relative, initial=0.0))
        history.append(worst)
        if worst <= tol or not np.isfinite(worst):
            break
        used = min(k, memory)
        if used:
            slot = (k - 1) % memory
            np.subtract(r, r_before, out=changes[slot])
            np.add(move, changes[slot], out=sums[slot])
            row = np.einsum("mbn,bn->bm", changes[:used], changes[slot])
            gram[:, slot, :used] = row
            gram[:, :used, slot] = row
            # Unknowns scaled to unit columns, so that the ridge is relative to each of them.
            scale = np.sqrt(np.einsum("bii->bi", gram[:, :used, :used]))
            scale[scale == 0] = 1.0
            system = gram[:, :used, :used] / (scale[:, :, None] * scale[:, None, :])
            system[:, range(used), range(used)] += ridge
            right = np.einsum("mbn,bn->bm", changes[:used], r) / scale
            weights = (np.linalg.solve(system, right[:, :, None])[:, :, 0] / scale).astype(b.dtype)
            move = r - np.einsum("bm,mbn->bn", weights, sums[:used])
            # Finished samples stand where they are, and a product that knows the last one need not take them again.
            move[relative <= tol] = 0
        after = x + move
        r_before, r = r, b + product(after) - after
        n_products += 1
        x = after
    return _solution(x, r, b, tol, "anderson", n_products, n_products, history)


def broyden(
    product: Product, b: NDArray, *, tol: float, max_iter: int, x0: NDArray | None = None, memory: int = 30
) -> Solution:
    """Broyden's good method on b + J x − x = 0, limited memory, every sample with its own inverse Jacobian.

    The inverse Jacobian starts as −I and gains a rank a step, by Sherman and Morrison; it is forgotten when
    the memory is full.
    """
    n_batch, n = b.shape
    size = norms(b)
    x = np.zeros_like(b) if x0 is None else x0
    left = np.zeros((n_batch, memory, n), b.dtype)
    right = np.zeros((n_batch, memory, n), b.dtype)
    used = 0
    history: list[float] = []
    r = b - x if x0 is None else b + product(x) - x
    n_products = 0 if x0 is None else 1

    def inverse(v: NDArray, outer: NDArray, inner: NDArray) -> NDArray:
        # NumPy's einsum over nothing multiplies 0 by what lies at the empty array's address: NaN at times.
        if used == 0:
            return -v
        weights = np.einsum("bmn,bn->bm", inner[:, :used], v)
        return np.einsum("bm,bmn->bn", weights, outer[:, :used]) - v

    while n_products < max_iter:
        worst = float(np.max(_relative(norms(r), size), initial=0.0))
        history.append(worst)
        if worst <= tol or not np.isfinite(worst):
            break
        move = -inverse(r, left, right)
        x = x + move
        r_after = b + product(x) - x
        n_products += 1
        if used == memory:
            used = 0
        change = r_after - r
        v = inverse(move, right, left)
        along = _dot(v, change)
        # A sample that has arrived no longer changes; its update would be 0/0.
        along[np.abs(along) <= np.finfo(b.dtype).tiny] = np.inf
        left[:, used] = (move - inverse(change, left, right)) / along[:, None]
        right[:, used] = v
        used += 1
        r = r_after
    return _solution(x, r, b, tol, "broyden", n_products, n_products, history)


def halved(product: Product, b: NDArray, *, tol: float, max_iter: int, x0: NDArray | None = None) -> Solution:
    """x ← (x + (J x − x + b))/2, which the authors' program calls iteration.

    Its limit is (2I − J)⁻¹ b, about half the solution and slightly turned; the residual reported is that of
    x = J x + b, so it never counts as converged. Kept to show what that costs.
    """
    x = np.zeros_like(b) if x0 is None else x0
    size = norms(b)
    n_products = 0
    moved = np.full_like(size, np.inf)
    while n_products < max_iter and not np.all(moved <= tol * size):
        after = (product(x) + b) / 2
        n_products += 1
        moved = norms(after - x)
        x = after
    return _solution(x, product(x) + b - x, b, tol, "halved", n_products, n_products + 1, [])


def direct(product: Product, b: NDArray, *, tol: float, max_iter: int = 0, x0: NDArray | None = None) -> Solution:
    """Dense solve on each sample's active set, (ACTIVE).

    J's columns are found by applying the product to the unit vectors; a column that is zero (a masked
    neuron) drops out of the system. For small systems, and to judge the other solvers.
    """
    n_batch, n = b.shape
    columns = np.empty((n, n_batch, n), b.dtype)
    unit = np.zeros_like(b)
    for j in range(n):
        unit[:, j] = 1
        columns[j] = product(unit)
        unit[:, j] = 0
    x = np.empty_like(b)
    for sample in range(n_batch):
        jt = columns[:, sample]
        active = np.flatnonzero(np.any(jt != 0, axis=1))
        system = np.eye(active.size, dtype=b.dtype) - jt[np.ix_(active, active)].T
        try:
            inner = np.linalg.solve(system, b[sample, active])
        except np.linalg.LinAlgError:
            inner = np.full(active.size, np.nan, b.dtype)
        x[sample] = b[sample] + inner @ jt[active]
    return _solution(x, product(x) + b - x, b, tol, "direct", 1, n + 1, [])


SOLVERS = {
    "fixed_point": fixed_point,
    "anderson": anderson,
    "broyden": broyden,
    "gmres": gmres,
    "direct": direct,
    "halved": halved,
}


def solve(
    method: str, product: Product, b: NDArray, *, tol: float, max_iter: int = 200, x0: NDArray | None = None
) -> Solution:
    """Solve x = J x + b by the named method.

    Parameters
    ----------
    method : {"fixed_point", "anderson", "broyden", "gmres", "direct", "halved"}
    product : callable
        (B, n) ↦ J x, row by row; may not change its argument.
    b : (B, n) array
    tol : float
        On ‖residual‖/‖b‖ of every sample.
    max_iter : int
        Most products with J (``direct`` always takes n).
    x0 : (B, n) array, optional
        Where to begin.

    Raises
    ------
    ValueError
        For an unknown method, a tolerance that is not positive, no iterations, or arrays that do not fit.
    """
    if not is_one_of(method, SOLVERS):
        raise ValueError(f"solver {method!r} is unknown; expected one of {', '.join(SOLVERS)}")
    tol, max_iter = positive("tol", tol), whole("max_iter", max_iter)
    if not callable(product):
        raise ValueError(f"product is of type {type(product).__name__}; expected a callable, v to J v")
    for name, array in (("b", b), ("x0", b if x0 is None else x0)):
        if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f":
            shape = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(f"{name} is {shape}; expected an array (B, n) of floats")
    if x0 is not None and (x0.shape, x0.dtype) != (b.shape, b.dtype):
        raise ValueError(f"x0 is {x0.dtype} of shape {x0.shape}; expected {b.dtype} of shape {b.shape}, as b")
    return SOLVERS[method](product, b, tol=tol, max_iter=max_iter, x0=x0)


def require(solution: Solution, what: str) -> Solution:
    """The solution if it converged; otherwise :class:`NotConverged` with what was reached."""
    if solution.converged:
        return solution
    worst = float(np.max(solution.relative)) if np.all(np.isfinite(solution.relative)) else float("inf")
    raise NotConverged(
        f"{what}: {solution.method} stopped after {solution.n_products} products with a relative residual of "
        f"{worst:.2e}, tolerance {solution.tol:.0e}; allow more iterations, use another solver, or pass "
        "allow_unconverged=True to take it as it is"
    )
