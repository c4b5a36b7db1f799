"""``ide-ref sweep``: presets trained over seeds, neurons, solvers and fields of the recipe, several at a time."""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import math
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ide_ref.cli import _common

if TYPE_CHECKING:
    from ide_ref.presets import Preset
    from ide_ref.training.loop import Training

FAILED = 1
_JSON, _CSV = "sweep.json", "sweep.csv"
_OF_PRESET = ("dropout", "norm")  # what `--recipe` can vary besides a recipe's fields


def add(p: argparse.ArgumentParser) -> None:
    p.add_argument("preset", metavar="PRESET", nargs="+")
    p.add_argument("--out", metavar="DIR", required=True, help="folder of a folder for each training; resumed if there")
    p.add_argument("--seeds", default="0,1,2", metavar="S,S", help="default 0,1,2")
    p.add_argument("--neurons", choices=("lif", "if"), nargs="+", default=["lif"], help="default lif")
    p.add_argument("--solvers", nargs="+", metavar="NAME", help=f"of (BETA): {', '.join(_common.SOLVERS)}")
    p.add_argument(
        "--recipe",
        action="append",
        default=[],
        metavar="FIELD=V[,V]",
        help="of the recipe, e.g. lr=0.05,0.1 or epochs=3, dropout=0,0.2 or norm=kernel; fast: that recipe, see train",
    )
    p.add_argument(
        "--target", type=float, metavar="PERCENT", help="test accuracy: also tell the seconds until it was reached"
    )
    p.add_argument("--executor", choices=("processes", "mpi", "dask"), default="processes", help="default processes")
    p.add_argument("--scheduler", metavar="ADDRESS", help="of --executor dask (default: one on this machine)")
    p.add_argument("--workers", type=_common.count, metavar="N", help="trainings at a time (default: as threads allow)")
    p.add_argument("--threads", type=_common.count, default=1, metavar="N", help="of each training (default 1)")


@dataclass(frozen=True)
class Job:
    """One training."""

    name: str
    """Of its folder; unique in a sweep."""
    row: str
    """The same without the seed."""
    preset: Preset
    seed: int
    out: Path
    data_dir: str | None
    source: str | None
    threads: int
    target: float | None = None
    """Test accuracy, 0 to 1."""
    command: tuple[str, ...] = ()
    """Words of the sweep, for the training's own notes."""


def run(args: argparse.Namespace) -> int:
    jobs, out = _jobs(args), Path(args.out)
    open_executor = _executor(args, len(jobs))
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    for job, result in _outcomes(open_executor, jobs):
        found[job.name] = {"name": job.name, "row": job.row, "seed": job.seed, **result}
        told = result.get("failed") or f"{result['last_accuracy']:.2%}"
        _common.tell(f"[{len(found)}/{len(jobs)}] {job.name}: {told}")
    trainings = [found[job.name] for job in jobs]
    document = {"sweep": summary(trainings), "trainings": trainings}
    (out / _JSON).write_text(_common.as_json(document) + "\n", encoding="utf-8")
    (out / _CSV).write_text(as_csv(trainings), encoding="utf-8")
    _common.print_result(args, document, f"{table(document['sweep'])}\nwritten: {out}/{{{_JSON}, {_CSV}}}")
    failed = [t["name"] for t in trainings if "failed" in t]
    if failed:
        _common.tell(f"ide-ref sweep: failed: {', '.join(failed)}; the same command tries them again")
    return FAILED if failed else 0


def _jobs(args: argparse.Namespace) -> list[Job]:
    """Every combination, refused before anything is trained where one is not valid."""
    from ide_ref import presets
    from ide_ref.presets import Recipe

    seeds = _common.whole_numbers("--seeds", args.seeds, 0)
    if args.target is not None and not 0 < args.target <= 100:
        raise ValueError(f"--target is {args.target:g}; expected a test accuracy in per cent, above 0 and up to 100")
    target = None if args.target is None else args.target / 100
    varied: dict[str, list[Any]] = {"solver": args.solvers} if args.solvers else {}
    recipe: Literal["paper", "fast"] = "fast" if "fast" in args.recipe else "paper"
    for option in args.recipe:
        if option == "fast":
            continue
        name, equals, text = option.partition("=")
        if not equals or name not in {*_OF_PRESET, *(f.name for f in fields(Recipe))}:
            wanted = f"a field of ide_ref.presets.Recipe or {' or '.join(_OF_PRESET)}, or the word fast"
            raise ValueError(f"--recipe is {option!r}; expected FIELD=VALUE[,VALUE], {wanted}")
        try:
            varied[name] = [tuple(v) if isinstance(v, list) else v for v in json.loads(f"[{text}]")]
        except ValueError:
            varied[name] = text.split(",")
    jobs = []
    for name, neuron, *values, seed in itertools.product(args.preset, args.neurons, *varied.values(), seeds):
        changes = dict(zip(varied, values, strict=True))
        told = [f"{field}={value}" for field, value in changes.items() if len(varied[field]) > 1]
        preset = presets.load(name, neuron=neuron, recipe=recipe)
        if args.data not in (None, preset.recipe.dataset):
            # Statistics of another data set say nothing of this one; those that are asked for do.
            changes = {"mean": None, "std": None} | changes | {"dataset": args.data}
        of_preset = {field: changes.pop(field) for field in _OF_PRESET if field in changes}
        preset = replace(preset, recipe=replace(preset.recipe, **changes), **of_preset)
        named = f"{name}-fast" if recipe == "fast" else name
        row = re.sub(r"[^\w.=+-]+", "_", "-".join([named, neuron, *told]))
        where = Path(args.out), args.data_dir, args.data
        jobs.append(Job(f"{row}-s{seed}", row, preset, seed, *where, args.threads, target, ("ide-ref", *args.words)))
    if len({job.name for job in jobs}) < len(jobs):
        raise ValueError("some combination is asked for twice; expected presets, neurons and values that differ")
    return jobs


