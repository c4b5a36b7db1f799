"""Cross-examination: (BETA) by every solver, and what kind of system it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ide_ref import certificates, solvers
from ide_ref._files import finite
from ide_ref.certificates import GRAIN
from ide_ref.equilibrium import Equilibrium, linearise
from ide_ref.implicit import right_hand_side
from ide_ref.maps import Frozen
from ide_ref.norms import ROUNDOFF
from ide_ref.simulation import Rates
from ide_ref.solvers import Matvec

METHODS = tuple(name for name in solvers.SOLVERS if name != "damped")
"""All solvers of (BETA); ``damped`` solves another equation and is examined on request."""

SINGULAR = 1e12
"""I − J counts as singular from this condition on."""


@dataclass(frozen=True)
class System:
    """What is known of x = J x + b, the worst sample's figures."""

    size: int
    """Unknowns per sample."""
    gamma: float
    """γ, a bound of ‖J‖ from operator norms; NaN where none was given."""
    radius: float
    """Spectral radius of J: the fixed-point iteration converges for every b when it is below 1."""
    condition: float
    """Of I − J; infinite when singular."""
    smallest: float
    """Smallest eigenvalue of the symmetric part of I − J; at most 0 when the system is indefinite, where restarted
    GMRES may stagnate."""
    examined: bool
    """False for systems too large to take apart; radius, condition and smallest are then NaN."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What stands in the way of a solution, in words."""
        down = f"symmetric part down to {self.smallest:.2e}"
        found = {
            f"gamma is {self.gamma:.3f}, not below 1: (COND) does not hold, and no error is certified": self.gamma >= 1,
            f"spectral radius of J is {self.radius:.3f}: the fixed-point iteration need not converge": self.radius >= 1,
            "I - J is singular to working precision: beta is not determined": self.condition >= SINGULAR,
            f"I - J is indefinite ({down}): restarted GMRES may stagnate": self.smallest <= 0,
        }
        return tuple(text for text, holds in found.items() if holds)


@dataclass(frozen=True)
class SolverRow:
    """How one solver did."""

    method: str
    verdict: str
    """The solution's status, one of :data:`ide_ref.solvers.STATUSES`; for ``damped`` it is ``another equation``."""
    iterations: int
    n_products: int
    residual: float
    """Largest relative residual of a sample."""
    certificate: float
    """Largest certified error ‖x − x*‖₂, (CERT); infinite where γ ≥ 1 or unknown."""
    error: float
    """Largest ‖x − x*‖₂ against a dense solution; NaN for systems too large."""
    seconds: float


