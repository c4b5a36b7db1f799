"""Linear fixed-point equations x = J x + b, a batch at a time. Knows no neuron.

Every solver takes the product v ↦ J v on arrays (B, n), where sample b's row depends on row b alone, and returns
a :class:`Solution`. What counts as solved is decided in one place, :func:`accept`, from the product at the very x that
is returned. Nothing here raises because a system was hard: ``status`` says how it ended, and :func:`require` turns
that into an error where the caller wants one.

Source: (FP) linearised and (BETA); each method's own reference is in its docstring.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ide_ref._checks import converted, is_one_of, tolerance, whole
from ide_ref._kernels import elementwise as _elementwise


class Image(NamedTuple):
    """J v, (B, n), and what else the product left there: of the x that is returned it becomes ``Solution.aux``."""

    y: NDArray
    aux: Any = None


Matvec = Callable[[NDArray], "NDArray | Image"]

STATUSES = ("converged", "out of iterations", "stagnated", "lost to rounding", "singular", "diverged")
"""How a solver may end, from the best to the worst; the worst of a batch's samples is told."""

TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
"""Relative tolerance of a solution by dtype, unless another is asked for."""

_LONG = 8  # iterations after which a residual that only grows is called divergence


class NotConverged(RuntimeError):
    """A solver stopped before its tolerance; the message gives the residual it reached and why it stopped."""


