"""Training feedback spiking networks by implicit differentiation on the equilibrium state, by hand.

The pipeline, one name per stage::

    params = network.init(rng)
    frozen = freeze(network, params, x, training=True, rng=rng)
    rates = simulate(frozen, x, n_steps)
    loss, d_logits = cross_entropy(read_out(frozen, rates), y)
    result = backward(frozen, rates, d_logits)
"""

from __future__ import annotations

from importlib import import_module

# That of typing, which would be the longest part of this import: Ctrl-C in it would give a traceback.
TYPE_CHECKING = False

__version__ = "0.1.0"

# Loaded on first use, so that the command line answers --help without compiling anything.
_NAMES = {
    "neurons": ["IF", "LIF", "Neuron"],
    "synapses": ["Dense"],
    "constraints": ["Restriction"],
    "network": ["Population", "Connection", "Readout", "Network"],
    "maps": ["Frozen", "freeze", "read_out"],
    "structure": ["build"],
    "simulation": ["simulate", "Rates", "Recording"],
    "continuous": ["simulate_continuous", "ContinuousRun", "PiecewiseInput", "Pulses"],
    "equilibrium": ["find_equilibrium", "Equilibrium", "contraction", "linearise"],
    "theory": ["conditions", "Conditions", "error_bound", "ErrorBound", "continuous_error_bound", "ContinuousBound"],
    "implicit": ["backward", "solve_beta"],
    "stbp": ["backward_through_time", "Surrogate", "ThroughTime"],
    "solvers": ["NotConverged", "solve"],
    "training.losses": ["cross_entropy"],
    "training.sgd": ["SGD"],
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOMES)]

if TYPE_CHECKING:
    from typing import Any

    from ide_ref.constraints import Restriction
    from ide_ref.continuous import ContinuousRun, PiecewiseInput, Pulses, simulate_continuous
    from ide_ref.equilibrium import Equilibrium, contraction, find_equilibrium, linearise
    from ide_ref.implicit import backward, solve_beta
    from ide_ref.maps import Frozen, freeze, read_out
    from ide_ref.network import Connection, Network, Population, Readout
    from ide_ref.neurons import IF, LIF, Neuron
    from ide_ref.simulation import Rates, Recording, simulate
    from ide_ref.solvers import NotConverged, solve
    from ide_ref.stbp import Surrogate, ThroughTime, backward_through_time
    from ide_ref.structure import build
    from ide_ref.synapses import Dense
    from ide_ref.theory import Conditions, ContinuousBound, ErrorBound, conditions, continuous_error_bound, error_bound
    from ide_ref.training.losses import cross_entropy
    from ide_ref.training.sgd import SGD


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ide_ref' has no attribute {name!r}")
    value = getattr(import_module(f"ide_ref.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
