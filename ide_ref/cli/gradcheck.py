"""``ide-ref gradcheck``: implicit gradients against differences of the exact equilibrium, or by their remainders."""

from __future__ import annotations

import argparse
import inspect
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ide_ref._imports import imported
from ide_ref.cli import _common

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ide_ref.network import Params
    from ide_ref.presets import Preset

    Problem = tuple[Params, NDArray, NDArray]  # parameters, inputs and labels

_TOL = {"central": 1e-7, "cell": 1e-9}
# Options that --function takes, by the argument of check_fixed_point that they are, and those of printing.
_JUDGED = {"directions": "n_directions", "tol": "tol", "seed": "seed"}
_BESIDE = {"function", "figure", "json", "threads"}
_TIMES = (1, 2, 3, 5, 7, 10, 14, 20, 30, 50, 70, 100, 140, 200)


def add(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "network", metavar="PRESET|CHECKPOINT", nargs="?", help="a preset, a checkpoint or a training's folder"
    )
    p.add_argument(
        "--function",
        metavar="MODULE:NAME",
        help="in place of a network: a function without arguments that returns those of check_fixed_point by name",
    )
    p.add_argument(
        "--figure", type=_common.picture, metavar="FILE", help="of --function: draw its Taylor remainders, .png or .svg"
    )
    p.add_argument("--small", action="store_true", help="the preset's structure in small, on drawn inputs: no data set")
    p.add_argument("--samples", type=_common.count, default=8, metavar="N", help="batch size (default 8)")
    p.add_argument(
        "--method",
        choices=tuple(_TOL),
        default="central",
        help="central: (FP) solved anew, kinks set aside; cell: every neuron held on its piece (default central)",
    )
    p.add_argument("--coordinates", type=_common.seed, default=12, metavar="N", help="drawn a parameter (default 12)")
    p.add_argument(
        "--directions", type=_common.seed, default=2, metavar="N", help="drawn a parameter (default 2; of --function 3)"
    )
    p.add_argument("--one-sided", action="store_true", help="difference on one side where a kink lies on the other")
    p.add_argument("--step", type=_common.positive, metavar="H", help="longest step (default: 0.02 central, 2 cell)")
    p.add_argument(
        "--tol",
        type=_common.positive,
        help="largest relative error (default: 1e-7 central, 1e-9 cell; of --function 1e-5, of its gradients in single "
        "precision 1e-4, in half precision 2e-2)",
    )
    p.add_argument("--solver", choices=_common.SOLVERS, default="gmres", help="of (BETA) (default gmres)")
    p.add_argument("--evaluation", action="store_true", help="running statistics and no dropout, as in evaluation")
    p.add_argument("--sweep", type=_common.picture, metavar="FILE", help="draw the error over the step, .png or .svg")
    p.add_argument("--budget", type=_common.picture, metavar="FILE", help="draw why training's gradient is not exact")
    p.add_argument("--times", metavar="T,T", help="of the budget (default: 14 up to 200, or to the trains' length)")
    p.add_argument("--parameter", metavar="NAME", help="of the sweep's direction (default: all together)")
    p.set_defaults(parser=p)


def run(args: argparse.Namespace) -> int:
    """``ide-ref gradcheck``: exit status 1 where the gradient is wrong."""
    if (args.function is None) == (args.network is None):
        raise ValueError("expected a preset or checkpoint, or --function MODULE:NAME, one of the two")
    if args.figure is not None and args.function is None:
        raise ValueError("--figure draws the remainders of --function MODULE:NAME; give both")
    return _run_network(args) if args.function is None else _run_function(args)


def _run_function(args: argparse.Namespace) -> int:
    """The gradient through any fixed point, as a user's function gives it, by Taylor remainders."""
    from ide_ref import figures
    from ide_ref.verify import check_fixed_point

    given = _given(args)
    others = sorted(given.keys() - _JUDGED.keys() - _BESIDE)
    if others:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        taken = ", ".join(f"--{name}" for name in sorted({*_JUDGED, *_BESIDE} - {"function"}))
        raise ValueError(f"{named}: of a network, not of --function MODULE:NAME; expected with it {taken}")
    make = imported("--function", args.function)
    if not callable(make):
        raise ValueError(f"--function {args.function} is of type {type(make).__name__}; expected a function")
    found = make()
    known = set(inspect.signature(check_fixed_point).parameters)
    if not isinstance(found, dict) or not known.issuperset(found):
        what = f"a dict with {sorted(set(found) - known)}" if isinstance(found, dict) else type(found).__name__
        raise ValueError(f"--function {args.function} returned {what}; expected a dict of {', '.join(sorted(known))}")
    missing = {"f", "z", "theta", "x", "gradient"} - set(found)
    if missing:
        raise ValueError(f"--function {args.function} returned nothing for {', '.join(sorted(missing))}")
    options = {argument: given[name] for name, argument in _JUDGED.items() if name in given}
    report = check_fixed_point(**{**found, **options})
    text = report.table()
    if args.figure is not None:
        args.figure.parent.mkdir(parents=True, exist_ok=True)
        figures.remainders(report, title=args.function, path=args.figure)
        text += f"\nwritten: {args.figure}"
    _common.print_result(args, {"function": args.function, **report.to_dict()}, text)
    return 0 if report.verdict == "right" else 1


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """What the words say, without defaults: an option that is given its default is given too."""
    args.parser.set_defaults(**dict.fromkeys(vars(args)))
    again = args.parser.parse_args(args.words[1:])
    return {name: value for name, value in vars(again).items() if value is not None}


