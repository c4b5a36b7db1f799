"""The implicit gradient against central differences of the exact equilibrium."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ide_ref.equilibrium import Equilibrium, find_equilibrium
from ide_ref.implicit import Backward, backward
from ide_ref.network import Network, Params, freeze
from ide_ref.training.losses import cross_entropy

FLOOR = 1e-3
"""Errors are relative to the larger of the two values, and at least to this part of the parameter's largest."""

RESOLUTION = 1e-5
"""... and at least to this part of the largest of all: a bias under batch normalisation has gradient 0, and
differences of a loss near 1 resolve no less."""


@dataclass(frozen=True)
class GradientRow:
    """One parameter's check.

    Attributes
    ----------
    parameter : str
    size : int
        Scalars in the parameter.
    checked, set_aside : int
        Coordinates compared, and coordinates where every step crossed a kink of σ.
    max_rel_error : float
        Largest relative error among those compared; NaN when none was.
    worst : tuple of int
        Index of the coordinate it was found at.
    largest : float
        Largest absolute gradient in the parameter.
    """

    parameter: str
    size: int
    checked: int
    set_aside: int
    max_rel_error: float
    worst: tuple[int, ...]
    largest: float


@dataclass(frozen=True)
class GradientReport:
    """Result of :func:`check_gradient`.

    Attributes
    ----------
    rows : tuple of GradientRow
    tol : float
    loss : float
    beta_residual : float
        Largest relative residual of (BETA).
    certificate : float
        Largest certified error of β, (CERT); infinite where γ ≥ 1.
    equilibrium_residual : float
        Largest ‖f(a) − a‖ of the equilibrium differentiated.
    contraction : float
        γ of (COND).
    """

    rows: tuple[GradientRow, ...]
    tol: float
    loss: float
    beta_residual: float
    certificate: float
    equilibrium_residual: float
    contraction: float

    @property
    def checked(self) -> int:
        """Coordinates compared."""
        return sum(row.checked for row in self.rows)

    @property
    def set_aside(self) -> int:
        """Coordinates set aside because a kink lay between."""
        return sum(row.set_aside for row in self.rows)

    @property
    def max_rel_error(self) -> float:
        """Largest relative error over all parameters."""
        errors = [row.max_rel_error for row in self.rows if row.checked]
        return max(errors) if errors else float("nan")

    @property
    def passed(self) -> bool:
        """Whether something was compared and every error is at most ``tol``."""
        return self.checked > 0 and bool(self.max_rel_error <= self.tol)

    def table(self) -> str:
        """The report as text."""
        width = max(len("parameter"), *(len(row.parameter) for row in self.rows))
        lines = [f"{'parameter':<{width}}  {'size':>8}  checked  set aside  largest |g|  max rel. error"]
        for row in self.rows:
            flag = "" if not row.checked or row.max_rel_error <= self.tol else f"  <- at {row.worst}"
            lines.append(
                f"{row.parameter:<{width}}  {row.size:>8}  {row.checked:>7}  {row.set_aside:>9}  "
                f"{row.largest:>11.3e}  {row.max_rel_error:>14.2e}{flag}"
            )
        lines.append(
            f"{self.checked} coordinates checked, {self.set_aside} set aside for kinks; largest relative error "
            f"{self.max_rel_error:.2e}, tolerance {self.tol:.0e}: {'passed' if self.passed else 'FAILED'}"
        )
        lines.append(
            f"loss {self.loss:.6f}; gamma {self.contraction:.4f}; residual of (BETA) {self.beta_residual:.1e}, "
            f"certified error of beta {self.certificate:.1e}; residual of the equilibrium "
            f"{self.equilibrium_residual:.1e}"
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return {
            "passed": self.passed,
            "tol": self.tol,
            "max_rel_error": self.max_rel_error,
            "checked": self.checked,
            "set_aside": self.set_aside,
            "loss": self.loss,
            "contraction": self.contraction,
            "beta_residual": self.beta_residual,
            "certificate": self.certificate,
            "equilibrium_residual": self.equilibrium_residual,
            "parameters": [
                {
                    "parameter": row.parameter,
                    "size": row.size,
                    "checked": row.checked,
                    "set_aside": row.set_aside,
                    "max_rel_error": row.max_rel_error,
                    "worst": list(row.worst),
                    "largest": row.largest,
                }
                for row in self.rows
            ],
        }


@dataclass(frozen=True)
class _Problem:
    """The loss as a function of the parameters, everything random held fixed."""

    network: Network
    x: NDArray
    y: NDArray
    training: bool
    seed: int

    def solve(self, params: Params, start: NDArray | None = None) -> tuple[float, NDArray, Equilibrium]:
        """Loss, its gradient in the logits, and the equilibrium, at these parameters."""
        rng = np.random.default_rng(self.seed)
        frozen = freeze(self.network, params, self.x, training=self.training, rng=rng)
        # Solved below the tolerance that 1e-13 asks for: the last bits are what differences see.
        state = find_equilibrium(frozen, self.x, tol=1e-15, start=start, allow_unconverged=True, max_iter=400)
        loss, d_logits = cross_entropy(frozen.read_out(state), self.y)
        return loss, d_logits, state


def check_gradient(
    network: Network,
    params: Mapping[str, ArrayLike],
    x: ArrayLike,
    y: ArrayLike,
    *,
    n_coordinates: int = 12,
    seed: int = 0,
    step: float = 4e-2,
    tol: float = 1e-7,
    training: bool = True,
    solver: str = "gmres",
    gradients: Mapping[str, ArrayLike] | None = None,
) -> GradientReport:
    """Compare the implicit gradient with differences of the exact equilibrium.

    The loss is that of a*(θ), solved for each perturbed θ, with batch statistics recomputed and dropout masks
    held. Differences are central and of fourth order, from θ ± h and θ ± 2h. When one of the four moves a
    neuron onto another piece of σ, h is divided by 4, three times at most; then the coordinate is set aside.

    Parameters
    ----------
    network : Network
    params : mapping of str to array
        Converted to float64.
    x, y : arrays
        A small batch: (B, *input_shape) or (B, T, *input_shape), and (B,) labels.
    n_coordinates : int
        Coordinates drawn a parameter (all, where it has fewer).
    seed : int
        Of the draw and of the dropout masks.
    step : float
        First h, in units of the larger of 0.1 and the coordinate's size.
    tol : float
        Largest relative error that passes.
    training : bool
        With batch statistics and dropout, as in training; otherwise with running statistics.
    solver : str
        For (BETA).
    gradients : mapping of str to array, optional
        Check these instead of our own.

    Returns
    -------
    GradientReport

    Raises
    ------
    ValueError
        For inputs that do not fit the network.
    NotConverged
        When the equilibrium or (BETA) cannot be solved.
    """
    theta: Params = {name: np.asarray(value, np.float64) for name, value in params.items()}
    network.check_params(theta)
    inputs = network.check_input(np.asarray(x), np.float64)
    problem = _Problem(network, inputs, np.asarray(y), training, seed)
    loss, d_logits, state = problem.solve(theta)
    ours: Backward = backward(state.frozen, state, d_logits, solver=solver, tol=1e-12, max_iter=2000)
    found = {name: np.asarray((gradients or ours.gradients)[name], np.float64) for name in network.trainable}
    overall = max(float(np.max(np.abs(g))) for g in found.values())
    rng = np.random.default_rng(seed)
    rows = []
    for name in network.trainable:
        if found[name].shape != theta[name].shape:
            raise ValueError(f"gradient of {name!r} has shape {found[name].shape}; expected {theta[name].shape}")
        rows.append(_check_parameter(problem, theta, state, name, found[name], n_coordinates, step, overall, rng))
    return GradientReport(
        tuple(rows),
        tol,
        loss,
        float(np.max(ours.solution.relative)),
        float(np.max(ours.certificate)),
        float(np.max(state.residual)),
        ours.contraction,
    )


def _check_parameter(
    problem: _Problem,
    theta: Params,
    state: Equilibrium,
    name: str,
    gradient: NDArray,
    n_coordinates: int,
    step: float,
    overall: float,
    rng: np.random.Generator,
) -> GradientRow:
    size = gradient.size
    drawn = rng.choice(size, min(n_coordinates, size), replace=False)
    largest = float(np.max(np.abs(gradient)))
    floor = max(FLOOR * largest, RESOLUTION * overall)
    checked, worst, worst_error = 0, (), float("nan")
    for flat in sorted(drawn):
        where = tuple(int(i) for i in np.unravel_index(flat, gradient.shape))
        difference = _difference(problem, theta, state, name, where, step)
        if difference is None:
            continue
        checked += 1
        value = float(gradient[where])
        scale = max(abs(value), abs(difference), floor)
        error = abs(value - difference) / scale
        if not error <= worst_error:
            worst, worst_error = where, error
    return GradientRow(name, size, checked, len(drawn) - checked, worst_error, worst, largest)


def _difference(
    problem: _Problem, theta: Params, state: Equilibrium, name: str, where: tuple[int, ...], step: float
) -> float | None:
    """Fourth-order central difference along one coordinate, or None where every step crosses a kink."""
    h = step * max(0.1, abs(float(theta[name][where])))
    for _ in range(4):
        losses = []
        for offset in (-2.0, -1.0, 1.0, 2.0):
            moved = theta[name].copy()
            moved[where] += offset * h
            loss, _, there = problem.solve({**theta, name: moved}, state.a)
            if not np.array_equal(there.pieces, state.pieces):
                break
            losses.append(loss)
        if len(losses) == 4:
            far_low, low, high, far_high = losses
            return (8.0 * (high - low) - (far_high - far_low)) / (12.0 * h)
        h /= 4.0
    return None