@dataclass(frozen=True)
class Verdict:
    """What :func:`accept` found.

    Attributes
    ----------
    status : str
        One of :data:`STATUSES`.
    residual : (B,) array
        ‖b + y − x‖₂ of each sample.
    rounding : (B,) array
        eps (‖b‖₂ + ‖y‖₂ + ‖x‖₂): what the residual's own rounding may amount to.
    diverged_at : int or None
        The iteration from which on the residual only grew, where it diverged.
    """

    status: str
    residual: NDArray
    rounding: NDArray
    diverged_at: int | None = None


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Attributes
    ----------
    x : (B, n) array
    residual : (B,) array
        ‖b + J x − x‖₂ of each sample, with the product as it was computed at this very x.
    relative : (B,) array
        The same over ‖b‖₂ (0 where b is 0).
    rounding : (B,) array
        What the residual's own rounding may amount to, see :class:`Verdict`.
    iterations, n_products : int
        Steps of the method, and products with J over the whole batch.
    status : str
        One of :data:`STATUSES`: *converged* when every sample's residual and its rounding are within the tolerance;
        *lost to rounding* when the dtype cannot tell whether they are; *stagnated* when no step made the residual
        smaller; *singular* when the method found I − J to be so, or x outgrew b by 1/eps, as far as the dtype can tell;
        *diverged* when the residual has grown beyond its start or left the range of the dtype.
    tol : float
    method : str
    diverged_at : int or None
        The iteration at which divergence showed.
    history : tuple of float
        Largest relative residual after each step, where the method knows it.
    aux : object
        What the product left at this very x, see :class:`Image`; None if nothing.
    """

    x: NDArray
    residual: NDArray
    relative: NDArray
    rounding: NDArray
    iterations: int
    n_products: int
    status: str
    tol: float
    method: str
    diverged_at: int | None = None
    history: tuple[float, ...] = field(default=(), repr=False)
    aux: Any = field(default=None, repr=False)

    @property
    def converged(self) -> bool:
        """Whether the status is ``"converged"``."""
        return self.status == "converged"


def norms(x: NDArray) -> NDArray:
    """Euclidean norm of each row, (B, n) to (B,), right also where squares under- or overflow."""
    out = np.empty(len(x), x.dtype)
    _elementwise.norms(np.ascontiguousarray(x), out)
    return out


def _relative(residual: NDArray, size: NDArray) -> NDArray:
    # A NaN or an infinity in either, like a residual where b is 0, is infinitely far from solved.
    out = np.where(residual == 0, 0.0, np.inf).astype(residual.dtype)
    return np.divide(residual, size, out=out, where=(size > 0) & np.isfinite(residual) & np.isfinite(size))


def accept(
    x: NDArray,
    y: NDArray,
    b: NDArray,
    allowed: NDArray | float,
    *,
    history: Sequence[float] = (),
    stalled: bool = False,
    singular: bool = False,
) -> Verdict:
    """The one judge of every solver's result: whether x = y + b, where y is what the equation's map gives at this x.

    A sample is accepted when its residual ‖b + y − x‖₂ and the residual's own rounding, eps (‖b‖ + ‖y‖ + ‖x‖), are
    both at most what is allowed. The second half is what refuses an x that has grown until b no longer counts. What
    the map's own arithmetic rounds off inside y is not seen here; :mod:`ide_ref.certificates` bounds it for networks.

    Parameters
    ----------
    x, y, b : (B, n) arrays
    allowed : (B,) array or float
        Largest residual to accept, absolute; where that is beyond the floats, nothing is accepted.
    history : sequence of float
        Residuals of the steps before, to tell divergence from slowness.
    stalled : bool
        Whether the method stopped because no step made the residual smaller.
    singular : bool
        Whether it found the system singular by itself.
    """
    eps = float(np.finfo(x.dtype).eps)
    sizes = np.empty((4, len(x)))
    _elementwise.judge(
        np.ascontiguousarray(x), np.ascontiguousarray(y, x.dtype), np.ascontiguousarray(b, x.dtype), sizes
    )
    residual, of_b, of_y, of_x = sizes
    with np.errstate(over="ignore"):
        # Below the normal numbers products round to a fixed grain.
        grain = np.sqrt(x.shape[1]) * float(np.finfo(x.dtype).smallest_subnormal)
        empty = (of_x == 0) & (residual == 0)
        rounding = np.where(empty, 0.0, eps * (of_b + of_y + of_x) + grain)
        left = ~((residual <= allowed) & (rounding <= allowed) & (allowed < np.inf))
        if not left.any():
            return Verdict("converged", residual, rounding)
        grew_from = _grew_from(history)
        if grew_from is None and not singular and not np.all(np.isfinite(residual[left])):
            grew_from = len(history)
        if grew_from is not None:
            status = "diverged"
        elif singular or np.any(left & (eps * of_x >= of_b) & (of_b > 0)):
            status = "singular"
        elif np.any(left & (residual <= 4 * rounding)):
            status = "lost to rounding"
        else:
            status = "stagnated" if stalled else "out of iterations"
    return Verdict(status, residual, rounding, grew_from)


def _grew_from(history: Sequence[float]) -> int | None:
    """The step from which on a residual only grew beyond where it began; None where it did not."""
    if not history:
        return None
    lost = not np.isfinite(history[-1])
    if not lost and (len(history) < _LONG or not history[-1] > history[0]):
        return None
    least = int(np.argmin(np.where(np.isfinite(history), history, np.inf)))
    # One that fell for the better half of its way may fall again.
    return least + 1 if lost or 2 * least <= len(history) else None


class _Run:
    """A method at work on x = J x + b: the products it took, and how its residuals went."""

    def __init__(self, method: str, matvec: Matvec, b: NDArray, tol: float) -> None:
        self.method, self.matvec, self.b, self.tol = method, matvec, b, tol
        self.size = norms(b)
        self.n_products = 0
        self.history: list[float] = []

    def image(self, v: NDArray) -> Image:
        """The product at v."""
        self.n_products += 1
        image = self.matvec(v)
        return image if isinstance(image, Image) else Image(image)

    def start(self, x0: NDArray | None) -> tuple[NDArray, Image]:
        """Where the method begins, and the product there: none is taken of 0."""
        if x0 is None:
            return np.zeros_like(self.b), Image(np.zeros_like(self.b))
        return x0, self.image(x0)

    def residual(self, x: NDArray, image: Image) -> NDArray:
        """b + J x − x."""
        return self.b + image.y - x

    def note(self, length: NDArray) -> float:
        """The largest relative residual, by the residuals' norms (B,)."""
        worst = float(np.max(_relative(length, self.size), initial=0.0))
        self.history.append(worst)
        return worst

    def is_over(self, length: NDArray) -> bool:
        """Whether every sample has arrived, or one no longer knows its b."""
        worst = self.note(length)
        return worst <= self.tol or hopeless(worst, self.b.dtype)

    def solution(
        self, x: NDArray, image: Image, iterations: int, *, stalled: bool = False, singular: bool = False
    ) -> Solution:
        """What the method returns: x, judged by its image J x."""
        size = self.size.astype(np.float64)
        verdict = accept(x, image.y, self.b, self.tol * size, history=self.history, stalled=stalled, singular=singular)
        return Solution(
            **vars(verdict),
            x=x,
            relative=_relative(verdict.residual, size),
            iterations=iterations,
            n_products=self.n_products,
            tol=self.tol,
            method=self.method,
            history=tuple(self.history),
            aux=image.aux,
        )


