"""Networks and inputs on which the theorems' hypotheses hold, and their dense block matrices."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ide_ref import IF, LIF, Connection, Dense, Frozen, Network, Neuron, Population, Readout, freeze

TIGHTNESS: dict[tuple[str, str, str], list[float]] = {}
"""Median error over bound of each drawn run: by time, shape of the network and neuron."""


def note_tightness(time: str, frozen: Frozen, tightness: float, *, leaky: bool) -> None:
    """For the report at the end of the tests."""
    net = frozen.network
    n = len(net.populations)
    layers = {(t - 1, t) for t in range(n)} | {(n - 1, 0)}
    shape = "single" if n == 1 else "layers" if sorted(net.edges) == sorted(layers) else "graph"
    TIGHTNESS.setdefault((time, shape, "LIF" if leaky else "IF"), []).append(tightness)


def longest() -> int:
    """Most steps of a run: the thorough profile looks at long ones."""
    return 2000 if settings.default.max_examples > 100 else 150


@dataclass(frozen=True)
class System:
    """Dense populations with one block matrix: B = forward + feedback, (n, n); drive = F x + b."""

    frozen: Frozen
    forward: NDArray
    feedback: NDArray
    F: NDArray
    b: NDArray
    x: NDArray
    x_star: NDArray
    n_steps: int

    def _repr_pretty_(self, printer, cycle) -> None:
        net = self.frozen.network
        sizes = [p.size for p in net.populations]
        printer.text(f"{net.neuron}, {sizes}, {net.edges}, T={self.n_steps}, x{self.x.shape}")

    @property
    def neuron(self) -> Neuron:
        return self.frozen.network.neuron

    @property
    def v_th(self) -> float:
        return self.neuron.v_th

    @property
    def places(self) -> list[slice]:
        net = self.frozen.network
        return [net.slice_of(i) for i in range(len(net.populations))]

    def inputs(self) -> NDArray:
        """(B, T, n_in) of every step."""
        return self.x if self.x.ndim == 3 else np.repeat(self.x[:, None], self.n_steps, axis=1)

    def norms(self) -> tuple[NDArray, NDArray]:
        """L and U: block by block norms over V_th."""
        return tuple(
            np.array([[np.linalg.norm(B[to, at], 2) for at in self.places] for to in self.places]) / self.v_th
            for B in (self.forward, self.feedback)
        )

    def sweep(self, a: NDArray, d: NDArray, sigma: str = "clip") -> NDArray:
        """New rates (B, n) of one pass through the populations with drive d."""
        p, new = d.copy(), np.zeros_like(a)
        for to in self.places:
            p[:, to] += new @ self.forward[to].T + a @ self.feedback[to].T
            new[:, to] = np.clip(p[:, to], 0, self.v_th if sigma == "clip" else np.inf) / self.v_th
        return new

    def equilibrium(self, sigma: str = "clip") -> NDArray:
        """a* by iterating the block matrix, (B, n)."""
        d = self.x_star @ self.F.T + self.b
        a, before = np.zeros_like(d), np.full_like(d, np.inf)
        for _ in range(20000):
            if np.abs(a - before).max() < 1e-15:
                break
            a, before = self.sweep(a, d, sigma), a
        return a


def dense_network(neuron: Neuron, sizes: Sequence[int], ends: Sequence[tuple[int, int]], *, n_in: int = 1) -> Network:
    """Dense populations a1, a2, .. with connections c0, c1, .. from ends to ends, -1 the input; biases forward."""
    shapes = {-1: (n_in,), **{i: (size,) for i, size in enumerate(sizes)}}
    names = {-1: "input", **{i: f"a{i + 1}" for i in range(len(sizes))}}
    last = len(sizes) - 1
    return Network(
        (n_in,),
        tuple(Population(names[i], shapes[i]) for i in range(len(sizes))),
        tuple(
            Connection(f"c{i}", names[s], names[t], Dense(shapes[s], shapes[t]), bias=s < t)
            for i, (s, t) in enumerate(ends)
        ),
        Readout(names[last], Dense(shapes[last], (2,))),
        neuron,
    )


def system_of(
    neuron: Neuron,
    sizes: list[int],
    ends: list[tuple[int, int]],
    rng: np.random.Generator,
    gamma: float,
    kind: str = "constant",
    n_steps: int = 100,
    n_batch: int = 2,
    drive: float = 1.0,
) -> System:
    """Random Dense populations; feedback scaled so that the spectral radius of the norms' sweep is γ."""
    net = dense_network(neuron, sizes, ends, n_in=3)
    params = net.init(rng)
    for i, (s, t) in enumerate(ends):
        shape = params[f"c{i}.weight"].shape
        params[f"c{i}.weight"] = rng.normal(0, (drive if s < 0 else 1.0) * neuron.v_th / np.sqrt(shape[1]), shape)
        if s < t:
            params[f"c{i}.bias"] = rng.normal(0.2, 0.3, shape[0]) * drive * neuron.v_th

    # Sums of norms, as parallel connections are counted.
    L, U = np.zeros((2, len(sizes), len(sizes)))
    for i, (s, t) in enumerate(ends):
        if s >= 0:
            (L if s < t else U)[t, s] += np.linalg.norm(params[f"c{i}.weight"], 2) / neuron.v_th
    radius = np.abs(np.linalg.eigvals(np.linalg.solve(np.eye(len(sizes)) - L, U))).max()
    for i, (s, t) in enumerate(ends):
        if s >= t:
            params[f"c{i}.weight"] = params[f"c{i}.weight"] * (gamma / radius)
    ends_at = np.cumsum([0, *sizes])
    place = [slice(a, b) for a, b in itertools.pairwise(ends_at)]
    forward, feedback = np.zeros((2, ends_at[-1], ends_at[-1]))
    F, b = np.zeros((ends_at[-1], 3)), np.zeros(ends_at[-1])
    for i, (s, t) in enumerate(ends):
        into, columns = (F, slice(None)) if s < 0 else (forward if s < t else feedback, place[s])
        into[place[t], columns] += params[f"c{i}.weight"]
        if s < t:
            b[place[t]] += params[f"c{i}.bias"]

    x_star = rng.normal(0.5, 1, (n_batch, 3))
    t = np.arange(n_steps)[None, :, None]
    around = {
        "constant": None,
        "periodic": np.sin(2 * np.pi * t / rng.integers(2, 9)) * rng.normal(size=(n_batch, 1, 3)),
        "decaying": 0.8**t * rng.normal(size=(n_batch, 1, 3)),
        "random": rng.uniform(-1, 1, (n_batch, n_steps, 3)),
    }[kind]
    x = x_star if around is None else x_star[:, None] + around
    for array in (x, x_star, *params.values()):
        array.flags.writeable = False
    return System(freeze(net, params), forward, feedback, F, b, x, x_star, n_steps)


