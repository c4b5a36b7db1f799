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
    return np.sqrt(np.einsum("bn,bn->b", x, x))


def _relative(residual: NDArray, size: NDArray) -> NDArray:
    return np.divide(residual, size, out=np.where(residual > 0, np.inf, 0.0).astype(residual.dtype), where=size > 0)


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
    size = norms(b)
    x = b if x0 is None else x0
    history: list[float] = []
    for k in range(max_iter):
        after = product(x)
        after += b
        r = after - x
        worst = float(np.max(_relative(norms(r), size), initial=0.0))
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

    def matvec(v: NDArray) -> NDArray:
        nonlocal n_products
        n_products += 1
        rows = v.reshape(b.shape).astype(b.dtype, copy=False)
        return (rows - product(rows)).ravel()

    operator = LinearOperator((b.size, b.size), matvec=matvec, dtype=b.dtype)
    size = norms(b)
    x = np.zeros_like(b) if x0 is None else x0
    history: list[float] = []
    restart = max(1, min(40, b.size, max_iter))
    target = tol * float(np.linalg.norm(size)) / max(1.0, np.sqrt(b.shape[0]))
    r = b - (x - product(x))
    n_products += 1
    while n_products < max_iter:
        relative = _relative(norms(r), size)
        history.append(float(np.max(relative, initial=0.0)))
        if not np.all(np.isfinite(relative)) or np.all(relative <= tol):
            break
        correction, _ = scipy_gmres(operator, r.ravel(), rtol=0.0, atol=target, restart=restart, maxiter=1)
        x = x + correction.reshape(b.shape).astype(b.dtype, copy=False)
        before = float(np.max(relative, initial=0.0))
        r = b - (x - product(x))
        n_products += 1
        after = float(np.max(_relative(norms(r), size), initial=0.0))
        target *= 0.1
        if not after < before:
            break
    return _solution(x, r, b, tol, "gmres", n_products, n_products, history)


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


SOLVERS = {"fixed_point": fixed_point, "gmres": gmres, "direct": direct}


def solve(
    method: str, product: Product, b: NDArray, *, tol: float, max_iter: int = 200, x0: NDArray | None = None
) -> Solution:
    """Solve x = J x + b by the named method.

    Parameters
    ----------
    method : {"fixed_point", "gmres", "direct"}
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
        For an unknown method or a tolerance that is not positive.
    """
    if method not in SOLVERS:
        raise ValueError(f"solver {method!r} is unknown; expected one of {', '.join(SOLVERS)}")
    if not tol > 0:
        raise ValueError(f"tol is {tol!r}; expected a positive relative tolerance")
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
