"""The commands: what each takes, and what it prints. Heavy imports happen when a command runs."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ide_ref.cli import conformance, equilibrium, gradcheck

if TYPE_CHECKING:
    from ide_ref.datasets import Dataset
    from ide_ref.network import Params
    from ide_ref.presets import Preset

CURVES = "curves.png"
INSTALL = "pip install 'ide_ref[train]'"


def add_all(sub: Any) -> None:
    """Add every command to the parser."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    which = argparse.ArgumentParser(add_help=False)
    which.add_argument("--neuron", choices=("lif", "if"), default="lif")
    which.add_argument("--norm", choices=("operator", "kernel"), default="operator", help="norm of the restriction")
    which.add_argument("--profile", choices=("paper", "authors"), default="paper", help="authors: their differences")
    which.add_argument("--n-steps", type=_count, metavar="T", help="time steps (default: the preset's)")
    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("--data-dir", metavar="DIR", help="folder that holds the data sets' folders")

    p = sub.add_parser("info", parents=[common, which], help="structure, sizes and norms of an initialised network")
    p.add_argument("preset", metavar="PRESET")
    p.add_argument("--seed", type=_seed, default=0)
    p.set_defaults(run=info)

    p = sub.add_parser("train", parents=[common, which, data], help="train a preset")
    p.add_argument("preset", metavar="PRESET")
    p.add_argument("--epochs", type=_count, metavar="N")
    p.add_argument("--milestones", metavar="E,E", help="epochs after which the learning rate falls, e.g. 30,60,90")
    p.add_argument("--seed", type=_seed, default=0, metavar="S")
    p.add_argument("--out", metavar="DIR", help="output folder (default: runs/PRESET-NEURON-sSEED)")
    p.add_argument("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    p.add_argument("--limit", type=_count, metavar="N", help="only the first N training and the first N test images")
    p.add_argument("--batch-size", type=_count, metavar="B")
    p.add_argument("--lr", type=_positive)
    p.add_argument("--warmup-steps", type=_count, metavar="N", help="batches in which the learning rate rises")
    p.add_argument("--dtype", choices=("float32", "float64"))
    p.add_argument("--solver", help="of (BETA): fixed_point, anderson, broyden, gmres, scipy_gmres, direct")
    p.add_argument("--tol", type=_positive, help="relative residual of (BETA)")
    p.add_argument("--max-iter", type=_count, metavar="N", help="most products with the transposed Jacobian a step")
    p.add_argument(
        "--allow-unconverged", action="store_true", default=None, help="take (BETA) as it is after --max-iter"
    )
    p.add_argument("--threads", type=_count, metavar="N")
    p.set_defaults(run=train)

    p = sub.add_parser("evaluate", parents=[common, data], help="accuracy, firing rates, distance to equilibrium")
    p.add_argument("checkpoint", metavar="CHECKPOINT")
    p.add_argument("--limit", type=_count, metavar="N")
    p.add_argument("--threads", type=_count, metavar="N")
    p.set_defaults(run=evaluate)

    equilibrium.add(sub, [common, data])
    gradcheck.add(sub, [common, which, data])
    conformance.add(sub, [common])

    p = sub.add_parser("bench", parents=[common, which, data], help="step times by stage, against the dense-equivalent")
    p.add_argument("presets", metavar="PRESET", nargs="*", help="default: digits fashion-mnist-400 mnist-64c5")
    p.add_argument("--steps", type=_count, default=10, metavar="N", help="steps timed (default 10)")
    p.add_argument("--warm-up", type=_count, default=20, metavar="N", help="training steps before (default 20)")
    p.add_argument("--batch-size", type=_count, default=128, metavar="B")
    p.add_argument("--dtype", choices=("float32", "float64"), nargs="+", default=["float32"], help="one or both")
    p.add_argument("--solver", help="of (BETA)")
    p.add_argument("--tol", type=_positive, help="relative residual of (BETA)")
    p.add_argument("--seed", type=_seed, default=0)
    p.add_argument("--threads", dest="thread_counts", type=_count, metavar="N", nargs="+", default=[])
    p.add_argument("--figure", metavar="FILE", help="draw the rates of events against the machine's limits (PNG, SVG)")
    p.add_argument("--continuous", action="store_true", help="spikes a second in continuous time instead")
    p.set_defaults(run=bench)

    p = sub.add_parser("data", parents=[common, data], help="which data sets were found, and how to get the others")
    p.add_argument("--download", metavar="NAME", help="fetch a data set from its published address")
    p.set_defaults(run=data_sets)


def _count(text: str, least: int = 1) -> int:
    """An option that is a whole number."""
    try:
        n = int(text)
    except ValueError:
        n = least - 1
    if n < least:
        raise argparse.ArgumentTypeError(f"is {text!r}, expected a whole number of at least {least}")
    return n


def _seed(text: str) -> int:
    return _count(text, 0)


def _positive(text: str) -> float:
    """An option that is a positive, finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"is {text!r}, expected a positive number")
    return value


def _print(args: argparse.Namespace, document: dict[str, Any], text: str) -> None:
    print(json.dumps(_finite(document), ensure_ascii=False, allow_nan=False) if args.json else text)


def _finite(value: Any) -> Any:
    """The same with null for NaN and infinite, which JSON does not know."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _preset(args: argparse.Namespace, name: str) -> Preset:
    from ide_ref import presets

    return presets.load(name, neuron=args.neuron, n_steps=args.n_steps, norm=args.norm, profile=args.profile)


def _data(preset: Preset, args: argparse.Namespace, limit: int | None) -> Dataset:
    from ide_ref.datasets import load

    n_frames = preset.recipe.n_steps if preset.recipe.input == "spikes" else None
    return load(preset.recipe.dataset, data_dir=args.data_dir, limit=limit, n_frames=n_frames)


def _network(args: argparse.Namespace, name: str) -> tuple[Preset, Params]:
    """A preset's freshly drawn parameters, or a checkpoint's."""
    from ide_ref import presets

    # A folder may well be called like a preset.
    if name not in presets.names() and (Path(name).suffix == ".safetensors" or Path(name).exists()):
        from ide_ref.training import checkpoint

        state = checkpoint.load(name)
        return state.preset, state.params
    from ide_ref.training.loop import begin

    preset = _preset(args, name)
    return preset, begin(preset, args.seed).params


def info(args: argparse.Namespace) -> int:
    """``ide-ref info``."""
    from ide_ref.equilibrium import contraction
    from ide_ref.maps import freeze
    from ide_ref.theory import verdict

    preset, params = _network(args, args.preset)
    network = preset.network
    frozen = freeze(network, params)
    gamma = contraction(frozen)
    norms = {m.name: m.operator_norm for m in frozen.maps}
    document = {
        "preset": preset.name,
        "structure": preset.structure,
        "neuron": network.neuron.name,
        "leak": network.neuron.leak,
        "v_th": network.neuron.v_th,
        "n_steps": preset.recipe.n_steps,
        "populations": {p.name: list(p.shape) for p in network.populations},
        "neurons": network.n_neurons,
        "parameters": network.n_parameters,
        "operator_norms": norms,
        "contraction": gamma,
        "condition_holds": gamma < 1,
    }
    lines = [
        f"{preset.name}: {preset.structure}, {network.neuron.name.upper()} (leak {network.neuron.leak:g}, V_th "
        f"{network.neuron.v_th:g}), T = {preset.recipe.n_steps}",
        f"neurons     {network.n_neurons:>12,}   (input included)",
        f"parameters  {network.n_parameters:>12,}",
        "",
        f"{'connection':<12}{'from':>7}  {'to':<6}{'shape':>26}  operator norm",
    ]
    for c in network.connections:
        shapes = f"{'x'.join(map(str, c.synapse.in_shape))} -> {'x'.join(map(str, c.synapse.out_shape))}"
        lines.append(f"{c.name:<12}{c.source:>7}  {c.target:<6}{shapes:>26}  {norms[c.name]:.4f}")
    lines += ["", f"contraction gamma = {gamma:.4f} in operator norms; {verdict(gamma)}."]
    _print(args, document, "\n".join(lines))
    return 0


def train(args: argparse.Namespace) -> int:
    """``ide-ref train``."""
    # What is missing is told before anything is written.
    import safetensors  # noqa: F401
    import tqdm  # noqa: F401

    from ide_ref import figures
    from ide_ref.training import loop

    preset = _preset(args, args.preset)
    changes = {
        name: value
        for name in (
            *("epochs", "batch_size", "lr", "warmup_steps", "dtype", "limit"),
            *("solver", "tol", "max_iter", "allow_unconverged"),
        )
        if (value := getattr(args, name)) is not None
    }
    if args.milestones is not None:
        try:
            changes["milestones"] = tuple(int(part) for part in args.milestones.split(",") if part)
        except ValueError:
            raise ValueError(f"--milestones is {args.milestones!r}; expected epochs like 30,60,90") from None
    preset = replace(preset, recipe=replace(preset.recipe, **changes))
    out = Path(args.out or f"runs/{preset.name}-{preset.neuron.name}-s{args.seed}")
    data = _data(preset, args, preset.recipe.limit)
    drawn = figures.available()
    if not drawn:
        print(f"matplotlib is not installed: no {CURVES} will be drawn; {INSTALL}", file=sys.stderr)
    try:
        result = loop.train(
            preset,
            data,
            out=out,
            seed=args.seed,
            resume=args.resume,
            command=["ide-ref", *args.words],
            log=sys.stderr,
        )
    except loop.Diverged as error:
        raise RuntimeError(str(error)) from None
    summary = {**result.summary(), "out": str(out)}
    history = result.checkpoint.history
    if history and drawn:
        figures.training_curves(history, title=f"{preset.name} ({preset.neuron.name.upper()})", path=out / CURVES)
    if result.stopped_by is not None:
        again = [*(word for word in args.words if word != "--resume"), "--resume"]
        print(f"stopped and saved; go on with: ide-ref {shlex.join(again)}", file=sys.stderr)
        if args.json:
            _print(args, summary, "")
        return 128 + result.stopped_by
    files = [loop.RUN, loop.METRICS, loop.CHECKPOINT, *([CURVES] if drawn else [])]
    text = (
        f"test accuracy {summary['last_accuracy']:.2%} (best {summary['best_accuracy']:.2%} in epoch "
        f"{summary['best_epoch']}), {summary['seconds_per_epoch']:.1f} s an epoch\n"
        f"{_condition(summary)}"
        f"written: {out}/{{{', '.join(files)}}}"
    )
    _print(args, summary, text)
    return 0


def _condition(summary: dict[str, Any]) -> str:
    """A line on (COND) after the last epoch; nothing where a training of an earlier version did not note γ."""
    if summary["contraction"] is None:
        return ""
    return f"contraction gamma = {summary['contraction']:.4f} in operator norms; {summary['condition']}\n"


def evaluate(args: argparse.Namespace) -> int:
    """``ide-ref evaluate``."""
    import numpy as np

    from ide_ref.equilibrium import contraction
    from ide_ref.maps import freeze
    from ide_ref.solvers import NotConverged
    from ide_ref.theory import verdict
    from ide_ref.training import checkpoint, evaluation

    state = checkpoint.load(args.checkpoint)
    data = _data(state.preset, args, args.limit or state.preset.recipe.limit)
    result = evaluation.evaluate(state.preset, state.params, data)
    x, _ = evaluation.load_batch(state.preset, data, "test", np.arange(min(16, len(data.y_test))))
    distance, problem = None, None
    try:
        distance = evaluation.equilibrium_distance(state.preset, state.params, x.astype(np.float64))
    except NotConverged as error:
        problem = str(error)
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
    rates = "\n".join(f"  {name:<6} {rate:.4f} spikes a neuron and step" for name, rate in result.firing_rates.items())
    text = (
        f"{state.preset.name} after {len(state.history)} {'epoch' if len(state.history) == 1 else 'epochs'}, "
        f"{result.n_samples:,} test {'images' if data.n_frames is None else 'recordings'}\n"
        f"accuracy {result.accuracy:.2%}, loss {result.loss:.4f}\nfiring rates\n{rates}\n"
        f"distance of a[T] from the equilibrium: "
    )
    if distance:
        text += f"{distance.rms:.4f} a neuron (root mean square, {len(x)} images)"
    else:
        text += f"unknown ({problem})"
    text += f"\ncontraction gamma = {gamma:.4f} in operator norms; {verdict(gamma)}"
    _print(args, document, text)
    return 0


def bench(args: argparse.Namespace) -> int:
    """``ide-ref bench``."""
    from ide_ref.bench import continuous, machine, steps

    if args.continuous:
        # The leak 0.95 of a step, which is the unit of time here.
        runs = [
            continuous.continuous_speed(n, convolution=convolution, tau=tau, repeats=args.steps, seed=args.seed)
            for n, convolution in continuous.CONTINUOUS
            for tau in (math.inf, -1.0 / math.log(0.95))
        ]
        document = {"machine": machine.describe(), "continuous": [timing.to_dict() for timing in runs]}
        _print(args, document, continuous.continuous_table(runs))
        return 0
    rate = machine.matrix_rate()
    limits = machine.event_limits()
    timings = []
    for name in args.presets or ("digits", "fashion-mnist-400", "mnist-64c5"):
        for dtype in args.dtype:
            preset = _preset(args, name)
            changes = {n: v for n in ("batch_size", "solver", "tol") if (v := getattr(args, n)) is not None}
            preset = replace(preset, recipe=replace(preset.recipe, dtype=dtype, **changes))
            timings += steps.run(
                preset,
                data_dir=args.data_dir,
                warm_up=args.warm_up,
                repeats=args.steps,
                seed=args.seed,
                threads=args.thread_counts,
                rate=rate,
            )
    document = {
        "machine": machine.describe(),
        "seed": args.seed,
        "event_limits": limits,
        "timings": [t.to_dict() for t in timings],
    }
    if args.figure:
        from ide_ref import figures

        figures.roofline(
            [
                (f"{t.preset}, {t.dtype}, threads: {t.threads}", t.firing_rate, t.events_per_second / t.threads)
                for t in timings
            ],
            limits=limits,
            dense=rate / 2 / machine.most_threads(),
            path=args.figure,
        )
    _print(args, document, steps.table(timings, limits))
    return 0


def data_sets(args: argparse.Namespace) -> int:
    """``ide-ref data``."""
    from ide_ref.datasets import fetch, status

    if args.download:
        print(f"{args.download}: in {fetch(args.download, progress=True)}", file=sys.stderr)
    found = status(data_dir=args.data_dir)
    document = {
        s.info.name: {
            "title": s.info.title,
            "found": s.found,
            "path": str(s.path) if s.path else None,
            "train": s.n_train,
            "test": s.n_test,
            "problem": s.problem,
            "how_to_get": s.info.how_to_get,
            "licence": s.info.licence,
        }
        for s in found
    }
    lines = []
    for s in found:
        if s.found:
            lines.append(f"{s.info.name:<14} found    {s.n_train:,} + {s.n_test:,} in {s.path}")
        else:
            state = "unusable" if s.problem else "missing"
            lines.append(f"{s.info.name:<14} {state:<8} {s.problem or s.info.how_to_get}")
        lines.append(f"{'':<14} {s.info.title}; {s.info.licence}")
    _print(args, document, "\n".join(lines))
    return 0