@dataclass(frozen=True)
class SolverReport:
    """Result of :func:`cross_examine`."""

    rows: tuple[SolverRow, ...]
    system: System
    tol: float

    @property
    def agree(self) -> bool:
        """Whether every solver but ``damped`` converged."""
        return all(row.verdict == "converged" for row in self.rows if row.method != "damped")

    def row(self, method: str) -> SolverRow:
        """The row of one solver."""
        return next(row for row in self.rows if row.method == method)

    def table(self) -> str:
        """The report as text."""
        lines = ["solver       verdict           iterations  products   residual  certified      error        ms"]
        for r in self.rows:
            numbers = f"{r.residual:>9.1e}  {r.certificate:>9.1e}  {r.error:>9.1e}  {1e3 * r.seconds:>8.2f}"
            lines.append(f"{r.method:<11}  {r.verdict:<16}  {r.iterations:>10}  {r.n_products:>8}  {numbers}")
        s = self.system
        lines.append(
            f"{s.size} unknowns per sample, tolerance {self.tol:.0e}; gamma {s.gamma:.4f}, spectral radius "
            f"{s.radius:.4f}, condition {s.condition:.2e}"
        )
        return "\n".join([*lines, *(f"warning: {text}" for text in s.warnings)])

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values; numbers that are not finite become null."""
        own = asdict(self)
        return finite({"agree": self.agree, "warnings": self.system.warnings, "solvers": own.pop("rows"), **own})


# What leaves the range of the floats is told by the figures, not by warnings.
@np.errstate(over="ignore", invalid="ignore")
def examine(
    product: Matvec,
    b: NDArray,
    *,
    gamma: float = float("nan"),
    methods: Sequence[str] = METHODS,
    tol: float = 1e-10,
    max_iter: int = 200,
    max_size: int = 600,
    certify: Callable[[NDArray], NDArray] | None = None,
) -> SolverReport:
    """Solve x = J x + b with every solver and take the system apart; ValueError for an unknown solver.

    Parameters
    ----------
    product : callable
        (B, n) ↦ J x, row by row.
    b : (B, n) array
    gamma : float
        A bound of ‖J‖₂ from above for (CERT), where one is known. The certificate is that of the matrix that
        ``product`` makes of the unit vectors; nothing is certified for systems that are not taken apart.
    methods : sequence of str
        Names of :data:`ide_ref.solvers.SOLVERS`.
    tol, max_iter : float, int
        As in :func:`ide_ref.solvers.solve`.
    max_size : int
        Larger systems are solved but not taken apart, and not given to the direct solver.
    certify : callable, optional
        The certificate of any x, (B, n) to (B,), where the system's origin gives one; in place of that by ``gamma``.
    """
    unknown = [name for name in methods if name not in solvers.SOLVERS]
    if unknown:
        raise ValueError(f"methods has {unknown[0]!r}; expected names of {', '.join(solvers.SOLVERS)}")
    n_batch, n = b.shape
    examined = 0 < n <= max_size
    radius = condition = smallest = float("nan")
    truth: NDArray | None = None
    if examined:
        # (B, n, n) J of every sample, from its products with the unit vectors.
        columns = [product(np.tile(unit, (n_batch, 1))) for unit in np.eye(n)]
        matrices = np.stack(columns, axis=2).astype(np.float64)
        systems = np.eye(n) - matrices
        radius = float(np.max(np.abs(np.linalg.eigvals(matrices))))
        condition = float(np.max(np.linalg.cond(systems)))
        smallest = float(np.min(np.linalg.eigvalsh((systems + systems.transpose(0, 2, 1)) / 2)[:, 0]))
        if condition < SINGULAR:
            truth = np.linalg.solve(systems, b.astype(np.float64)[:, :, None])[:, :, 0]
        certify = certify or (lambda x: certificates.certified(_residual_above(matrices, b, x), gamma))
    rows = []
    for method in methods:
        if method == "direct" and n > max_size:
            continue
        begin = time.perf_counter()
        solution = solvers.solve(method, product, b, tol=tol, max_iter=max_iter)
        seconds = time.perf_counter() - begin
        certificate = float("inf") if certify is None else float(np.max(certify(solution.x)))
        error = float("nan") if truth is None else float(np.max(solvers.norms(solution.x - truth)))
        # The damped iteration has a limit, of another equation.
        verdict = "another equation" if method == "damped" else solution.status
        residual, taken = float(np.max(solution.relative)), (solution.iterations, solution.n_products)
        rows.append(SolverRow(method, verdict, *taken, residual, certificate, error, seconds))
    return SolverReport(tuple(rows), System(n, gamma, radius, condition, smallest, examined), tol)


def _residual_above(matrices: NDArray, b: NDArray, x: NDArray) -> NDArray:
    """(B,) bounds of ‖b + J x − x‖₂ from above, with the rounding of computing it in float64."""
    x, b = x.astype(np.float64), b.astype(np.float64)
    y = np.einsum("bij,bj->bi", matrices, x)
    size = np.einsum("bij,bj->bi", np.abs(matrices), np.abs(x))
    terms = x.shape[1] + 8
    off = ROUNDOFF * (2 * terms * size + 4 * (np.abs(b) + np.abs(x) + np.abs(y)))
    return certificates.norm_above(np.abs((b + y) - x) + off + terms * GRAIN)


def cross_examine(
    frozen: Frozen,
    state: Rates | Equilibrium,
    d_logits: ArrayLike,
    *,
    methods: Sequence[str] = METHODS,
    tol: float = 1e-10,
    max_iter: int = 200,
    max_size: int = 600,
) -> SolverReport:
    """Solve (BETA) with every solver and tabulate what each took and reached.

    Arguments are as for :func:`ide_ref.backward` and :func:`examine`.

    Raises
    ------
    ValueError
        When shapes do not fit or a method is unknown. Solvers that fail are reported, not raised.
    """
    d_logits = frozen.check_d_logits(np.asarray(d_logits), len(state.a))
    if not frozen.network.feedback_sources:
        raise ValueError("the network has no feedback connection; expected one, or there is no (BETA) to solve")
    jacobian = linearise(frozen, state.a, frozen.drive(state.x_mean))
    g, _ = frozen.read_out_pull_back(state, d_logits)
    b, others = right_hand_side(jacobian, g)

    def certify(x: NDArray) -> NDArray:
        beta, _ = jacobian.spread_back(x, others)
        errors = certificates.beta_error(frozen, jacobian.maps, jacobian.slope, g, beta)
        return certificates.on_sources(frozen, errors)

    limits = {"max_iter": max_iter, "max_size": max_size}
    gamma = certificates.contraction_bound(frozen).upper
    return examine(jacobian.vjp, b, gamma=gamma, methods=methods, tol=tol, certify=certify, **limits)
