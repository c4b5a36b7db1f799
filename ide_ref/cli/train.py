"""``ide-ref train``: a preset trained on its data set."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import fields, replace
from pathlib import Path

from ide_ref.cli import _common

_CURVES = "curves.png"


def add(p: argparse.ArgumentParser) -> None:
    p.add_argument("preset", metavar="PRESET")
    p.add_argument("--epochs", type=_common.count, metavar="N")
    p.add_argument("--milestones", metavar="E,E", help="epochs after which the learning rate falls, e.g. 30,60,90")
    p.add_argument("--out", metavar="DIR", help="output folder (default: runs/PRESET-NEURON-sSEED)")
    p.add_argument("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    p.add_argument("--limit", type=_common.count, metavar="N", help="only the first N training and N test images")
    p.add_argument("--batch-size", type=_common.count, metavar="B")
    p.add_argument("--lr", type=_common.positive)
    p.add_argument("--warmup-steps", type=_common.count, metavar="N", help="batches in which the learning rate rises")
    p.add_argument("--dtype", choices=("float32", "float64"))
    p.add_argument("--solver", help=f"of (BETA): {', '.join(_common.SOLVERS)}")
    p.add_argument("--tol", type=_common.positive, help="relative residual of (BETA)")
    p.add_argument("--max-iter", type=_common.count, metavar="N", help="most products with Jᵀ per step")
    p.add_argument("--allow-unconverged", action="store_true", default=None, help="take (BETA) as --max-iter leaves it")
    p.add_argument("--threads", type=_common.count, metavar="N")


def run(args: argparse.Namespace) -> int:
    # What is missing is told before anything is written.
    import safetensors  # noqa: F401
    import tqdm  # noqa: F401

    from ide_ref import figures
    from ide_ref.training import loop
    from ide_ref.training.evaluation import load_data

    preset = _common.load_preset(args, args.preset)
    if args.milestones is not None:
        try:
            args.milestones = tuple(int(part) for part in args.milestones.split(",") if part)
        except ValueError:
            raise ValueError(f"--milestones is {args.milestones!r}; expected epochs like 30,60,90") from None
    options = {field.name: getattr(args, field.name, None) for field in fields(preset.recipe)}
    given = {name: value for name, value in options.items() if value is not None}
    preset = replace(preset, recipe=replace(preset.recipe, **given))
    out = Path(args.out or f"runs/{preset.name}-{preset.neuron.name}-s{args.seed}")
    data = load_data(preset, data_dir=args.data_dir, limit=preset.recipe.limit)
    drawn = figures.available()
    if not drawn:
        print(f"matplotlib is not installed: no {_CURVES} will be drawn; {_common.INSTALL}", file=sys.stderr)
    command = ["ide-ref", *args.words]
    result = loop.train(preset, data, out=out, seed=args.seed, resume=args.resume, command=command, log=sys.stderr)
    summary = {**result.summary(), "out": str(out)}
    history = result.checkpoint.history
    if history and drawn:
        figures.training_curves(history, title=f"{preset.name} ({preset.neuron.name.upper()})", path=out / _CURVES)
    if result.stopped_by is not None:
        again = [*(word for word in args.words if word != "--resume"), "--resume"]
        print(f"stopped and saved; go on with: ide-ref {shlex.join(again)}", file=sys.stderr)
        if args.json:
            _common.print_result(args, summary, "")
        return 128 + result.stopped_by
    files = [loop.RUN, loop.METRICS, loop.CHECKPOINT, *([_CURVES] if drawn else [])]
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
