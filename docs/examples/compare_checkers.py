"""What three gradient checkers say of right and wrong gradients through z = s(W z + F x + b), each at its defaults.

    python compare_checkers.py [seeds]

needs PyTorch and JAX beside ide_ref. The layer and its backward pass are by hand, in NumPy; the checkers get them as a
function of their own library. ``found``: a fault was reported. ``accused``: a right gradient was called wrong.
"""

import sys
from collections import Counter

import jax
import numpy as np
import torch
from jax.test_util import check_grads

from ide_ref.verify import check_fixed_point

jax.config.update("jax_enable_x64", True)
N, N_IN, N_BATCH = 6, 3, 4
SLOPES = {
    "tanh": (np.tanh, lambda p: 1 - np.tanh(p) ** 2),
    "relu": (lambda p: np.maximum(p, 0), lambda p: (p > 0).astype(float)),
}


class Layer:
    """A drawn layer, its solver and its backward pass, with a fault on request."""

    def __init__(self, kind, seed, fault):
        rng = np.random.default_rng(seed)
        self.s, self.slope = SLOPES[kind]
        W = rng.standard_normal((N, N))
        self.theta = {
            "W": 0.8 * W / np.linalg.norm(W, 2), "F": rng.standard_normal((N, N_IN)), "b": rng.standard_normal(N),
        }  # fmt: skip
        self.x, self.c = rng.standard_normal((N_BATCH, N_IN)), rng.standard_normal((N_BATCH, N))
        self.noise = rng.standard_normal((N, N))
        self.fault = fault

    def f(self, z, x, theta):
        return self.s(z @ theta["W"].T + x @ theta["F"].T + theta["b"])

    def solve(self, theta):
        """z*, to 1e-6 only where that is the matter: what most equilibrium layers are solved to."""
        z = np.zeros((N_BATCH, N))
        for _ in range(1000):
            after = self.f(z, self.x, theta)
            if np.linalg.norm(after - z) <= (1e-6 if self.fault == "none, solved to 1e-6" else 0):
                break
            z = after
        return z

    def backward(self, theta, z, c):
        W, fault = theta["W"], self.fault
        m = self.slope(z @ W.T + self.x @ theta["F"].T + theta["b"])
        A = W.T if fault == "W in place of its transpose" else W
        inner = np.ones_like(m) if fault == "beta without the mask" else m
        systems = [np.eye(N) - np.diag(row) @ A for row in inner]
        beta = np.stack([np.linalg.solve(system.T, row) for system, row in zip(systems, c, strict=True)])
        if fault == "one step, beta = c":
            beta = c
        if fault.startswith("beta after"):
            beta = c
            for _ in range(int(fault.split()[2])):
                beta = (m * beta) @ W + c
        if fault == "half of beta":
            beta = beta / 2
        delta = beta if fault == "outer product without the mask" else m * beta
        gradient = {"W": delta.T @ z, "F": delta.T @ self.x, "b": delta.sum(0)}
        if fault == "transposed":
            gradient["W"] = gradient["W"].T
        if fault == "mean over the batch":
            gradient = {name: g / N_BATCH for name, g in gradient.items()}
        if fault == "rates one sweep old":
            gradient["W"] = delta.T @ (z + 1e-3 * np.abs(z).max() * self.noise[:N_BATCH])
        if fault.startswith("off by"):
            off = self.noise * np.linalg.norm(gradient["W"]) / np.linalg.norm(self.noise)
            gradient["W"] = gradient["W"] + float(fault.split()[2]) * off
        return gradient


def by_remainders(layer):
    z = layer.solve(layer.theta)
    report = check_fixed_point(
        layer.f, z, layer.theta, layer.x, layer.backward(layer.theta, z, layer.c), cotangent=layer.c
    )
    return report.verdict


def by_torch(layer):
    class Solve(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *arrays):
            theta = dict(zip(layer.theta, (a.detach().numpy() for a in arrays), strict=True))
            ctx.kept = theta, layer.solve(theta)
            return torch.from_numpy(ctx.kept[1].copy())

        @staticmethod
        def backward(ctx, c):
            return tuple(torch.from_numpy(g.copy()) for g in layer.backward(*ctx.kept, c.numpy()).values())

    arrays = [torch.from_numpy(value.copy()).requires_grad_() for value in layer.theta.values()]
    return "right" if torch.autograd.gradcheck(Solve.apply, arrays, raise_exception=False) else "wrong"


def by_jax(layer):
    shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in layer.theta.items()}

    def on_host(function, shape, *arguments):
        return jax.pure_callback(lambda *a: function(*jax.tree.map(np.asarray, a)), shape, *arguments)

    @jax.custom_vjp
    def solve(theta):
        return on_host(layer.solve, jax.ShapeDtypeStruct(layer.c.shape, layer.c.dtype), theta)

    def forward(theta):
        z = solve(theta)
        return z, (theta, z)

    def backward(kept, c):
        return (on_host(lambda theta, z, c: layer.backward(theta, z, c), shapes, *kept, c),)

    solve.defvjp(forward, backward)
    theta = {name: jax.numpy.asarray(value) for name, value in layer.theta.items()}
    try:
        check_grads(solve, (theta,), order=1, modes=["rev"])
    except AssertionError:
        return "wrong"
    return "right"


FAULTS = (
    "none", "none, solved to 1e-6", "half of beta", "one step, beta = c", "beta after 3 products",
    "beta after 20 products", "W in place of its transpose", "beta without the mask", "outer product without the mask",
    "transposed", "mean over the batch", "rates one sweep old", "off by 1e-2", "off by 1e-3", "off by 1e-4",
)  # fmt: skip
CHECKERS = {"check_fixed_point": by_remainders, "torch gradcheck": by_torch, "jax check_grads": by_jax}


def main(n_seeds):
    for kind in SLOPES:
        print(f"| {kind} | " + " | ".join(CHECKERS) + " |\n|---|" + "---|" * len(CHECKERS))
        for fault in FAULTS:
            cells = []
            for check in CHECKERS.values():
                counts = Counter(check(Layer(kind, seed, fault)) for seed in range(n_seeds))
                cells.append(", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items())))
            print(f"| {fault} | " + " | ".join(cells) + " |", flush=True)
        print()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
