"""The discrete rollout, (STEP), and its average rates, (RATE)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from ide_ref import _checks, _threads
from ide_ref._kernels import memory
from ide_ref._kernels import rollout as _rollout
from ide_ref._kernels.layout import N_OUT
from ide_ref._kernels.propagate import block_of
from ide_ref.maps import Frozen
from ide_ref.network import Network, of_population
from ide_ref.synapses import to_channels_last


@dataclass(frozen=True)
class Recording:
    """Every step of a rollout, t = 1..T, by population.

    Attributes
    ----------
    network : Network
    s : (B, T, n) array of uint8
        s[t] of all populations in channels-last order, for programs; :meth:`spikes` has the populations' own shapes.
    u : (B, T, n) array
        u[t] likewise, see :meth:`potentials`.
    """

    network: Network
    s: NDArray[np.uint8]
    u: NDArray

    def spikes(self, population: str) -> NDArray[np.uint8]:
        """s[t] of one population, (B, T, *shape): 1 where a neuron fired."""
        return of_population(self.network, self.s, population)

    def potentials(self, population: str) -> NDArray:
        """u[t] of one population after its reset, (B, T, *shape), in the unit of V_th."""
        return of_population(self.network, self.u, population)

    def rates(self, population: str) -> NDArray[np.float64]:
        """a[t] of one population as it settles, (RATE): (B, T, *shape), spikes per step."""
        spikes, neuron = self.spikes(population), self.network.neurons[self.network.index(population)]
        a, weight = np.empty(spikes.shape), np.zeros(spikes[:, 0].shape)
        for t in range(spikes.shape[1]):
            weight = neuron.leak * weight + spikes[:, t]
            a[:, t] = weight / neuron.total_weight(t + 1)
        return a


@dataclass(frozen=True)
class Rates:
    """What a rollout leaves behind.

    Attributes
    ----------
    network : Network
    a : (B, n) array
        Average firing rates a[T] of all populations in channels-last order, (RATE).
    u : (B, n) array
        Potentials u[T].
    x_mean : (B, *input_shape) array
        x̄[T−1].
    n_steps : int
        T.
    n_spikes, n_events : (B, L) int arrays
        Spikes of each population in all steps; and the events it sent, each a spike that was not predicted, the want
        of one that was, or a change of what is predicted (see :func:`prediction_bounds`).
    margin : (B,) array
        Smallest |v − V_th| met: how far the nearest spike was from being another.
    recording : Recording or None
        Every step, where it was asked for.
    """

    network: Network
    a: NDArray
    u: NDArray
    x_mean: NDArray
    n_steps: int
    n_spikes: NDArray[np.int64]
    n_events: NDArray[np.int64]
    margin: NDArray
    recording: Recording | None = None

    def of(self, population: str) -> NDArray:
        """(B, *shape) average rates of one population."""
        return of_population(self.network, self.a, population)

    def without_potentials(self) -> Rates:
        """The same without u[T], (B, 0): training has no use for it, and it is 80 MB in the larger networks."""
        return replace(self, u=np.empty((len(self.u), 0), self.u.dtype), recording=None)

    @property
    def mean_spikes(self) -> dict[str, float]:
        """Spikes per neuron and step of each population: true firing rates, unweighted."""
        return {
            p.name: float(self.n_spikes[:, i].mean()) / (p.size * self.n_steps)
            for i, p in enumerate(self.network.populations)
        }


@_threads.fitted
def simulate(frozen: Frozen, x: NDArray, n_steps: int, *, record: bool = False) -> Rates:
    """Run the network for T steps from rest, (STEP).

    Parameters
    ----------
    frozen : Frozen
    x : (B, *input_shape) array, or (B, T, *input_shape) for a spike train
        A static input's drive is computed once; a train's events are propagated step by step.
    n_steps : int
        T ≥ 1; for a train its length.
    record : bool
        Keep spikes and potentials of every step, as ``recording``. Memory then grows with T; without it, it does not.

    Returns
    -------
    Rates

    Raises
    ------
    ValueError
        For inputs that do not fit, or a spike train into populations of different leak.
    """
    _checks.kind("frozen", frozen, Frozen)
    net = frozen.network
    dtype = frozen.dtype
    x = frozen.check_input(x)
    n_steps = _checks.whole("n_steps", n_steps)
    is_spike_input = net.is_spike_input(x)
    if is_spike_input and x.shape[1] != n_steps:
        raise ValueError(f"the spike train has {x.shape[1]} steps but n_steps is {n_steps}; expected the same")
    n_batch = x.shape[0]
    x_mean = frozen.mean_input(x)
    drive = frozen.constants(n_batch, with_input=is_spike_input)
    train = np.empty((n_batch, 0, 0), dtype)
    if is_spike_input:
        merged = x.reshape(n_batch * n_steps, *net.input_shape)
        train = to_channels_last(merged, net.input_shape).reshape(n_batch, n_steps, -1)
    else:
        frozen.drive(x_mean, drive)

    plan = frozen.plan_with_input if is_spike_input else frozen.plan
    leaks = np.array([neuron.leak for neuron in net.neurons])
    weights_of_rate = leaks ** np.arange(n_steps)[::-1, None]
    n = net.state_size
    u, a = memory.empty((n_batch, n), dtype), memory.empty((n_batch, n), dtype)
    n_spikes, n_events = np.empty((2, n_batch, len(net.populations)), np.int64)
    margin = np.empty(n_batch, dtype)
    steps = n_steps if record else 0
    spikes = np.empty((n_batch, steps, n), np.uint8)
    potentials = np.empty((n_batch, steps, n), dtype)
    arguments = (
        drive, train, leaks.astype(dtype), net.population_thresholds.astype(dtype), weights_of_rate.astype(dtype),
        prediction_bounds(n_steps).astype(dtype), net.offsets, *plan, u, a, n_spikes, n_events, margin, spikes,
        potentials, block_of(n_batch, plan.table[:, N_OUT].max(initial=1)),
    )  # fmt: skip
    work = (net.n_multiplications + n) * n_batch * n_steps
    _threads.stoppable(partial(_rollout.rollout, *arguments), work)
    # Divided last: for IF the sum is a whole number, so the rate is correctly rounded.
    for neuron, columns in net.stretches:
        a[:, columns] /= dtype.type(neuron.total_weight(n_steps))
    recording = Recording(net, spikes, potentials) if record else None
    return Rates(net, a, u, x_mean, n_steps, n_spikes, n_events, margin, recording)


@lru_cache(maxsize=8)
def prediction_bounds(n_steps: int) -> NDArray[np.float64]:
    """(T, 2) array: before which steps the rollout predicts anew what each neuron does, and from which rates.

    Row t has the rate so far below which a neuron is predicted to be silent from then on and that above which it is
    predicted to fire at every step; between them the prediction stays. Other rows are NaN. Where a neuron is predicted
    to fire, its spikes become part of its targets' drive and it sends an event when it does not.

    With k spikes in t steps the next one is a spike with probability (k + 1)/(t + 2), by Laplace's rule. A change costs
    an event and saves T − t times the difference between that and its complement, so it must be above 1. Steps are the
    Fibonacci numbers from 3 on, as long as a third of all steps is left and more than five.
    """
    bounds = np.full((n_steps, 2), np.nan)
    t, following = 3, 5
    while 3 * t < 2 * n_steps and n_steps - t > 5:
        margin = 1 / (n_steps - t)
        bounds[t] = ((t + 2) / 2 * np.array([1 - margin, 1 + margin]) - 1) / t
        t, following = following, t + following
    bounds.flags.writeable = False
    return bounds
