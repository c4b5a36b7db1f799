"""Is a gradient right? Checks against differences of the exact equilibrium."""

from ide_ref.verify.gradient import GradientReport, GradientRow, check_gradient

__all__ = ["GradientReport", "GradientRow", "check_gradient"]
