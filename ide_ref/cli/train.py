"""``ide-ref train``: a preset, or a structure of one's own, trained on a data set."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ide_ref.cli import _common

if TYPE_CHECKING:
    from ide_ref.datasets import Dataset
    from ide_ref.neurons import Neuron
    from ide_ref.parallel import Group
    from ide_ref.presets import Preset, Recipe


def add(p: argparse.ArgumentParser) -> None:
    p.add_argument("preset", metavar="PRESET", nargs="?", help="not with --structure; nor needed with --resume --out")
    p.add_argument("--recipe", choices=("paper", "fast"), help="fast: in few epochs, of some presets (default paper)")
    p.add_argument("--structure", metavar="TEXT", help="network of your own for --data, such as '64C5s (F64C5)'")
    p.add_argument("--leak", type=_common.positive, metavar="L", help="of the neurons (default 0.95, or the preset's)")
    p.add_argument("--v-th", type=_common.positive, metavar="V", help="threshold (default 2, or the preset's)")
    p.add_argument("--dropout", type=float, metavar="P", help="default 0.2, or the preset's")
    p.add_argument("--epochs", type=_common.count, metavar="N", help="default 20, or the preset's")
    p.add_argument("--milestones", metavar="E,E", help="epochs after which the learning rate falls, e.g. 30,60,90")
    p.add_argument(
        "--out",
        metavar="DIR",
        help="output folder (default: runs/NAME-NEURON-sSEED or -stbp-sSEED, preset's or data's name)",
    )
    p.add_argument("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    p.add_argument(
        "--save-every",
        type=_common.positive,
        metavar="S",
        help="seconds after which a checkpoint is written within an epoch (default 600)",
    )
    p.add_argument("--limit", type=_common.count, metavar="N", help="only the first N training and N test images")
    p.add_argument("--batch-size", type=_common.count, metavar="B", help="default 128, or the preset's")
    p.add_argument("--lr", type=_common.positive, metavar="R", help="learning rate (default 0.05, or the preset's)")
    p.add_argument("--weight-decay", type=float, metavar="K", help="default 5e-4, or the preset's")
    p.add_argument("--schedule", choices=("steps", "cosine", "one-cycle"), help="of the learning rate")
    p.add_argument("--warmup-steps", type=_common.count, metavar="N", help="batches in which the learning rate rises")
    p.add_argument("--first-steps", type=_common.count, metavar="T", help="T in the first epoch, from which it grows")
    p.add_argument("--nesterov", action="store_true", default=None, help="look one step of the momentum ahead")
    p.add_argument("--clip-norm", type=_common.positive, metavar="C", help="shorten gradients that are longer than C")
    p.add_argument(
        "--readout-rate", type=_common.positive, metavar="R", help="learning rate of the readout, in that of the others"
    )
    p.add_argument("--label-smoothing", type=float, metavar="E", help="share of each label spread over all classes")
    p.add_argument("--crop", type=_common.seed, metavar="N", help="shift training pictures by up to N pixels")
    p.add_argument("--flip", action="store_true", default=None, help="mirror every second training picture")
    p.add_argument("--dtype", choices=("float32", "float64"), help="of all numbers (default float32)")
    p.add_argument("--method", choices=("ide", "stbp"), help="implicit gradient, or backpropagation through time")
    p.add_argument("--surrogate", choices=_common.SURROGATES, help="derivative of the spike, of --method stbp")
    p.add_argument("--surrogate-width", type=_common.positive, metavar="W", help="of that, in V_th (default 1)")
    p.add_argument(
        "--detach-reset", dest="through_reset", action="store_false", default=None, help="of stbp: reset a constant"
    )
    p.add_argument("--solver", help=f"of (BETA): {', '.join(_common.SOLVERS)}")
    p.add_argument("--tol", type=_common.positive, help="relative residual of (BETA)")
    p.add_argument("--max-iter", type=_common.count, metavar="N", help="most products with Jᵀ per step")
    p.add_argument("--mpi", action="store_true", help="split each batch as under mpiexec, also with one process alone")
    p.add_argument("--allow-unconverged", action="store_true", default=None, help="take (BETA) as --max-iter leaves it")


def run(args: argparse.Namespace) -> int:
    # What is missing is told before anything is written.
    import safetensors  # noqa: F401
    import tqdm  # noqa: F401

    from ide_ref import parallel

    group = parallel.world(asked=args.mpi)
    if group is None:
        return _run(args)
    with parallel.ending_together(group):
        return _run(args, group)


def _run(args: argparse.Namespace, group: Group | None = None) -> int:
    from ide_ref import figures
    from ide_ref.training import loop
    from ide_ref.training.evaluation import load_data

    if args.milestones is not None:
        try:
            args.milestones = tuple(int(part) for part in args.milestones.split(",") if part)
        except ValueError:
            raise ValueError(f"--milestones is {args.milestones!r}; expected epochs like 30,60,90") from None
    preset, data, seed = _chosen(args)
    preset = replace(
        preset,
        recipe=replace(preset.recipe, **_given(args, preset.recipe)),
        neuron=replace(preset.neuron, **_given(args, preset.neuron)),
        dropout=preset.dropout if args.dropout is None else args.dropout,
    )
    stbp = preset.recipe.method == "stbp"
    if not stbp and any(getattr(args, name) is not None for name in ("surrogate", "surrogate_width", "through_reset")):
        raise ValueError(
            "--surrogate, --surrogate-width and --detach-reset are of --method stbp; expected that with them"
        )
    out = Path(args.out or f"runs/{preset.name}-{preset.neuron.name}{'-stbp' if stbp else ''}-s{seed}")
    if data is None:
        data = load_data(preset, data_dir=args.data_dir, limit=preset.recipe.limit, source=args.data)
    drawn = figures.available()
    if not drawn and (group is None or group.is_first):
        _common.tell(f"matplotlib is not installed: no {loop.CURVES} will be drawn; {_common.INSTALL}")
    command = ["ide-ref", *args.words]
    options = {"resume": args.resume, "save_every": args.save_every or loop.SAVE_EVERY, "command": command}
    result = loop.train(preset, data, out=out, seed=seed, log=sys.stderr, group=group, **options)
    if group is not None and not group.is_first:
        return 0
    summary = {**result.summary(), "out": str(out)}
    history = result.checkpoint.history
    if history and drawn:
        figures.training_curves(history, title=f"{preset.name} ({preset.neuron.name.upper()})", path=out / loop.CURVES)
    if result.stopped_by is not None:
        again = [*(word for word in args.words if word != "--resume"), "--resume"]
        under = "" if group is None else f"mpiexec -n {group.size} "
        _common.tell(f"stopped and saved; go on with: {under}ide-ref {shlex.join(again)}")
        if args.json:
            _common.print_result(args, summary, "")
        return 128 + int(result.stopped_by)  # a signal's number, as there is no callback
    files = [loop.RUN, loop.METRICS, loop.CHECKPOINT, *([loop.CURVES] if drawn else [])]
    # A training of an earlier version did not note γ.
    said = "" if summary["contraction"] is None else _common.condition(summary["contraction"]) + "\n"
    text = (
        f"test accuracy {summary['last_accuracy']:.2%} (best {summary['best_accuracy']:.2%} in epoch "
        f"{summary['best_epoch']}), {summary['seconds_per_epoch']:.1f} s per epoch\n"
        f"{said}"
        f"written: {out}/{{{', '.join(files)}}}"
    )
    _common.print_result(args, summary, text)
    return 0


def _given(args: argparse.Namespace, part: Recipe | Neuron) -> dict[str, Any]:
    """The fields of a recipe or neuron that options were given for."""
    return {f.name: value for f in fields(part) if (value := getattr(args, f.name, None)) is not None}


def _chosen(args: argparse.Namespace) -> tuple[Preset, Dataset | None, int]:
    """What is trained before the options change it, its data if they had to be read, and the seed."""
    from ide_ref import presets
    from ide_ref.datasets import DATASETS, load
    from ide_ref.neurons import IF, LIF
    from ide_ref.training import loop

    if args.leak is not None and args.neuron == "if":
        raise ValueError("--leak is that of LIF neurons; leave out --neuron if")
    if args.recipe is not None and args.preset is None:
        raise ValueError("--recipe is of a preset; name one, or leave it out")
    if args.structure is not None:
        if args.preset is not None or args.data is None:
            raise ValueError("--structure stands in place of a preset and needs --data; give these two alone")
        events = args.data in DATASETS and DATASETS[args.data].form == "events"
        data = load(args.data, data_dir=args.data_dir, limit=args.limit, n_frames=args.n_steps if events else None)
        n_steps = args.n_steps or data.n_frames or 10
        recipe = presets.Recipe(args.data, n_steps, epochs=20, input="spikes" if data.spikes else "static")
        neuron = IF() if args.neuron == "if" else LIF()
        sizes = data.input_shape, data.n_classes
        preset = presets.Preset(data.name, args.structure, *sizes, neuron, 0.2, recipe, args.norm)
        return (presets.as_authors(preset) if args.profile == "authors" else preset), data, args.seed
    if args.preset is not None:
        preset = _common.load_preset(args, args.preset, recipe=args.recipe or "paper")
        if args.data not in (None, preset.recipe.dataset):
            # Statistics of another data set say nothing of this one.
            preset = replace(preset, recipe=replace(preset.recipe, dataset=args.data, mean=None, std=None))
        return preset, None, args.seed
    if not (args.resume and args.out):
        raise ValueError("expected a preset, --structure with --data, or --resume with --out")
    state = loop.resumable(Path(args.out))
    return state.preset, None, state.seed
