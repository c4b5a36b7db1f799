"""Spikes of a network by population, the synaptic operations they cause, and an estimate of their energy.

Source: ``docs/backpropagation-through-time.md``; energies by Horowitz (2014), see `ACCUMULATE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ide_ref import _checks
from ide_ref.datasets import Dataset
from ide_ref.maps import freeze
from ide_ref.presets import Preset
from ide_ref.simulation import simulate
from ide_ref.synapses import Synapse, to_channels_last
from ide_ref.training.evaluation import load_batch

ACCUMULATE, MULTIPLY_ACCUMULATE = 0.9, 4.6
"""Picojoules of an addition, and of a multiplication with an addition, of 32-bit floats in 45 nm: Horowitz (2014),
"Computing's energy problem (and what we can do about it)"."""

ROOM = 1 << 26
"""Spikes that are recorded at a time, in bytes."""


@dataclass(frozen=True)
class Activity:
    """What happens per sample, the mean over a split.

    A spike costs one addition at each neuron that it reaches. What is not a spike is multiplied: a static input, once,
    for its drive is constant; the readout's rates, once; and, of LIF, the leak of every neuron at every step.
    """

    preset: str
    neuron: str
    method: str
    n_steps: int
    n_samples: int
    firing_rates: dict[str, float]
    """Spikes per neuron and step of each population."""
    firing_rate: float
    """Of all neurons together."""
    operations: dict[str, float]
    """Synaptic operations per sample of each connection whose source spikes, additions: spikes times the receivers of
    the very neurons that fired. Feedback does not carry the last step's."""
    multiplications: dict[str, float]
    """Multiply-adds per sample of a static input's connections, and of the readout."""
    neuron_updates: float
    """Neurons times steps: an addition each of IF, a multiply-add of LIF."""
    leaky_updates: float
    """Those of LIF."""
    dense_multiplications: float
    """Multiply-adds of one pass through all connections with dense products: of an artificial network of this shape."""

    @property
    def energy(self) -> dict[str, float]:
        """Picojoules per sample: of synapses, of neurons, and of the dense pass."""
        synapses = ACCUMULATE * sum(self.operations.values()) + MULTIPLY_ACCUMULATE * sum(self.multiplications.values())
        additions = self.neuron_updates - self.leaky_updates
        neurons = ACCUMULATE * additions + MULTIPLY_ACCUMULATE * self.leaky_updates
        return {"synapses": synapses, "neurons": neurons, "dense": MULTIPLY_ACCUMULATE * self.dense_multiplications}

    def to_dict(self) -> dict[str, Any]:
        """All fields and the energy, fit for JSON."""
        return {**asdict(self), "energy": self.energy}

    def table(self) -> str:
        """As text."""
        synapses, neurons, dense = (f"{self.energy[of] / 1e6:.3f} uJ" for of in ("synapses", "neurons", "dense"))
        counts = [(name, count, "additions") for name, count in self.operations.items()]
        counts += [(name, count, "multiply-adds") for name, count in self.multiplications.items()]
        counts += [
            ("neurons", self.neuron_updates, "updates"),
            ("dense pass", self.dense_multiplications, "multiply-adds"),
        ]
        lines = [
            f"{self.preset} ({self.neuron.upper()}, gradient by {self.method}), T = {self.n_steps}, "
            f"{self.n_samples:,} samples; spikes per neuron and step",
            *(f"  {name:<8} {rate:.4f}" for name, rate in [*self.firing_rates.items(), ("total", self.firing_rate)]),
            "per sample, in millions",
            *(f"  {name:<12} {count / 1e6:>10.3f} {what}" for name, count, what in counts),
            f"energy in 45 nm: {synapses} of synapses, {neurons} of neurons; {dense} of the dense pass",
        ]
        return "\n".join(lines)


def receivers(synapse: Synapse) -> NDArray[np.int64]:
    """(n_in,) how many neurons each sending neuron reaches, channels last."""
    c_in, c_out = synapse.channels
    return np.repeat((synapse.targets >= 0).sum(axis=1), c_in) * (1 if synapse.depthwise else c_out)


def measure_activity(
    preset: Preset, params: Mapping[str, NDArray[np.floating]], data: Dataset, *, split: str = "test"
) -> Activity:
    """Simulate a split in evaluation mode and count.

    Raises
    ------
    ValueError
        Data that do not fit.
    """
    _checks.kind("preset", preset, Preset)
    _checks.kind("data", data, Dataset)
    if not _checks.is_one_of(split, ("train", "test")):
        raise ValueError(f"split is {split!r}; expected 'train' or 'test'")
    net, n_steps = preset.network, preset.recipe.n_steps
    n_samples = len(data.y_train if split == "train" else data.y_test)
    frozen = freeze(net, params)
    batch_size = max(1, min(512, ROOM // (n_steps * net.state_size)))
    # Spikes of every neuron in all steps, and in all but the last; events of the input.
    spikes, before_last = np.zeros((2, net.state_size), np.int64)
    events = np.zeros(int(np.prod(net.input_shape)), np.int64)
    for first in range(0, n_samples, batch_size):
        x, _ = load_batch(preset, data, split, np.arange(first, min(first + batch_size, n_samples)))
        s = simulate(frozen, x, n_steps, record=True).recording.s  # type: ignore[union-attr]  # as asked for
        spikes += s.sum(axis=(0, 1), dtype=np.int64)
        before_last += s[:, :-1].sum(axis=(0, 1), dtype=np.int64)
        if net.is_spike_input(x):
            events += to_channels_last(np.count_nonzero(x, axis=(0, 1))[None], net.input_shape)[0]
    is_spike_input = preset.recipe.input == "spikes"
    operations: dict[str, float] = {}
    multiplications: dict[str, float] = {}
    for c, (source, target) in zip(net.connections, net.edges, strict=True):
        if source < 0 and not is_spike_input:
            multiplications[c.name] = float(c.synapse.n_multiplications)
            continue
        sent = events if source < 0 else (spikes if source < target else before_last)[net.slice_of(source)]
        operations[c.name] = float(sent @ receivers(c.synapse)) / n_samples
    multiplications["readout"] = float(net.readout.synapse.n_multiplications)
    return Activity(
        preset.name,
        preset.neuron.name,
        preset.recipe.method,
        n_steps,
        n_samples,
        {p.name: float(spikes[net.slice_of(p.name)].sum()) / (n_samples * p.size * n_steps) for p in net.populations},
        float(spikes.sum()) / (n_samples * net.state_size * n_steps),
        operations,
        multiplications,
        float(net.state_size * n_steps),
        float(n_steps * sum(p.size for p, of in zip(net.populations, net.neurons, strict=True) if of.leak < 1)),
        float(net.n_multiplications + net.readout.synapse.n_multiplications),
    )
