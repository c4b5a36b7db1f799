"""Is a gradient right? Checks against differences of the exact equilibrium."""

from ide_ref.verify.gradient import GradientReport, GradientRow, StepSweep, check_gradient, sweep_steps

__all__ = ["GradientReport", "GradientRow", "StepSweep", "check_gradient", "sweep_steps"]