def hopeless(worst: float, dtype: np.dtype) -> bool:
    """Whether a relative residual is so large that x no longer knows b."""
    return not worst < 1.0 / float(np.finfo(dtype).eps)


def fixed_point(matvec: Matvec, b: NDArray, *, tol: float, max_iter: int, x0: NDArray | None = None) -> Solution:
    """x^{k+1} = J x^k + b, (B, n), the iteration of (BETA); converges when the spectral radius of J is below 1."""
    b = np.ascontiguousarray(b)
    run = _Run("fixed_point", matvec, b, tol)
    x = b if x0 is None else np.ascontiguousarray(x0, b.dtype)
    r, length = np.empty_like(b), np.empty_like(run.size)
    for k in range(max_iter):
        after = np.empty_like(b)
        image = run.image(x)
        _elementwise.move(np.ascontiguousarray(image.y, b.dtype), b, x, after, r, length)
        if run.is_over(length):
            return run.solution(x, image, k)
        x = after
        del image  # as large as all states, perhaps: it goes before the next one comes
    return run.solution(x, run.image(x), max_iter)


def gmres(
    matvec: Matvec, b: NDArray, *, tol: float, max_iter: int, x0: NDArray | None = None, memory: int = 40
) -> Solution:
    """GMRES on (I − J) x = b, (B, n), every sample with its own Krylov space, restarted when the memory is full.

    Arnoldi's process by Gram and Schmidt, twice; the Hessenberg matrices become triangular by Givens rotations as they
    grow. Sums are taken in an order that no number of threads changes. Source: Saad and Schultz (1986).
    """
    n_batch, n = b.shape
    run = _Run("gmres", matvec, b, tol)
    x, image = run.start(x0)
    iterations = 0
    stalled, ended = False, np.zeros(n_batch, bool)
    while True:
        r = run.residual(x, image)
        length = norms(r)
        if run.note(length) <= tol or run.n_products >= max_iter or stalled:
            break
        n_steps = max(1, min(memory, n, max_iter - run.n_products - 1))
        basis = np.zeros((n_steps + 1, n_batch, n), b.dtype)
        np.divide(r, length[:, None], out=basis[0], where=length[:, None] > 0)
        R = np.zeros((n_batch, n_steps, n_steps))
        rotations = np.zeros((n_steps, 2, n_batch))
        right = np.empty((n_batch, n_steps + 1))
        right[:, 0] = length
        for k in range(n_steps):
            w = basis[k] - run.image(basis[k]).y
            iterations += 1
            before = norms(w)
            column = np.zeros((n_batch, k + 2))
            for _ in range(2):
                along = np.einsum("kbn,bn->bk", basis[: k + 1], w)
                w = w - np.einsum("bk,kbn->bn", along, basis[: k + 1])
                column[:, : k + 1] += along
            rest = norms(w)
            # Nothing new: the space holds the solution, or what of it there is.
            rest[rest <= 10.0 * np.finfo(b.dtype).eps * before] = 0
            column[:, k + 1] = rest
            ended |= rest == 0
            np.divide(w, rest[:, None], out=basis[k + 1], where=rest[:, None] > 0)
            for j in range(k):
                c, s = rotations[j]
                upper, lower = column[:, j], column[:, j + 1]
                column[:, j], column[:, j + 1] = c * upper + s * lower, c * lower - s * upper
            diagonal = np.hypot(column[:, k], column[:, k + 1])
            np.divide(column[:, k:].T, diagonal, out=rotations[k], where=diagonal > 0)
            c, s = rotations[k]
            column[:, k] = diagonal
            R[:, : k + 1, k] = column[:, : k + 1]
            right[:, k + 1] = -s * right[:, k]
            right[:, k] *= c
            if np.all(np.abs(right[:, k + 1]) <= tol * run.size):
                break
        used = k + 1
        # A direction that (I − J) sends to nothing new and nothing old, or out of range, has no part in the solution.
        triangle = R[:, :used, :used]
        largest = np.max(np.abs(triangle), axis=(1, 2))
        none = ~(np.abs(np.einsum("bii->bi", triangle)) > np.finfo(b.dtype).eps * largest[:, None])
        triangle[:, range(used), range(used)] += np.where(none, 1.0, 0.0)
        weights = np.linalg.solve(triangle, np.where(none, 0.0, right[:, :used])[:, :, None])[:, :, 0]
        after = x + np.einsum("bk,kbn->bn", weights.astype(b.dtype), basis[:used])
        image_after = run.image(after)
        # Each sample keeps the better of its two points.
        better = norms(run.residual(after, image_after)) < length
        stalled = not np.any(better)
        if not stalled:
            x = np.where(better[:, None], after, x)
            image = image_after if np.all(better) else run.image(x)
    # A space that J does not leave holds the solution of every system that is not singular.
    singular = stalled and bool(np.any(ended & (_relative(length, run.size) > tol)))
    return run.solution(x, image, iterations, stalled=stalled, singular=singular)


