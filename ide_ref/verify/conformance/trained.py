"""A case of full size: a trained network, whose images a port takes from the public data set.

Source: ``docs/conformance.md``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ide_ref import equations
from ide_ref.training import checkpoint
from ide_ref.training.checkpoint import Checkpoint
from ide_ref.verify.conformance.make import describe, restricted, rollout, rounding_of, shaped, specify_case
from ide_ref.verify.conformance.pack import PICTURES, RTOL, Case, network_of, with_images, write


def make_trained(
    state: Checkpoint | str | Path, directory: str | Path, *, n_images: int = 1000, data_dir: str | Path | None = None
) -> Path:
    """Write a pack of one case: a trained network's rates and logits on the first test images, and its accuracy.

    The case is in float64, with weights of float32, so that every spike is determined; images are not copied, but named
    by their index in the data set.

    Parameters
    ----------
    state : Checkpoint or path
        Of a network of one population without normalisation but at its input, which is folded into the weights at the
        running statistics.

    Returns
    -------
    path
        Of the manifest.

    Raises
    ------
    ValueError
        For a network of another kind, a data set that is missing, or where a potential is so near V_th that rounding
        could flip a spike.
    """
    state = state if isinstance(state, Checkpoint) else checkpoint.load(state)
    preset, recipe = state.preset, state.preset.recipe
    network = preset.network
    if (
        preset.graph is not None
        or len(network.populations) != 1
        or len(preset.input_shape) != 1
        or recipe.dataset not in PICTURES
        or recipe.mean is None
        or recipe.input != "static"
    ):
        told = f"static images of {' or '.join(PICTURES)} and a known mean"
        raise ValueError(f"{preset.name} is no network of one flat population with {told}, built from a structure")
    params = {name: value.astype(np.float64) for name, value in state.params.items()}
    (name,) = [c.name for c in network.connections if c.batch_norm] or [""]
    if name:
        scale = params[f"{name}.bn_weight"] / np.sqrt(params[f"{name}.running_var"] + equations.EPSILON)
        params[f"{name}.weight"] *= scale[:, None]
        shift = params[f"{name}.bias"] - params[f"{name}.running_mean"]
        params[f"{name}.bias"] = scale * shift + params[f"{name}.bn_bias"]
    config: dict[str, Any] = {
        "name": f"{preset.name}-trained",
        "structure": preset.structure,
        "input_shape": list(preset.input_shape),
        "n_classes": preset.n_classes,
        "n_steps": recipe.n_steps,
        "batch_norm": False,
        "dropout": 0.0,
        "dtype": "float64",
        "input": "static",
        "neuron": {"leak": network.neuron.leak, "v_th": network.neuron.v_th},
        "group": "optional",
        "exact": {},
        "readings": [],
        "tags": [],
        "images": {"dataset": recipe.dataset, "part": "test", "mean": list(recipe.mean), "std": list(recipe.std or ())},
    }
    plain = network_of(config)
    wanted = plain.init(np.random.default_rng(0))
    stored: dict[str, NDArray] = {
        f"param/{n}": params[n].astype(np.float32) for n in wanted if not n.endswith("singular_vector")
    }
    stored["input/index"] = np.arange(n_images)
    case = with_images(Case(config, stored), data_dir=data_dir)
    if case.lacking:
        raise ValueError(case.lacking)
    spec = specify_case(case)
    u, spikes = rollout(spec)
    margins = np.abs(u[0] - plain.neuron.v_th * (1 - spikes[0]))
    (rounding,) = rounding_of(spec, u, float(np.finfo(np.float64).eps))
    if margins.min() <= 2 * recipe.n_steps * rounding:
        raise ValueError(f"a potential is {margins.min():.1e} from V_th, within what rounding moves it; train it anew")
    rates = equations.average(spikes[0], plain.neuron.leak)
    logits = equations.read_out(spec.readout[1], spec.readout[2], rates)
    population = plain.populations[0]
    expected = {**restricted(spec), f"rates/{population.name}": shaped(rates, population.shape), "logits": logits}
    smallest = [float(f"{v:.6e}") for v in margins.min(axis=(0, 2))]
    config |= {
        **describe(plain),
        "sgd": {"rate": recipe.lr, "momentum": recipe.momentum, "weight_decay": recipe.weight_decay},
        "bn": {"epsilon": equations.EPSILON, "momentum": equations.MOMENTUM},
        "solver_tol": 1e-12,
        "rtol": RTOL["float64"],
        "smallest_margin": smallest,
        "rounding": {population.name: float(f"{rounding:.6e}")},
    }
    config["images"]["accuracy"] = float(np.mean(logits.argmax(axis=1) == case.y))
    arrays = stored | {f"expected/{n}": np.asarray(v, np.float64, order="C") for n, v in expected.items()}
    return write(Path(directory), [Case(config, arrays)])
