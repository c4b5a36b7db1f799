"""``ide-ref info``: structure, sizes and norms of an initialised network."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ide_ref.cli import _common


def add(p: argparse.ArgumentParser) -> None:
    p.add_argument("preset", metavar="PRESET|CHECKPOINT", help="a preset, a checkpoint or a training's folder")


def run(args: argparse.Namespace) -> int:
    from ide_ref.equilibrium import contraction
    from ide_ref.maps import freeze

    preset, params = _common.load_network(args, args.preset)
    network = preset.network
    frozen = freeze(preset.network, params)
    gamma = contraction(frozen)
    norms = {m.name: m.operator_norm for m in frozen.maps}
    document = {
        "preset": preset.name,
        "structure": preset.structure,
        "neuron": network.neuron.name,
        "leak": network.neuron.leak,
        "v_th": network.neuron.v_th,
        "own_neurons": {name: asdict(neuron) for name, neuron in network.own_neurons.items()},
        "n_steps": preset.recipe.n_steps,
        "populations": {p.name: list(p.shape) for p in network.populations},
        "neurons": network.n_neurons,
        "parameters": network.n_parameters,
        "operator_norms": norms,
        "contraction": gamma,
        "condition_holds": gamma < 1,
    }
    lines = [
        f"{preset.name}: {preset.structure}, {network.neuron.describe()}, T = {preset.recipe.n_steps}",
        *(f"neuron of {name}: {neuron.describe()}" for name, neuron in network.own_neurons.items()),
        f"neurons     {network.n_neurons:>12,}   (input included)",
        f"parameters  {network.n_parameters:>12,}",
        "",
        f"{'connection':<12}{'from':>7}  {'to':<6}{'shape':>26}  operator norm",
    ]
    for c in network.connections:
        shapes = f"{'x'.join(map(str, c.synapse.in_shape))} -> {'x'.join(map(str, c.synapse.out_shape))}"
        lines.append(f"{c.name:<12}{c.source:>7}  {c.target:<6}{shapes:>26}  {norms[c.name]:.4f}")
    lines += ["", f"{_common.condition(gamma)}."]
    _common.print_result(args, document, "\n".join(lines))
    return 0