def scipy_gmres(matvec: Matvec, b: NDArray, *, tol: float, max_iter: int, x0: NDArray | None = None) -> Solution:
    """``scipy.sparse.linalg.gmres`` on (I − J) x = b, (B, n), the batch as one block-diagonal system.

    One Krylov space serves all samples, so what a sample gets depends on the others of its batch; beyond 10,000
    numbers its dot products, and so the last bits, depend on the threads of BLAS. Restarted every 40 steps; SciPy's
    tolerance is on the whole batch, so that every sample meets it.
    """
    from scipy.sparse import linalg

    run = _Run("scipy_gmres", matvec, b, tol)
    # Rows of unit length, so that one tolerance for the batch serves every sample.
    scale = np.where(run.size > 0, run.size, 1.0).astype(b.dtype)[:, None]
    right = b / scale

    def product(v: NDArray) -> NDArray:
        rows = v.reshape(b.shape).astype(b.dtype, copy=False)
        return (rows - run.image(rows * scale).y / scale).ravel()

    operator = linalg.LinearOperator((b.size, b.size), matvec=product, dtype=b.dtype)
    x, image = run.start(x0)
    rows = x / scale
    r = right - (rows - image.y / scale)
    stalled = False
    while run.n_products < max_iter:
        worst = float(np.max(norms(r), initial=0.0))
        run.history.append(worst)
        if not np.isfinite(worst) or worst <= tol or stalled:
            break
        # SciPy takes one product more than steps, and one more judges them.
        restart = max(1, min(40, b.size, max_iter - run.n_products - 2))
        correction, _ = linalg.gmres(operator, r.ravel(), rtol=0.0, atol=tol, restart=restart, maxiter=1)
        rows_after = rows + correction.reshape(b.shape).astype(b.dtype, copy=False)
        after = rows_after * scale
        image_after = run.image(after)
        r_after = right - (rows_after - image_after.y / scale)
        # Stagnation is judged on the whole batch, whose norm is what a Krylov step makes smaller.
        stalled = not np.linalg.norm(r_after) < np.linalg.norm(r)
        if not stalled:
            x, rows, image, r = after, rows_after, image_after, r_after
    return run.solution(x, image, run.n_products, stalled=stalled)


