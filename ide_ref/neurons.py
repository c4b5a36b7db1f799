"""Integrate-and-fire neurons: the constants of (STEP), the averages of (RATE), the slope of (MASK)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ide_ref import _checks
from ide_ref._kernels import elementwise as _elementwise
from ide_ref._kernels import memory

MaskRule = Literal["closed", "open", "half"]


def _check_rule(rule: str) -> None:
    if not _checks.is_one_of(rule, ("closed", "open", "half")):
        raise ValueError(f"mask rule {rule!r} is unknown; expected 'closed', 'open' or 'half'")


@dataclass(frozen=True)
class Neuron:
    """A discrete integrate-and-fire neuron.

    Parameters
    ----------
    leak : float
        λ of (STEP), in (0, 1]. λ = 1 is IF.
    v_th : float
        Threshold V_th > 0, in the unit of the potential.
    """

    leak: float
    v_th: float = 2.0

    def __post_init__(self) -> None:
        if not (_checks.is_real(self.leak) and 0.0 < self.leak <= 1.0):
            raise ValueError(f"leak is {self.leak!r}; expected a number in (0, 1], where 1 is IF")
        if not (_checks.is_real(self.v_th) and self.v_th > 0.0):
            raise ValueError(f"v_th is {self.v_th!r}; expected a positive, finite threshold")

    @property
    def name(self) -> str:
        """``"if"`` or ``"lif"``."""
        return "if" if self.leak == 1.0 else "lif"

    def describe(self) -> str:
        """Name and constants, for people."""
        return f"{self.name.upper()} (leak {self.leak:g}, V_th {self.v_th:g})"

    def total_weight(self, t: int) -> float:
        """S_t = Σ_{i<t} λ^i of (RATE), the weight of t steps together."""
        if self.leak == 1.0:
            return float(t)
        # λ − 1 is exact from 1/2 on; below, where it rounds, nothing cancels.
        return math.expm1(t * math.log(self.leak)) / (self.leak - 1.0)

    def time_average(self, x: NDArray) -> NDArray:
        """Weighted average over time of (RATE).

        Parameters
        ----------
        x : (B, T, ...) array
            A train, time on axis 1; step τ has weight λ^(T-1-τ).

        Returns
        -------
        (B, ...) array of x's floating dtype.

        Raises
        ------
        ValueError
            For a train without steps.
        """
        if x.ndim < 2 or x.shape[1] == 0:
            raise ValueError(f"x has shape {x.shape}; expected (batch, steps, ...) with at least one step")
        n_steps = x.shape[1]
        weights = self.leak ** np.arange(n_steps)[::-1] / self.total_weight(n_steps)
        dtype = x.dtype if np.issubdtype(x.dtype, np.floating) else np.dtype(np.float64)
        return np.einsum("bt...,t->b...", x, weights.astype(dtype))

    def sigma(self, p: NDArray) -> NDArray:
        """σ(p / V_th) of (FP), of p's shape: the equilibrium rate of a neuron whose total drive is p."""
        return np.clip(p / p.dtype.type(self.v_th), 0.0, 1.0)

    def mask(self, p: NDArray, rule: MaskRule = "closed") -> NDArray[np.bool_]:
        """m of (MASK), of p's shape: where p / V_th lies on σ's slope.

        ``closed`` counts both ends, ``open`` neither, ``half`` the upper end alone (the slides' H, with
        H(0) = 0).
        """
        _check_rule(rule)
        above = p >= 0.0 if rule == "closed" else p > 0.0
        return above & (p < self.v_th if rule == "open" else p <= self.v_th)

    def slope(self, p: NDArray, rule: MaskRule = "closed") -> NDArray:
        """M / V_th: σ's slope at p (B, n), 1/V_th where :meth:`mask` is and 0 elsewhere."""
        _check_rule(rule)
        out = memory.empty(p.shape, p.dtype)
        v_th = p.dtype.type(self.v_th)
        flat = np.ascontiguousarray(p).ravel()
        _elementwise.slope(flat, rule == "closed", rule != "open", v_th, 1 / v_th, out.ravel())
        return out


def IF(v_th: float = 2.0) -> Neuron:
    """The integrate-and-fire neuron: λ = 1, rates are plain averages.

    Parameters
    ----------
    v_th : float
        Threshold V_th > 0, in the unit of the potential.
    """
    return Neuron(leak=1.0, v_th=v_th)


def LIF(leak: float = 0.95, v_th: float = 2.0) -> Neuron:
    """The leaky integrate-and-fire neuron: 0 < λ < 1, rates are exponentially weighted averages.

    Parameters
    ----------
    leak : float
        λ of (STEP), in (0, 1).
    v_th : float
        Threshold V_th > 0, in the unit of the potential.

    Raises
    ------
    ValueError
        For numbers out of these ranges.
    """
    if not (_checks.is_real(leak) and 0.0 < leak < 1.0):
        raise ValueError(f"leak is {leak!r}; expected a number in (0, 1) for LIF (use IF() for 1)")
    return Neuron(leak=leak, v_th=v_th)
