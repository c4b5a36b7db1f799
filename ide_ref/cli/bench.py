"""``ide-ref bench``: step times by stage, against the dense-equivalent."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace

from ide_ref.cli import _common


def add(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "presets", metavar="PRESET|CHECKPOINT", nargs="*", help="default: digits fashion-mnist-400 mnist-64c5"
    )
    p.add_argument("--steps", type=_common.count, default=10, metavar="N", help="steps timed (default 10)")
    p.add_argument("--warm-up", type=_common.count, default=20, metavar="N", help="training steps before (default 20)")
    p.add_argument("--batch-size", type=_common.count, default=128, metavar="B")
    p.add_argument("--dtype", choices=("float32", "float64"), nargs="+", default=["float32"], help="one or both")
    p.add_argument("--method", choices=("ide", "stbp"), help="of the gradient (default ide, or the checkpoint's)")
    p.add_argument("--solver", help="of (BETA)")
    p.add_argument("--tol", type=_common.positive, help="relative residual of (BETA)")
    p.add_argument("--threads", dest="thread_counts", type=_common.count, metavar="N", nargs="+", default=[])
    p.add_argument("--figure", type=_common.picture, metavar="FILE", help="draw the rates of events, .png or .svg")
    p.add_argument("--continuous", action="store_true", help="spikes per second in continuous time instead")


def run(args: argparse.Namespace) -> int:
    from ide_ref.bench import continuous, machine, steps

    if args.continuous:
        # The leak 0.95 of a step, which is the unit of time here.
        runs = [
            continuous.continuous_speed(n, convolution=convolution, tau=tau, repeats=args.steps, seed=args.seed)
            for n, convolution in continuous.CONTINUOUS
            for tau in (math.inf, -1.0 / math.log(0.95))
        ]
        document = {"machine": machine.describe(), "continuous": [timing.to_dict() for timing in runs]}
        _common.print_result(args, document, continuous.continuous_table(runs))
        return 0
    rate = machine.matrix_rate()
    limits = machine.event_limits()
    timings = []
    for name in args.presets or ("digits", "fashion-mnist-400", "mnist-64c5"):
        for dtype in args.dtype:
            preset, _ = _common.load_network(args, name)
            changes = {n: v for n in ("batch_size", "method", "solver", "tol") if (v := getattr(args, n)) is not None}
            preset = replace(preset, recipe=replace(preset.recipe, dtype=dtype, **changes))
            timings += steps.run(
                preset,
                data_dir=args.data_dir,
                source=args.data,
                warm_up=args.warm_up,
                repeats=args.steps,
                seed=args.seed,
                threads=args.thread_counts,
                rate=rate,
            )
    if args.figure:
        from ide_ref import figures

        labels = (f"{t.preset}, {t.dtype}, threads: {t.threads}" for t in timings)
        points = [
            (name, t.firing_rate, t.events_per_second / t.threads) for name, t in zip(labels, timings, strict=True)
        ]
        figures.roofline(points, limits=limits, dense=rate / 2 / machine.most_threads(), path=args.figure)
    document = {"machine": machine.describe(), "seed": args.seed, "event_limits": limits}
    document["timings"] = [t.to_dict() for t in timings]
    _common.print_result(args, document, steps.table(timings, limits))
    return 0
