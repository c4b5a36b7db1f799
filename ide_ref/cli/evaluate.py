"""``ide-ref evaluate``: accuracy, firing rates, distance to equilibrium."""

from __future__ import annotations

import argparse

from ide_ref.cli import _common


def add(p: argparse.ArgumentParser) -> None:
    p.add_argument("checkpoint", metavar="CHECKPOINT", help="a file, or the folder of a training")
    p.add_argument("--limit", type=_common.count, metavar="N", help="only the first N images (default: as in training)")


def run(args: argparse.Namespace) -> int:
    import numpy as np

    from ide_ref.equilibrium import contraction
    from ide_ref.maps import freeze
    from ide_ref.solvers import NotConverged
    from ide_ref.training import checkpoint, evaluation

    state = checkpoint.load(args.checkpoint)
    data = evaluation.load_data(
        state.preset, data_dir=args.data_dir, source=args.data, limit=args.limit or state.preset.recipe.limit
    )
    result = evaluation.evaluate(state.preset, state.params, data)
    x, _ = evaluation.load_batch(state.preset, data, "test", np.arange(min(16, len(data.y_test))))
    distance, problem = None, None
    try:
        distance = evaluation.equilibrium_distance(state.preset, state.params, x.astype(np.float64))
        told = f"{distance.rms:.4f} a neuron (root mean square, {len(x)} images)"
    except NotConverged as error:
        problem = str(error)
        told = f"unknown ({problem})"
    gamma = distance.contraction if distance else contraction(freeze(state.preset.network, state.params))
    document = {
        "checkpoint": args.checkpoint,
        "preset": state.preset.name,
        "epochs": len(state.history),
        "samples": result.n_samples,
        "accuracy": result.accuracy,
        "loss": result.loss,
        "firing_rates": result.firing_rates,
        "distance_to_equilibrium_rms": distance.rms if distance else None,
        "contraction": gamma,
        "condition_holds": gamma < 1,
        "equilibrium_problem": problem,
    }
    firing = result.firing_rates.items()
    rates = "\n".join(f"  {name:<6} {rate:.4f} spikes per neuron and step" for name, rate in firing)
    text = (
        f"{state.preset.name} after {len(state.history)} {'epoch' if len(state.history) == 1 else 'epochs'}, "
        f"{result.n_samples:,} test {'images' if data.n_frames is None else 'recordings'}\n"
        f"accuracy {result.accuracy:.2%}, loss {result.loss:.4f}\nfiring rates\n{rates}\n"
        f"distance of a[T] from the equilibrium: {told}\n{_common.condition(gamma)}"
    )
    _common.print_result(args, document, text)
    return 0
