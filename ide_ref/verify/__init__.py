"""Is a gradient right, and if not: how wrong, where, and because of what?

Source: ``docs/check-your-gradient.md`` and ``docs/trust.md``.
"""

from ide_ref.verify.budget import Budget, Part, explain_gradient, explain_over_time, table_over_time
from ide_ref.verify.compare import MISTAKES, Comparison, Context, Mistake, compare
from ide_ref.verify.conformance import ConformanceReport, Divergence, run_port
from ide_ref.verify.fixed_point import FixedPointReport, NoFixedPoint, Remainders, check_fixed_point
from ide_ref.verify.gradient import GradientReport, GradientRow, StepSweep, check_gradient, sweep_steps
from ide_ref.verify.solvers import SolverReport, SolverRow, cross_examine

__all__ = ["Budget", "Part", "explain_gradient", "explain_over_time", "table_over_time"]
__all__ += ["MISTAKES", "Comparison", "Context", "Mistake", "compare"]
__all__ += ["ConformanceReport", "Divergence", "run_port"]
__all__ += ["FixedPointReport", "NoFixedPoint", "Remainders", "check_fixed_point"]
__all__ += ["GradientReport", "GradientRow", "StepSweep", "check_gradient", "sweep_steps"]
__all__ += ["SolverReport", "SolverRow", "cross_examine"]