def anderson(
    matvec: Matvec, b: NDArray, *, tol: float, max_iter: int, x0: NDArray | None = None, memory: int = 6
) -> Solution:
    """Anderson acceleration (type II) of the fixed-point iteration for b (B, n), every sample with its own weights.

    The step is the combination of the last ``memory`` iterates whose residual is smallest. On a linear
    equation that is GMRES with a sliding window, so it also converges for many J of spectral radius above 1.
    """
    n_batch, n = b.shape
    run = _Run("anderson", matvec, b, tol)
    x, image = run.start(x0)
    # Of the last steps: changes of the residual, and steps plus changes. Memory is touched for steps taken alone.
    sums, changes = np.empty((2, memory, n_batch, n), b.dtype)
    gram = np.empty((n_batch, memory, memory))
    ridge = 10.0 * np.finfo(b.dtype).eps
    r_before = move = r = run.residual(x, image)
    for k in range(max_iter - run.n_products):
        length = norms(r)
        if run.is_over(length):
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
            scale[scale == 0] = np.inf
            system = gram[:, :used, :used] / (scale[:, :, None] * scale[:, None, :])
            system[:, range(used), range(used)] += ridge
            right = np.einsum("mbn,bn->bm", changes[:used], r) / scale
            weights = (np.linalg.solve(system, right[:, :, None])[:, :, 0] / scale).astype(b.dtype)
            move = r - np.einsum("bm,mbn->bn", weights, sums[:used])
            # Finished samples stand where they are.
            move[_relative(length, run.size) <= tol] = 0
        x = x + move
        del image  # as large as all states, perhaps: it goes before the next one comes
        image = run.image(x)
        r_before, r = r, run.residual(x, image)
    return run.solution(x, image, run.n_products)


def broyden(
    matvec: Matvec, b: NDArray, *, tol: float, max_iter: int, x0: NDArray | None = None, memory: int = 30
) -> Solution:
    """Broyden's good method on b + J x − x = 0, (B, n), limited memory, every sample with its own inverse Jacobian.

    The inverse Jacobian starts as −I and gains a rank per step, by Sherman and Morrison; it is forgotten when
    the memory is full.
    """
    n_batch, n = b.shape
    run = _Run("broyden", matvec, b, tol)
    x, image = run.start(x0)
    r = run.residual(x, image)
    left, right = np.empty((2, n_batch, memory, n), b.dtype)
    used = 0

    def inverse(v: NDArray, outer: NDArray, inner: NDArray) -> NDArray:
        # NumPy's einsum over nothing multiplies 0 by what lies at the empty array's address: NaN at times.
        if used == 0:
            return -v
        weights = np.einsum("bmn,bn->bm", inner[:, :used], v)
        return np.einsum("bm,bmn->bn", weights, outer[:, :used]) - v

    while run.n_products < max_iter and not run.is_over(norms(r)):
        move = -inverse(r, left, right)
        x = x + move
        image = run.image(x)
        r_after = run.residual(x, image)
        if used == memory:
            used = 0
        change = r_after - r
        v = inverse(move, right, left)
        along = np.einsum("bn,bn->b", v, change)
        # A sample that has arrived no longer changes; its update would be 0/0.
        along[along == 0] = np.inf
        left[:, used] = (move - inverse(change, left, right)) / along[:, None]
        right[:, used] = v
        used += 1
        r = r_after
    return run.solution(x, image, run.n_products)


