"""Random fixed points of the field's usual layers, with their gradients by hand from a dense solve."""

from dataclasses import dataclass
from typing import Any

import numpy as np

ACTIVATIONS = {
    "tanh": (np.tanh, lambda p: 1 - np.tanh(p) ** 2),
    "softplus": (lambda p: np.logaddexp(0, p), lambda p: 0.5 * (1 + np.tanh(p / 2))),
    "relu": (lambda p: np.maximum(p, 0), lambda p: (p > 0).astype(p.dtype)),
    "clip": (lambda p: np.clip(p, 0, 1), lambda p: ((p >= 0) & (p <= 1)).astype(p.dtype)),
}
KINDS = (*ACTIVATIONS, "gru")


@dataclass
class Layer:
    """Arguments of `check_fixed_point`."""

    f: Any
    z: Any
    theta: dict[str, Any]
    x: Any
    gradient: dict[str, Any]
    cotangent: Any

    def check(self, **options):
        from ide_ref.verify import check_fixed_point

        return check_fixed_point(self.f, self.z, self.theta, self.x, self.gradient, cotangent=self.cotangent, **options)


def drawn(kind, rng, *, convolution=False, dtype=np.float64, n=None, n_batch=None, gamma=None):
    """A layer of that kind, of random size, contraction and batch."""
    n = int(rng.integers(1, 16)) if n is None else n
    n_batch = int(rng.integers(1, 5)) if n_batch is None else n_batch
    n_in = int(rng.integers(1, 6))
    gamma = rng.choice([0.1, 0.5, 0.9, 0.98]) if gamma is None else gamma
    # A circular convolution along the neurons: its matrix is a sum of shifts.
    taps = [np.roll(np.eye(n), k, axis=0) for k in range(min(3, n))] if convolution else None

    def matrix(w):
        return sum(a * shift for a, shift in zip(w, taps, strict=True)) if convolution else w

    def weight():
        w = rng.standard_normal(len(taps)) if convolution else rng.standard_normal((n, n))
        return w * gamma / np.linalg.norm(matrix(w), 2)

    theta = {"W": weight(), "F": rng.standard_normal((n, n_in)), "b": rng.standard_normal(n)}
    x, c = rng.standard_normal((n_batch, n_in)), rng.standard_normal((n_batch, n))
    gate = rng.standard_normal((n, n_in))

    def pre_activation(z, x, theta):
        return z @ matrix(theta["W"]).T + x @ theta["F"].T + theta["b"]

    def mixed(x):
        return 0.2 + 0.8 / (1 + np.exp(-x @ gate.T))

    s, slope = ACTIVATIONS["tanh" if kind == "gru" else kind]

    def f(z, x, theta):
        h = s(pre_activation(z, x, theta))
        return (1 - mixed(x)) * z + mixed(x) * h if kind == "gru" else h

    z = np.zeros_like(c)
    for _ in range(5000):
        after = f(z, x, theta)
        if np.array_equal(after, z):
            break
        z = after
    m = slope(pre_activation(z, x, theta))
    u = mixed(x) if kind == "gru" else np.ones_like(z)
    W = matrix(theta["W"])
    systems = [np.eye(n) - np.diag(1 - ui) - np.diag(ui * mi) @ W for ui, mi in zip(u, m, strict=True)]
    beta = np.stack([np.linalg.solve(system.T, ci) for system, ci in zip(systems, c, strict=True)])
    delta = u * m * beta
    outer = delta.T @ z
    d_weight = np.array([np.vdot(shift, outer) for shift in taps]) if convolution else outer
    gradient = {"W": d_weight, "F": delta.T @ x, "b": delta.sum(0)}
    cast = {name: value.astype(dtype) for name, value in theta.items()}
    return Layer(
        f, z.astype(dtype), cast, x.astype(dtype), {k: g.astype(dtype) for k, g in gradient.items()}, c.astype(dtype)
    )


def spoilt(layer, rng, error):
    """The layer with one array of its gradient off by so much of its norm, in a random direction."""
    name = rng.choice([name for name, g in layer.gradient.items() if np.any(g)])
    g = layer.gradient[name]
    off = rng.standard_normal(g.shape)
    layer.gradient[name] = (g + error * np.linalg.norm(g) / np.linalg.norm(off) * off).astype(g.dtype)
    return layer
