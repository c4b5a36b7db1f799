"""Stochastic gradient descent with momentum and weight decay.

Source: ``sgd_step`` of :mod:`ide_ref.equations`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ide_ref import _checks
from ide_ref._kernels import elementwise as _elementwise
from ide_ref.solvers import norms

_LARGE = 1 << 17
"""Numbers from which on a kernel, which reads each once, is worth its call."""

Arrays = Mapping[str, NDArray[np.floating]]


@dataclass(frozen=True)
class SGD:
    """The rule v ← μ v + (∇L + κ θ), θ ← θ - η v, with the rate η inside neither v nor κ.

    Nesterov's looks one step ahead: with g = ∇L + κ θ and the same v, θ ← θ - η (g + μ v).

    Beyond (COND) one sample whose (BETA) is nearly singular makes a gradient a hundred times as long as others. With
    `clip_norm` C, min(1, C/‖∇L‖) ∇L takes its place, ‖·‖ over all parameters together (Pascanu, Mikolov and Bengio,
    *On the difficulty of training recurrent neural networks*, ICML 2013).

    Raises
    ------
    ValueError
        `momentum`, `weight_decay` or `clip_norm` outside its range, or `nesterov` no bool.
    """

    momentum: float = 0.9
    """μ, 0 ≤ μ < 1."""
    weight_decay: float = 5e-4
    """κ ≥ 0, applied to every parameter named in the velocity."""
    nesterov: bool = False
    clip_norm: float | None = None
    """C > 0, or None to take gradients as they are."""

    def __post_init__(self) -> None:
        if not (_checks.is_real(self.momentum) and 0 <= self.momentum < 1):
            raise ValueError(f"momentum is {self.momentum!r}, expected 0 <= momentum < 1")
        if not (_checks.is_real(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay is {self.weight_decay!r}, expected a finite number >= 0")
        _checks.kind("nesterov", self.nesterov, bool)
        if self.clip_norm is not None:
            _checks.positive("clip_norm", self.clip_norm)

    def start(self, params: Arrays, trainable: Iterable[str]) -> dict[str, NDArray[np.floating]]:
        """The velocity before the first step: a zero for each number of each `trainable` array.

        ValueError for names that params does not have.
        """
        _checks.kind("params", params, Mapping)
        trainable = tuple(trainable)
        for name in trainable:
            if not _checks.is_one_of(name, params):
                raise ValueError(f"trainable has {name!r}, expected names of params: {', '.join(params)}")
        return {name: np.zeros_like(params[name]) for name in trainable}

    def step(
        self, params: Arrays, velocity: Arrays, gradients: Arrays, *, rate: float | Mapping[str, float]
    ) -> tuple[dict[str, NDArray[np.floating]], dict[str, NDArray[np.floating]]]:
        """One step; the arguments keep their values.

        Parameters
        ----------
        params : dict of arrays
            θ. Arrays that `velocity` does not name pass through unchanged.
        velocity : dict of arrays
            v; its names are the parameters to update.
        gradients : dict of arrays
            ∇L for each name of `velocity`, of the parameter's shape.
        rate : float, or dict of floats
            η, of all parameters or for each name of `velocity`.

        Returns
        -------
        params, velocity : dicts of arrays
            In the dtype of the parameters.

        Raises
        ------
        ValueError
            A gradient, a parameter or a rate is missing; a gradient or a parameter has another shape than its
            velocity, or is not of real numbers (a parameter: of float32 or float64); a rate is no finite number.
        """
        for name, mapping in (("params", params), ("velocity", velocity), ("gradients", gradients)):
            _checks.kind(name, mapping, Mapping)
        needed: dict[str, object] = {"rate": rate}
        if isinstance(rate, Mapping):
            needed = {f"rate of {name!r}": rate.get(name) for name in velocity}
        for what, value in needed.items():
            if not _checks.is_real(value):
                raise ValueError(f"{what} is {value!r}, expected a finite number")
        rates = rate if isinstance(rate, Mapping) else dict.fromkeys(velocity, rate)
        like = {name: self._like(name, v, params, gradients) for name, v in velocity.items()}
        share = 1.0
        if self.clip_norm is not None:
            share = _share(self.clip_norm, [gradient for _, gradient, _ in like.values()])
        new_params, new_velocity = dict(params), {}
        for name, (theta, gradient, v) in like.items():
            if share < 1:
                gradient = gradient * theta.dtype.type(share)
            new_params[name], new_velocity[name] = self._step(theta, gradient, v, rate=rates[name])
        return new_params, new_velocity

    @staticmethod
    def _like(name: str, v: NDArray, params: Arrays, gradients: Arrays) -> tuple[NDArray, NDArray, NDArray]:
        """Parameter, gradient and velocity of that name in the dtype of the parameter."""
        for argument, mapping in (("params", params), ("gradients", gradients)):
            if name not in mapping or np.shape(mapping[name]) != np.shape(v):
                given = f"shape {np.shape(mapping[name])}" if name in mapping else "nothing"
                raise ValueError(f"{argument} has {given} for {name!r}, expected shape {np.shape(v)}")
        arrays = {"params": params[name], "gradients": gradients[name], "velocity": v}
        arrays = {given: np.asarray(array) for given, array in arrays.items()}
        dtype = arrays["params"].dtype.newbyteorder("=")
        if dtype not in (np.float32, np.float64):
            raise ValueError(f"params has dtype {dtype} for {name!r}, expected float32 or float64")
        for given, array in arrays.items():
            if array.dtype.kind not in "fiu":
                raise ValueError(f"{given} has dtype {array.dtype} for {name!r}, expected real numbers")
        theta, gradient, v = (
            _checks.converted(f"{given} of {name!r}", array, dtype) for given, array in arrays.items()
        )
        return theta, gradient, v

    def _step(self, theta: NDArray, gradient: NDArray, v: NDArray, *, rate: float) -> tuple[NDArray, NDArray]:
        dtype = theta.dtype
        # The kernel knows momentum alone.
        if theta.size < _LARGE or self.nesterov:
            momentum, decayed = dtype.type(self.momentum), gradient + theta * dtype.type(self.weight_decay)
            v = np.asarray(v * momentum + decayed, dtype)
            change = decayed + v * momentum if self.nesterov else v
            return np.asarray(theta - change * dtype.type(rate), dtype), v
        new_theta, new_v = np.empty(theta.shape, dtype), np.empty(theta.shape, dtype)
        old, change, speed = (array.reshape(-1) for array in (theta, gradient, v))
        momentum, decay, rate = map(dtype.type, (self.momentum, self.weight_decay, rate))
        _elementwise.momentum_step(old, change, speed, momentum, decay, rate, new_theta.reshape(-1), new_v.reshape(-1))
        return new_theta, new_v


def _share(most: float, gradients: Iterable[NDArray]) -> float:
    """min(1, most/‖∇L‖); 1 where that norm is not finite, for the parameters are to tell."""
    norm = math.hypot(*(float(norms(gradient.reshape(1, -1).astype(np.float64))[0]) for gradient in gradients))
    return min(1.0, most / norm) if 0 < norm < math.inf else 1.0