def damped(matvec: Matvec, b: NDArray, *, tol: float, max_iter: int, x0: NDArray | None = None) -> Solution:
    """x ← (x + (J x − x + b))/2, (B, n), which the authors' program calls iteration.

    Its limit is (2I − J)⁻¹ b, about half the solution and slightly turned; the residual reported is that of
    x = J x + b, so it never counts as converged. Kept to show what that costs.
    """
    run = _Run("damped", matvec, b, tol)
    x, image = run.start(x0)
    moved = np.full_like(run.size, np.inf)
    while run.n_products < max_iter and not np.all(moved <= tol * run.size):
        after = (image.y + b) / 2
        moved = norms(after - x)
        x, image = after, run.image(after)
    return run.solution(x, image, run.n_products)


def direct(matvec: Matvec, b: NDArray, *, tol: float, max_iter: int = 0, x0: NDArray | None = None) -> Solution:
    """Dense solve for b (B, n) on each sample's active set A, on which M is 1.

    (ACTIVE) (I − (1/V_th) W_AAᵀ)(Mβ)_A = g_A

    J's columns are found by applying the product to the unit vectors; a column that is zero (a masked
    neuron) drops out of the system. For small systems, and to judge the other solvers.
    """
    run = _Run("direct", matvec, b, tol)
    n_batch, n = b.shape
    columns = np.empty((n, n_batch, n), b.dtype)
    for j, unit in enumerate(np.eye(n, dtype=b.dtype)):
        columns[j] = run.image(np.tile(unit, (n_batch, 1))).y
    x = np.empty_like(b)
    singular = False
    for sample in range(n_batch):
        jt = columns[:, sample]
        active = np.flatnonzero(np.any(jt != 0, axis=1))
        system = np.eye(active.size) - jt[np.ix_(active, active)].T
        try:
            inner = np.linalg.solve(system, b[sample, active])
        except np.linalg.LinAlgError:
            inner = np.full(active.size, np.nan, b.dtype)
            singular = True
        x[sample] = b[sample] + inner @ jt[active]
    return run.solution(x, run.image(x), 1, singular=singular)


SOLVERS: dict[str, Callable[..., Solution]] = {
    method.__name__: method for method in (fixed_point, anderson, broyden, gmres, scipy_gmres, direct, damped)
}


def solve(
    method: str,
    matvec: Matvec,
    b: NDArray,
    *,
    tol: float | None = None,
    max_iter: int = 200,
    x0: NDArray | None = None,
    joined: bool = False,
) -> Solution:
    """Solve x = J x + b by the named method.

    Parameters
    ----------
    method : {"fixed_point", "anderson", "broyden", "gmres", "scipy_gmres", "direct", "damped"}
    matvec : callable
        (B, n) ↦ J x, row by row, linear, as an array or an :class:`Image`; may change neither its argument nor what it
        returned before.
    b : (B, n) array
        float32 or float64.
    tol : float, optional
        On ‖residual‖/‖b‖ of every sample; by default that of the dtype, :data:`TOLERANCE`.
    max_iter : int
        Most products with J; judging what is found may take up to two more (``direct`` always takes n + 1).
    x0 : (B, n) array, optional
        Where to begin.
    joined : bool
        Whether the product couples the rows, so that all samples are one system; the tolerance is still each one's.

    Raises
    ------
    ValueError
        For an unknown method, a tolerance that is not positive, no iterations, or arrays that do not fit, are of
        another dtype, or have values that are not finite.

    Notes
    -----
    Samples whose b is tiny or huge are solved scaled by a power of 2, so that no square leaves the dtype's range, and
    judged unscaled.
    """
    if not is_one_of(method, SOLVERS):
        raise ValueError(f"solver {method!r} is unknown; expected one of {', '.join(SOLVERS)}")
    max_iter = whole("max_iter", max_iter)
    if not callable(matvec):
        raise ValueError(f"matvec is of type {type(matvec).__name__}; expected a callable, v to J v")
    b = _system_array("b", b)
    # One that is out of reach is no mistake here: the status says that it was lost to rounding.
    tol = tolerance(tol, b.dtype, TOLERANCE, must_reach=False)
    if x0 is not None:
        x0 = _system_array("x0", x0)
        if (x0.shape, x0.dtype) != (b.shape, b.dtype):
            raise ValueError(f"x0 is {x0.dtype} of shape {x0.shape}; expected {b.dtype} of shape {b.shape}, as b")
    # A system that leaves the range of the floats on its way is told by its status, not by warnings.
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        scale = np.ones((1, 1), b.dtype) if joined else _scale(b)
        if scale is None:
            return SOLVERS[method](matvec, b, tol=tol, max_iter=max_iter, x0=x0)
        shape = (1, b.size) if joined else b.shape
        run = _Run(method, matvec, b, tol)

        def product(v: NDArray) -> Image:
            image = run.image(v.reshape(b.shape) * scale)
            return Image((image.y / scale).reshape(shape), image)

        if joined and b.any():
            tol = tol * float(np.min(run.size[run.size > 0])) / float(norms(b.reshape(shape))[0])
        x0 = None if x0 is None else (x0 / scale).reshape(shape)
        found = SOLVERS[method](product, (b / scale).reshape(shape), tol=tol, max_iter=max_iter, x0=x0)
        run.history.extend(found.history)
        return run.solution(
            found.x.reshape(b.shape) * scale,
            found.aux or Image(np.zeros_like(b)),  # one that never left 0 took no product
            found.iterations,
            stalled=found.status == "stagnated",
            singular=found.status == "singular",
        )


