"""Is a gradient right, and if not: how wrong, where, and because of what?"""

from ide_ref.verify.gradient import GradientReport, GradientRow, StepSweep, check_gradient, sweep_steps
from ide_ref.verify.solvers import SolverReport, SolverRow, cross_examine

__all__ = [
    "GradientReport",
    "GradientRow",
    "SolverReport",
    "SolverRow",
    "StepSweep",
    "check_gradient",
    "cross_examine",
    "sweep_steps",
]
