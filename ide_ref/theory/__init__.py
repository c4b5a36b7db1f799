"""The theorems as functions: u⁺, the one-step bound (ERR) along a run, its sums and limits, the conditions.

Nothing is a scalar here that a graph makes a vector: E[t] is the vector of ‖a_l[t] − a*_l‖₂, one entry per
population. With L and U the non-negative matrices of ‖W_lk‖₂/V_th of forward and of feedback connections and
r[t] the vector of what disturbs each population,

    E[t+1] ≤ L E[t+1] + U E[t] + r[t]/V_th,   hence   E[t+1] ≤ G E[t] + (I − L)⁻¹ r[t]/V_th,   G = (I − L)⁻¹ U,

entry by entry. For one population this is (ERR) with G = γ. ``docs/derivations.md`` has the proofs.
"""

from ide_ref.theory.condition import Conditions, OperatorNorm, block_matrix, conditions, operator_norm, verdict
from ide_ref.theory.continuous import ContinuousBound, continuous_envelope, continuous_error_bound
from ide_ref.theory.discrete import ErrorBound, Split, error_bound, fixed_point_residual, if_envelope, lif_floor, split

__all__ = [
    "Conditions",
    "ContinuousBound",
    "ErrorBound",
    "OperatorNorm",
    "Split",
    "block_matrix",
    "conditions",
    "continuous_envelope",
    "continuous_error_bound",
    "error_bound",
    "fixed_point_residual",
    "if_envelope",
    "lif_floor",
    "operator_norm",
    "split",
    "verdict",
]