def _system_array(name: str, array: NDArray) -> NDArray:
    """An array (B, n) of float32 or float64 in the machine's byte order; ValueError, by name, for any other."""
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f":
        shape = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{name} is {shape}; expected an array (B, n) of floats")
    native = array.dtype.newbyteorder("=")
    if native not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"{name} is {array.dtype}; expected float32 or float64")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} has values that are NaN or infinite; expected finite ones")
    return converted(name, array, native)


def _scale(b: NDArray) -> NDArray | None:
    """(B, 1) powers of 2 near the norms of b's rows; None where all are of ordinary size."""
    size = norms(b)
    info = np.finfo(b.dtype)
    # A third of the exponents on either side is left to what a solver squares and to what a system amplifies.
    if np.all((size == 0) | ((size > float(info.tiny) ** (1 / 3)) & (size < float(info.max) ** (1 / 3)))):
        return None
    exponent = np.clip(np.frexp(size)[1], info.minexp, info.maxexp - 1)
    return np.ldexp(np.ones_like(size), exponent)[:, None]


def require(solution: Solution, what: str) -> Solution:
    """The solution if it converged; otherwise :class:`NotConverged` with what was reached and what helps."""
    if solution.converged:
        return solution
    left = (solution.residual > 0) & np.isfinite(solution.relative)
    reach = float(np.max(solution.rounding[left] / solution.residual[left] * solution.relative[left], initial=0.0))
    worst = float(np.max(solution.relative))
    why = explain(solution.status, reach, solution.x.dtype, solution.diverged_at)
    raise NotConverged(
        f"{what}: {solution.method} stopped after {solution.n_products} products with a relative residual of "
        f"{worst:.2e}, tolerance {solution.tol:.0e}; {why}, or pass allow_unconverged=True to take it as it is"
    )


def explain(status: str, reach: float, dtype: np.dtype, diverged_at: int | None) -> str:
    """Why a result was not accepted and what helps; ``reach`` is the residual that rounding alone may amount to."""
    grain = f"rounding of {dtype}, which alone may be {reach:.1e}"
    advice = "" if dtype == np.float64 else " or compute in float64"
    since = f"the residual grew from iteration {diverged_at} on"
    return {
        "diverged": f"diverged, {since}: try another solver or smaller weights",
        "singular": "singular, I - J has no inverse as far as this precision can tell: change the weights",
        "lost to rounding": f"lost to {grain}: ask for a larger tolerance{advice}",
        "stagnated": "stagnated, no step made the residual smaller: use another solver",
        "out of iterations": "out of iterations: allow more iterations, use another solver",
    }[status]