def _run_network(args: argparse.Namespace) -> int:
    import numpy as np

    from ide_ref.training.evaluation import load_batch, load_data
    from ide_ref.verify import check_gradient, small

    if args.sweep is None and args.parameter is not None:
        raise ValueError("--parameter says where --sweep FILE goes; give both")
    times = None if args.times is None else _common.whole_numbers("--times", args.times)
    if args.budget is None and times is not None:
        raise ValueError("--times are those of --budget FILE; give both")
    if args.coordinates == args.directions == 0:
        raise ValueError("--coordinates and --directions are both 0; expected something to check")
    if args.small:
        preset = small.shrink(_common.load_preset(args, args.network))
    else:
        preset, params = _common.load_network(args, args.network)
    preset = replace(preset, recipe=replace(preset.recipe, dtype="float64"))
    network = preset.network
    if args.parameter is not None and args.parameter not in network.trainable:
        raise ValueError(f"--parameter is {args.parameter!r}; expected one of {', '.join(network.trainable)}")
    longest = preset.recipe.n_steps if preset.recipe.input == "spikes" else None
    if longest is not None and times is not None and max(times) > longest:
        raise ValueError(f"--times has {max(times)}; expected at most {longest}, the frames of an input (--n-steps)")
    for path in (args.sweep, args.budget):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    if args.small:
        params, x, y = small.draw(preset, args.samples, seed=args.seed)
    else:
        data = load_data(preset, data_dir=args.data_dir, source=args.data, limit=args.samples)
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
    if args.sweep is not None:
        document["sweep"], said = _draw_sweep(args, preset, (params, x, y), args.sweep)
        text += said
    if args.budget is not None:
        times = times or tuple(t for t in _TIMES if longest is None or t <= longest)
        document["budget"], said = _draw_budget(args, preset, (params, x, y), times, args.budget)
        text += said
    _common.print_result(args, document, text)
    return 0 if report.passed else 1


def _draw_sweep(args: argparse.Namespace, preset: Preset, problem: Problem, path: Path) -> tuple[dict[str, Any], str]:
    """The error over the step as a figure, a part of the document and a part of the text."""
    from ide_ref import figures
    from ide_ref.verify import sweep_steps

    training = not args.evaluation
    sweep = sweep_steps(preset.network, *problem, parameter=args.parameter, seed=args.seed, training=training)
    title = f"{preset.name}, {args.parameter or 'all parameters'}"
    figures.step_sweep(sweep, title=title, path=path)
    text = f"\n\n{title}: relative error over the step, * beyond a kink\n{sweep.table()}\nwritten: {path}"
    return {**sweep.to_dict(), "parameter": args.parameter, "figure": str(path)}, text


def _draw_budget(
    args: argparse.Namespace, preset: Preset, problem: Problem, times: tuple[int, ...], path: Path
) -> tuple[dict[str, Any], str]:
    """The error budget of training's gradient over T, in the same three forms."""
    from ide_ref import figures
    from ide_ref.verify import explain_over_time, table_over_time

    recipe = preset.recipe
    budgets = explain_over_time(
        preset.network,
        *problem,
        times,
        solver=recipe.solver,
        tol=recipe.tol,
        max_iter=recipe.max_iter,
        training=not args.evaluation,
        seed=args.seed,
    )
    title = f"{preset.name} ({preset.neuron.name.upper()}), {len(problem[2])} samples"
    figures.budget_over_time(budgets, title=title, path=path)
    text = f"\n\nwhat separates training's gradient ({recipe.solver}, tolerance {recipe.tol:g}) from the exact one\n"
    text += f"{table_over_time(budgets)}\nwritten: {path}"
    return {"over_time": [b.to_dict() for b in budgets], "figure": str(path)}, text
