"""``ide-ref measure``: memory of training steps, activity of a network, angles between gradients."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from ide_ref.cli import _common


def add(p: argparse.ArgumentParser) -> None:
    output, threads, preset, _, datasets = _common.option_groups()
    actions = p.add_subparsers(dest="action", metavar="memory|activity|angles", required=True)

    says = "memory of training steps over T, of both gradients, each in a process of its own"
    p = actions.add_parser("memory", parents=[output, preset], help=says, description=f"{says}.")
    p.add_argument("network", metavar="PRESET|CHECKPOINT")
    p.add_argument("--times", metavar="T,T", default="30,100", help="numbers of steps (default 30,100)")
    p.add_argument("--batch-size", type=_common.count, default=128, metavar="B", help="samples per step (default 128)")
    p.add_argument("--dtype", choices=("float32", "float64"), help="of all numbers (default: the recipe's)")
    p.add_argument("--method", choices=("ide", "stbp"), nargs="+", default=["ide", "stbp"], help="default both")

    says = "firing rates, synaptic operations and an estimate of energy, on test data"
    p = actions.add_parser("activity", parents=[output, threads, preset, datasets], help=says, description=f"{says}.")
    p.add_argument("network", metavar="PRESET|CHECKPOINT")
    p.add_argument("--limit", type=_common.count, metavar="N", help="only the first N images (default: as in training)")

    says = "angles between the implicit gradient, those through time and the exact one"
    p = actions.add_parser("angles", parents=[output, threads, preset, datasets], help=says, description=f"{says}.")
    p.add_argument("network", metavar="PRESET|CHECKPOINT")
    p.add_argument("--samples", type=_common.count, default=32, metavar="N", help="batch size (default 32)")
    p.add_argument(
        "--surrogate", choices=_common.SURROGATES, nargs="+", default=list(_common.SURROGATES), help="default all"
    )
    p.add_argument("--surrogate-width", type=_common.positive, default=1.0, metavar="W", help="in V_th (default 1)")
    p.add_argument("--detach-reset", action="store_true", help="no derivative through the reset")
    p.add_argument("--after", metavar="N,N", help="train the preset, and measure after so many batches (0: before any)")
    p.add_argument("--method", choices=("ide", "stbp"), help="of that training (default ide)")
    p.add_argument("--limit", type=_common.count, metavar="N", help="train on only the first N images")


def run(args: argparse.Namespace) -> int:
    return {"memory": memory, "activity": activity, "angles": angles}[args.action](args)


def memory(args: argparse.Namespace) -> int:
    from ide_ref.measure import memory as measure

    preset, _ = _common.load_network(args, args.network)
    if args.dtype is not None:
        preset = replace(preset, recipe=replace(preset.recipe, dtype=args.dtype))
    times = _common.whole_numbers("--times", args.times)
    found = measure.step_memory(preset, times, batch_size=args.batch_size, methods=args.method, seed=args.seed)
    document = {"preset": preset.name, "neuron": preset.neuron.name, "dtype": preset.recipe.dtype}
    _common.print_result(args, {**document, "memory": measure.to_dict(found)}, measure.table(found))
    return 0


def activity(args: argparse.Namespace) -> int:
    from ide_ref.measure.activity import measure_activity
    from ide_ref.training.evaluation import load_data

    preset, params = _common.load_network(args, args.network)
    limit = args.limit or preset.recipe.limit
    found = measure_activity(preset, params, load_data(preset, data_dir=args.data_dir, source=args.data, limit=limit))
    _common.print_result(args, {"network": args.network, **found.to_dict()}, found.table())
    return 0


def angles(args: argparse.Namespace) -> int:
    import numpy as np

    from ide_ref.measure import angles as measure
    from ide_ref.stbp import Surrogate
    from ide_ref.training.evaluation import load_batch, load_data

    preset, params = _common.load_network(args, args.network)
    how: dict[str, Any] = {"surrogates": [Surrogate(name, args.surrogate_width) for name in args.surrogate]}
    how["through_reset"] = not args.detach_reset
    found: tuple[measure.Angles, ...]
    if args.after is None:
        if args.method is not None or args.limit is not None:
            raise ValueError("--method and --limit are of the training of --after N,N; expected that with them")
        data = load_data(preset, data_dir=args.data_dir, source=args.data, limit=args.samples)
        x, y = load_batch(preset, data, "train", np.arange(min(args.samples, len(data.y_train))))
        found = (measure.measure_angles(preset, params, x, y, seed=args.seed, **how),)
    else:
        if args.network not in _common.PRESETS:
            raise ValueError(f"--after trains a preset from its start, and {args.network} is none; leave it out")
        preset = replace(preset, recipe=replace(preset.recipe, method=args.method or "ide"))
        data = load_data(preset, data_dir=args.data_dir, source=args.data, limit=args.limit)
        after = _common.whole_numbers("--after", args.after, 0)
        found = measure.angles_over_training(preset, data, after, n_samples=args.samples, seed=args.seed, **how)
    document = {"network": args.network, "neuron": preset.neuron.name, "samples": args.samples}
    document |= {"surrogate_width": args.surrogate_width, "through_reset": how["through_reset"]}
    _common.print_result(args, {**document, "angles": [one.to_dict() for one in found]}, measure.table(found))
    return 0
