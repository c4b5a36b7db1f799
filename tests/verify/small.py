"""Small versions of every preset's structure, for the checks."""

from __future__ import annotations

import numpy as np

import ide_ref

STRUCTURES = {
    "fashion-mnist-400": ("12 (F12)", (20,), None),
    "mnist-64c5": ("4C5s (F4C5)", (1, 8, 8), None),
    "nmnist-64c5": ("4C5s (F4C5)", (2, 8, 8), 6),
    "alexnet-f": ("4C3s-6C3-8C3s-8C3-6C3 (F4C3u)", (3, 8, 8), None),
    "cifarnet-f": ("4C3s-6C3-8C3s-10C3-8C3 (F4C3u)", (3, 8, 8), None),
}


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