def ends_of(draw: st.DrawFn, shape: str, n: int) -> list[tuple[int, int]]:
    """Connections of a single layer, of (LAYERS), or of a graph with several feedback paths and skips."""
    ends = [(t - 1, t) for t in range(n)]
    if shape != "graph":
        return [*ends, (n - 1, 0)]
    ends += draw(st.lists(st.sampled_from([(s, t) for t in range(n) for s in range(-1, t)]), max_size=2))
    feedback = [(s, t) for t in range(n) for s in range(t, n)]
    return ends + draw(st.lists(st.sampled_from(feedback), min_size=1, max_size=3))


@st.composite
def systems(draw, *, shape: str | None = None, leak: float | None = None, constant: bool = False) -> System:
    """A network with γ drawn below 1, and an input that converges to x*."""
    shape = shape or draw(st.sampled_from(["single", "layers", "graph"]))
    n = 1 if shape == "single" else draw(st.integers(2, 4))
    sizes = draw(st.lists(st.integers(1, 7), min_size=n, max_size=n))
    if leak is None:
        leak = draw(st.sampled_from([1.0, 0.5, 0.9, 0.99]))
    v_th = draw(st.sampled_from([1.0, 2.0, 0.7]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return system_of(
        IF(v_th) if leak == 1.0 else LIF(leak, v_th),
        sizes,
        ends_of(draw, shape, n),
        rng,
        draw(st.floats(0.02, 0.99)),
        "constant" if constant else draw(st.sampled_from(["constant", "periodic", "decaying", "random"])),
        draw(st.integers(1, longest())),
        drive=draw(st.sampled_from([0.3, 1.0, 3.0])),
    )