def _executor(args: argparse.Namespace, n_jobs: int) -> Callable[[int | None], Executor]:
    """How an executor is opened, for so many workers or for as many as the options say."""
    if args.scheduler is not None and args.executor != "dask":
        raise ValueError("--scheduler is of --executor dask; expected that with it")
    if args.executor == "mpi":
        from mpi4py.futures import MPIPoolExecutor

        return lambda n: MPIPoolExecutor(n or args.workers)
    if args.executor == "dask":
        from distributed import Client

        client = Client(args.scheduler, **({} if args.scheduler else {"n_workers": args.workers}))
        return lambda n: client.get_executor(pure=False)
    import multiprocessing
    import os
    from concurrent.futures import ProcessPoolExecutor

    workers = args.workers or max(1, min(n_jobs, (os.cpu_count() or 1) // args.threads))
    # A forked child of a process whose kernels have run has but one thread.
    context = multiprocessing.get_context("spawn")
    return lambda n: ProcessPoolExecutor(n or workers, mp_context=context)


def _outcomes(
    open_executor: Callable[[int | None], Executor], jobs: Sequence[Job]
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Trainings as they end. Those that a dying worker took along are tried again, each by a worker of its own."""
    lost: list[Job] = []
    executor, running = open_executor(None), {}
    try:
        running = {executor.submit(train_one, job): job for job in jobs}
        for future in as_completed(running):
            if isinstance(future.exception(), BrokenExecutor):
                lost.append(running[future])
            else:
                yield running[future], _result(future)
    finally:
        # Dask's executor knows no cancel_futures.
        for future in running:
            future.cancel()
        executor.shutdown()
    for job in lost:
        with open_executor(1) as alone:
            yield job, _result(alone.submit(train_one, job))


def _result(future: Future[dict[str, Any]]) -> dict[str, Any]:
    """What `train_one` returned, or why it did not."""
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, BrokenExecutor):
        return {"failed": "its process was ended from outside, perhaps for want of memory"}
    return {"failed": _in_a_line(error)}


def _in_a_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def train_one(job: Job) -> dict[str, Any]:
    """Train, or go on where an earlier sweep stopped; the summary, or why there is none."""
    import numba

    from ide_ref.training import checkpoint, loop
    from ide_ref.training.evaluation import load_data

    out = job.out / job.name
    try:
        numba.set_num_threads(min(job.threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        there = any((out / name).is_file() for name in (loop.CHECKPOINT, loop.PREVIOUS))
        if there:
            state = loop.resumable(out)
            recipe, saved = job.preset.recipe, state.preset.recipe
            recipe = replace(recipe, mean=recipe.mean or saved.mean, std=recipe.std or saved.std)
            checkpoint.require_same(state, replace(job.preset, recipe=recipe), job.seed, path=out)
            if state.epoch == recipe.epochs:
                return _told(job, loop.Training(state))
        data = load_data(job.preset, data_dir=job.data_dir, limit=job.preset.recipe.limit, source=job.source)
        done = loop.train(job.preset, data, out=out, seed=job.seed, resume=there, command=job.command)
    except Exception as error:
        return {"failed": _in_a_line(error)}
    if done.stopped_by is not None:
        return {"failed": "interrupted, and saved"}
    return _told(job, done)


def _told(job: Job, done: Training) -> dict[str, Any]:
    timed = {} if job.target is None else {"target": job.target, "seconds_to_target": done.seconds_to(job.target)}
    return {**done.summary(), **timed}


def summary(trainings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over the seeds of each row: how many ended and failed, and mean, deviation and best of their test accuracies.

    With a target also the median of the seconds until it was reached; None where half of them did not.
    """
    rows = []
    for name, group in itertools.groupby(sorted(trainings, key=lambda t: t["row"]), key=lambda t: t["row"]):
        of_row = list(group)
        last = [t["last_accuracy"] for t in of_row if "failed" not in t]
        best = [t["best_accuracy"] for t in of_row if "failed" not in t]
        rows.append(
            {
                "row": name,
                "trainings": len(last),
                "failed": len(of_row) - len(last),
                "mean": statistics.fmean(last) if last else None,
                "deviation": statistics.stdev(last) if len(last) > 1 else None,
                "best": max(best, default=None),
            }
        )
        if any("seconds_to_target" in t for t in of_row):
            timed = (t.get("seconds_to_target") for t in of_row)
            median = statistics.median(math.inf if seconds is None else seconds for seconds in timed)
            rows[-1]["seconds_to_target"] = median if math.isfinite(median) else None
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Of `summary`, accuracies in per cent."""
    width = max(len(row["row"]) for row in rows)
    timed = any("seconds_to_target" in row for row in rows)
    lines = [f"{'':{width}}  trained  failed     mean  deviation     best" + "  to target" * timed]
    for row in rows:
        mean, deviation, best = (
            "—" if row[key] is None else f"{row[key]:.2%}" for key in ("mean", "deviation", "best")
        )
        counts = f"{row['row']:{width}}  {row['trainings']:7d}  {row['failed']:6d}"
        seconds = row.get("seconds_to_target")
        to_target = f"  {'—' if seconds is None else f'{seconds:.1f} s':>9}" if timed else ""
        lines.append(f"{counts}  {mean:>7}  {deviation:>9}  {best:>7}{to_target}")
    return "\n".join(lines)


def as_csv(trainings: Sequence[dict[str, Any]]) -> str:
    """A line for each training."""
    names = list(dict.fromkeys(itertools.chain.from_iterable(trainings)))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(trainings)
    return text.getvalue()
