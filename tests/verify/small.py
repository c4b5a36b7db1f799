"""Small versions of every preset's structure, for the checks."""

from __future__ import annotations

import numpy as np

import ide_ref
from ide_ref.verify import small

STRUCTURES = {name: (*known, 6 if name == "nmnist-64c5" else None) for name, known in small.STRUCTURES.items()}
"""Structure, input shape, and frames of spike trains."""


def problem(name, neuron=None, *, seed=0, batch=4, alpha=0.9, **options):
    """Network, parameters with nothing at its neutral value, inputs and labels."""
    structure, shape, n_steps = STRUCTURES[name]
    options = {"dropout": 0.2, **options}
    network = ide_ref.build(structure, input_shape=shape, n_classes=5, neuron=neuron or ide_ref.LIF(), **options)
    rng = np.random.default_rng(seed)
    params = network.init(rng)
    for key, value in params.items():
        if key.endswith(("bias", "bn_weight")):
            params[key] = value + rng.normal(0, 0.2, value.shape)
        if key.endswith("running_var"):
            params[key] = value * rng.uniform(0.5, 1.5, value.shape)
        if key.endswith("alpha"):
            params[key] = np.asarray(alpha)
        params[key].flags.writeable = False
    x = rng.normal(0.3, 1, (batch, *shape)) if n_steps is None else 1.0 * (rng.random((batch, n_steps, *shape)) < 0.3)
    return network, params, x, rng.integers(0, 5, batch)


def rollout(network, params, x, y, n_steps=6):
    """Maps frozen for training, the rates after some steps, and the gradient of the loss there."""
    frozen = ide_ref.freeze(network, params, x, training=True, rng=np.random.default_rng(0))
    rates = ide_ref.simulate(frozen, x, n_steps)
    return frozen, rates, ide_ref.cross_entropy(ide_ref.read_out(frozen, rates), y)[1]
