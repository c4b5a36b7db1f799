"""Is a gradient right, and if not: how wrong, where, and because of what?"""

from ide_ref.verify.budget import Budget, Part, explain_gradient, explain_over_time, table_over_time
from ide_ref.verify.compare import MISTAKES, Comparison, Context, Mistake, compare
from ide_ref.verify.conformance import ConformanceReport, Divergence, run_port
from ide_ref.verify.fixed_point import FixedPointReport, NoFixedPoint, Remainders, check_fixed_point
from ide_ref.verify.gradient import GradientReport, GradientRow, StepSweep, check_gradient, sweep_steps
from ide_ref.verify.solvers import SolverReport, SolverRow, cross_examine

__all__ = [
    "MISTAKES",
    "Budget",
    "Comparison",
    "ConformanceReport",
    "Context",
    "Divergence",
    "FixedPointReport",
    "GradientReport",
    "GradientRow",
    "Mistake",
    "NoFixedPoint",
    "Part",
    "Remainders",
    "SolverReport",
    "SolverRow",
    "StepSweep",
    "check_fixed_point",
    "check_gradient",
    "compare",
    "cross_examine",
    "explain_gradient",
    "explain_over_time",
    "run_port",
    "sweep_steps",
    "table_over_time",
]
