"""Spikes per second in continuous time.

Source: what is timed in ``docs/performance.md``.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ide_ref.continuous import simulate_continuous
from ide_ref.maps import freeze
from ide_ref.neurons import IF
from ide_ref.structure import build

CONTINUOUS = ((400, False), (12_544, True))
"""Sizes of fashion-mnist-400 and of mnist-64c5, and whether the feedback is a convolution."""


@dataclass(frozen=True)
class ContinuousTiming:
    """Event-driven runs of one network."""

    structure: str
    n_neurons: int
    tau: float
    """τ_m; infinite for IF."""
    delay: float
    """Δ."""
    seed: int
    """Of weights and input."""
    t_end: float
    """Simulated time."""
    n_spikes: int
    """Of one run."""
    n_deliveries: int
    """Receivers reached by them."""
    seconds: float
    """Of a whole call, the median; then its extremes."""
    fastest: float
    slowest: float

    @property
    def spikes_per_second(self) -> float:
        """Median."""
        return self.n_spikes / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """All fields and the rate, fit for JSON."""
        return {**asdict(self), "spikes_per_second": self.spikes_per_second}


def continuous_speed(
    n_neurons: int,
    *,
    convolution: bool = False,
    tau: float = np.inf,
    delay: float = 1.0,
    n_spikes: int = 100_000,
    repeats: int = 10,
    seed: int = 0,
) -> ContinuousTiming:
    """Time ``simulate_continuous`` on a freshly drawn network with feedback, kernels compiled.

    ValueError for a convolution whose number of neurons is not 64 times a square.

    Parameters
    ----------
    n_neurons : int
        n (Fn) over 784 inputs, or 64C5s (F64C5) over an image twice as wide as its map, 64 neurons a pixel.
    convolution : bool
        Which of both.
    tau, delay : float
        τ_m, infinite for IF, and Δ.
    n_spikes : int
        About how many in a run.
    repeats : int
        Runs counted; one more comes before.
    """
    width = round((n_neurons / 64) ** 0.5)
    if convolution and n_neurons != 64 * width**2:
        raise ValueError(f"n_neurons is {n_neurons}; expected 64 times a square for 64C5s (F64C5)")
    structure = "64C5s (F64C5)" if convolution else f"{n_neurons} (F{n_neurons})"
    shape = (1, 2 * width, 2 * width) if convolution else (784,)
    network = build(structure, input_shape=shape, n_classes=10, neuron=IF())
    rng = np.random.default_rng(seed)
    frozen = freeze(network, network.init(rng))
    x = rng.standard_normal(shape)
    # The first run finds out how long so many spikes take; no time is asked for that it could reach.
    found = simulate_continuous(frozen, x, np.array([1e9]), tau=tau, delay=delay, max_events=n_spikes)
    times = np.array([found.t_end])
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        found = simulate_continuous(frozen, x, times, tau=tau, delay=delay, max_events=2 * n_spikes)
        seconds.append(time.perf_counter() - began)
    return ContinuousTiming(
        structure=structure,
        n_neurons=n_neurons,
        tau=tau,
        delay=delay,
        seed=seed,
        t_end=found.t_end,
        n_spikes=len(found.spike_times),
        n_deliveries=found.n_deliveries,
        seconds=float(np.median(seconds)),
        fastest=min(seconds),
        slowest=max(seconds),
    )


def continuous_table(timings: list[ContinuousTiming]) -> str:
    """Timings as text."""
    lines = [
        f"{'structure':<16}{'neurons':>8}{'tau':>7}{'time':>9}{'spikes':>9}{'spikes/s':>10}{'slowest':>10}{'fastest':>10}"
        f"{'receivers/s':>13}"
    ]
    for t in timings:
        lines.append(
            f"{t.structure:<16}{t.n_neurons:>8,}{t.tau:>7.3g}{t.t_end:>9.4g}{t.n_spikes:>9,}"
            f"{t.spikes_per_second:>10.3g}{t.n_spikes / t.slowest:>10.3g}{t.n_spikes / t.fastest:>10.3g}"
            f"{t.n_deliveries / t.seconds:>13.3g}"
        )
    return "\n".join(lines)
