"""``ide-ref gradcheck``: the implicit gradient against differences of the exact equilibrium."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

_SOLVERS = ("fixed_point", "anderson", "broyden", "gmres", "direct")
_TOL = {"central": 1e-7, "cell": 1e-9}


def add(sub: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    from ide_ref.cli import commands

    p = sub.add_parser("gradcheck", parents=parents, help="implicit gradient against differences")
    p.add_argument("network", metavar="PRESET|CHECKPOINT")
    p.add_argument("--samples", type=commands._count, default=8, metavar="N", help="batch size (default 8)")
    p.add_argument(
        "--method",
        choices=tuple(_TOL),
        default="central",
        help="central: (FP) solved anew, kinks set aside; cell: every neuron held on its piece (default central)",
    )
    p.add_argument("--coordinates", type=commands._seed, default=12, metavar="N", help="drawn a parameter (default 12)")
    p.add_argument("--directions", type=commands._seed, default=2, metavar="N", help="drawn a parameter (default 2)")
    p.add_argument("--one-sided", action="store_true", help="difference on one side where a kink lies on the other")
    p.add_argument("--step", type=commands._positive, metavar="H", help="longest step (default: 0.02 central, 2 cell)")
    p.add_argument("--tol", type=commands._positive, help="largest relative error (default: 1e-7 central, 1e-9 cell)")
    p.add_argument("--solver", choices=_SOLVERS, default="gmres", help="of (BETA) (default gmres)")
    p.add_argument("--evaluation", action="store_true", help="running statistics and no dropout, as in evaluation")
    p.add_argument("--sweep", metavar="FILE", help="draw the error over the step, a V, to a .png or .svg file")
    p.add_argument("--parameter", metavar="NAME", help="of the sweep's direction (default: all together)")
    p.add_argument("--seed", type=commands._seed, default=0)
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """``ide-ref gradcheck``: exit status 1 where the gradient is wrong."""
    import numpy as np

    from ide_ref import figures
    from ide_ref.cli import commands
    from ide_ref.training.evaluation import load_batch
    from ide_ref.verify import check_gradient, sweep_steps

    figure = None if args.sweep is None else Path(args.sweep)
    if figure is None and args.parameter is not None:
        raise ValueError("--parameter says where --sweep FILE goes; give both")
    if figure is not None and figure.suffix not in (".png", ".svg"):
        raise ValueError(f"--sweep is {args.sweep!r}; expected a file that ends in .png or .svg")
    if args.coordinates == args.directions == 0:
        raise ValueError("--coordinates and --directions are both 0; expected something to check")
    preset, params = commands._network(args, args.network)
    preset = replace(preset, recipe=replace(preset.recipe, dtype="float64"))
    network = preset.network
    if args.parameter is not None and args.parameter not in network.trainable:
        raise ValueError(f"--parameter is {args.parameter!r}; expected one of {', '.join(network.trainable)}")
    if figure is not None:
        figure.parent.mkdir(parents=True, exist_ok=True)
    data = commands._data(preset, args, args.samples)
    x, y = load_batch(preset, data, "train", np.arange(min(args.samples, len(data.y_train))))
    report = check_gradient(
        network,
        params,
        x,
        y,
        method=args.method,
        n_coordinates=args.coordinates,
        n_directions=args.directions,
        seed=args.seed,
        step=args.step,
        tol=args.tol or _TOL[args.method],
        training=not args.evaluation,
        one_sided=args.one_sided,
        solver=args.solver,
        log=sys.stderr,
    )
    document = {"preset": preset.name, "samples": len(y), **report.to_dict()}
    text = report.table()
    if figure is not None:
        sweep = sweep_steps(
            network, params, x, y, parameter=args.parameter, seed=args.seed, training=not args.evaluation
        )
        title = f"{preset.name}, {args.parameter or 'all parameters'}"
        figures.step_sweep(sweep, title=title, path=figure)
        document["sweep"] = {**sweep.to_dict(), "parameter": args.parameter, "figure": str(figure)}
        text += f"\n\n{title}: relative error over the step, * beyond a kink\n{sweep.table()}\nwritten: {figure}"
    commands._print(args, document, text)
    return 0 if report.passed else 1
