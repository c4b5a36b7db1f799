"""The training loop: batches, metrics, files, interruption.

A training is a walk from one `Checkpoint` to the next, a batch per step. Nothing else is carried along, so a
training stopped between any two batches and resumed goes the same way, bit for bit.

Source: ``docs/long-runs.md``.
"""

from __future__ import annotations

import json
import math
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from ide_ref import _checks, _threads
from ide_ref._files import write_atomically
from ide_ref.datasets import Dataset
from ide_ref.equilibrium import contraction
from ide_ref.implicit import Backward
from ide_ref.maps import freeze, read_out
from ide_ref.network import Network
from ide_ref.presets import Preset, Recipe
from ide_ref.simulation import simulate
from ide_ref.solvers import NotConverged
from ide_ref.theory import verdict
from ide_ref.training import checkpoint as checkpoints
from ide_ref.training import losses
from ide_ref.training.checkpoint import Checkpoint
from ide_ref.training.evaluation import evaluate, load_batch, statistics
from ide_ref.training.losses import Loss, cross_entropy
from ide_ref.training.schedule import learning_rate
from ide_ref.training.step import NotFinite, optimiser, training_step

CHECKPOINT, METRICS, RUN = checkpoints.NAME, "metrics.jsonl", "run.json"

PATIENCE = 2.0
"""Seconds without a batch after which a training says what it is doing."""

_PURPOSES = ("init", "order", "batch")


class Diverged(RuntimeError):
    """The training cannot go on: a loss or weight is not finite, or (BETA) was not solved."""


@dataclass(frozen=True)
class Training:
    """The end of a call of `train`."""

    checkpoint: Checkpoint
    """The last state, as it is on disk."""
    stopped_by: int | Literal["callback"] | None = None
    """Number of the signal that interrupted the training, or that the callback did."""

    @property
    def best_epoch(self) -> int:
        """The first epoch, from 1, with the highest test accuracy; 0 before any is finished."""
        accuracies = [line["test_accuracy"] for line in self.checkpoint.history]
        return 1 + accuracies.index(max(accuracies)) if accuracies else 0

    def summary(self) -> dict[str, Any]:
        """Last and best test accuracy (0 to 1), seconds per epoch, γ and (COND) in words; None before any epoch."""
        history = self.checkpoint.history
        return {
            "epochs": len(history),
            "last_accuracy": history[-1]["test_accuracy"] if history else None,
            "best_accuracy": history[self.best_epoch - 1]["test_accuracy"] if history else None,
            "best_epoch": self.best_epoch,
            "seconds_per_epoch": sum(line["seconds"] for line in history) / len(history) if history else None,
            "contraction": self.checkpoint.contraction,
            "condition": self.checkpoint.condition,
            "interrupted": self.stopped_by is not None,
        }


def generator(
    seed: int, purpose: Literal["init", "order", "batch"], epoch: int = 0, step: int = 0
) -> np.random.Generator:
    """The random numbers of one purpose at one place of a training, whatever was drawn elsewhere."""
    key = (_PURPOSES.index(purpose), epoch, step)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def begin(preset: Preset, seed: int) -> Checkpoint:
    """A training before its first batch."""
    _checks.kind("preset", preset, Preset)
    _checks.whole("seed", seed, 0)
    recipe, network = preset.recipe, preset.network
    params = network.init(generator(seed, "init"), dtype=recipe.dtype)
    velocity = optimiser(recipe).start(params, network.trainable)
    return Checkpoint(preset, seed, params, velocity, 0, {}, ())


def train(
    preset: Preset | Network,
    data: Dataset,
    recipe: Recipe | None = None,
    *,
    out: str | Path,
    seed: int = 0,
    resume: bool = False,
    callback: Callable[[Checkpoint, Literal["step", "epoch"]], object] | None = None,
    loss: Loss | None = None,
    check_loss: bool = False,
    command: Sequence[str] = (),
    log: TextIO | None = None,
) -> Training:
    """Train a network and log its course.

    Writes into the folder `out`: ``run.json`` (what is needed to repeat it, and the outcome),
    ``metrics.jsonl`` (a line per epoch) and ``checkpoint.safetensors`` (at the start, after each epoch, and
    when interrupted). Each file is replaced as a whole. The first SIGINT or SIGTERM ends the training after
    the current batch, a second SIGINT at once.

    ``docs/long-runs.md`` explains each field of a line of the metrics.

    Parameters
    ----------
    preset : Preset or Network
        A network of one's own needs a recipe.
    data : Dataset
        Gives mean and std where the recipe leaves them open.
    recipe : Recipe, optional
        In place of the preset's.
    out : path
        Made if missing.
    resume : bool
        Go on from the checkpoint in `out`; otherwise a training in `out` is an error.
    callback : callable, optional
        Called after each batch with the state, which is not to be written into, and "step", and after each epoch with
        the state and "epoch". What counts as true ends the training as an interruption does: saved, to be resumed.
    loss : callable, optional
        In place of the recipe's cross-entropy, see `ide_ref.training.losses.Loss`; for the test loss, too. It is not
        saved: give the same when resuming.
    check_loss : bool
        Hold the gradient of `loss` against differences on the first batch, see `ide_ref.training.losses.check_loss`.
    command : sequence of str
        For ``run.json``.
    log : text stream, optional
        Gets a progress bar and a line per epoch, which says so where (COND) does not hold.

    Raises
    ------
    ValueError
        `out` holds a training and `resume` is off, or holds none or another and `resume` is on; data that
        do not fit the network; a network without a recipe; a loss whose gradient is wrong.
    OSError
        `out` cannot be written.
    Diverged
        Naming epoch and batch. The last checkpoint stays.
    """
    from tqdm import tqdm

    _checks.kind("data", data, Dataset)
    _checks.whole("seed", seed, 0)
    out = _checks.path("out", out)
    preset = _prepared(preset, data, recipe)
    if callback is not None and not callable(callback):
        raise ValueError(f"callback is of type {type(callback).__name__}; expected a function of state and event")
    if loss is not None and preset.recipe.label_smoothing:
        given = f"label_smoothing is {preset.recipe.label_smoothing}"
        raise ValueError(f"{given}, but that is of the cross-entropy; leave it out where loss is given")
    load_batch(preset, data, "train", [0])
    if loss is not None:
        # What it returns tells whether it fits, before anything is written.
        y = data.y_train[: preset.recipe.batch_size]
        losses.evaluated(loss, np.zeros((len(y), preset.n_classes), preset.recipe.dtype), y)
    if check_loss:
        _check_loss(preset, data, seed, loss)
    state = _open(preset, seed, out, resume)
    about = _about(preset, data, seed, command, state)
    # The largest file first: when the disk is too full for it, nothing else lies there.
    checkpoints.save(out / CHECKPOINT, state)
    _write_logs(out, about, state)
    n_batches = math.ceil(len(data.y_train) / preset.recipe.batch_size)
    stopped_by: int | Literal["callback"] | None = None

    def tell(event: Literal["step", "epoch"]) -> None:
        if callback is not None and callback(state, event):
            raise _Stopped("callback")

    # What overflows is found by the loss or the weights being no longer finite, and reported with its place.
    quiet = np.errstate(over="ignore", invalid="ignore")
    work = preset.network.n_multiplications * preset.recipe.batch_size
    with _stop_signals(log) as check, quiet, _threads.fit(work), _long_start(log) as started:
        try:
            while state.epoch < preset.recipe.epochs:
                order = generator(seed, "order", state.epoch).permutation(len(data.y_train))
                chunks = np.split(order, range(preset.recipe.batch_size, len(order), preset.recipe.batch_size))
                left, title = chunks[state.step :], f"epoch {state.epoch + 1}/{preset.recipe.epochs}"
                no_bar = log is None or not log.isatty()
                for chunk in tqdm(left, title, n_batches, initial=state.step, file=log, disable=no_bar, leave=False):
                    check()
                    state = _train_batch(state, data, chunk, n_batches, loss)
                    started()
                    tell("step")
                state = _end_epoch(state, data, n_batches, check, loss)
                checkpoints.save(out / CHECKPOINT, state)
                _write_logs(out, about, state)
                if log is not None:
                    log.write(_epoch_line(state) + "\n")
                tell("epoch")
        except _Stopped as stopped:
            stopped_by = stopped.args[0]
            checkpoints.save(out / CHECKPOINT, state)
    result = Training(state, stopped_by)
    _write_logs(out, {**about, "result": result.summary()}, state)
    return result


def _prepared(preset: Preset | Network, data: Dataset, recipe: Recipe | None) -> Preset:
    """What is trained, as it comes back from a checkpoint: plain numbers and tuples, also for mean and std."""
    _checks.kind("preset", preset, Preset, Network)
    if recipe is not None:
        _checks.kind("recipe", recipe, Recipe)
    if isinstance(preset, Network):
        if recipe is None:
            raise ValueError("recipe is missing; a network of one's own needs an ide_ref.presets.Recipe")
        preset = Preset.of(preset, recipe, name=data.name)
    recipe = preset.recipe if recipe is None else recipe
    mean, std = statistics(recipe, data)
    return Preset.from_dict(replace(preset, recipe=replace(recipe, mean=mean, std=std)).to_dict())


def _check_loss(preset: Preset, data: Dataset, seed: int, loss: Loss | None) -> None:
    """On the logits of the training's first batch, as the network is drawn."""
    rng = generator(seed, "batch")
    order = generator(seed, "order").permutation(len(data.y_train))
    x, y = load_batch(preset, data, "train", order[: preset.recipe.batch_size], rng=rng)
    frozen = freeze(preset.network, begin(preset, seed).params, x, training=True, rng=rng)
    logits = read_out(frozen, simulate(frozen, x, preset.recipe.n_steps))
    smoothed = partial(cross_entropy, label_smoothing=preset.recipe.label_smoothing)
    losses.check_loss(smoothed if loss is None else loss, logits, y)


def _open(preset: Preset, seed: int, out: Path, resume: bool) -> Checkpoint:
    path = out / CHECKPOINT
    if resume:
        if not path.is_file():
            raise ValueError(f"{out}: holds no {CHECKPOINT} to resume; leave out --resume to start a training there")
        state = checkpoints.load(path)
        checkpoints.require_same(state, preset, seed, path=path)
        return replace(state, preset=preset)
    if any((out / name).exists() for name in (CHECKPOINT, METRICS, RUN)):
        raise ValueError(f"{out}: holds a training already; continue it with --resume or choose another --out")
    state = begin(preset, seed)
    out.mkdir(parents=True, exist_ok=True)
    return state


def _rate(state: Checkpoint, n_batches: int) -> float:
    r, step = state.preset.recipe, state.epoch * n_batches + state.step
    plan: dict[str, Any] = {"milestones": r.milestones, "gamma": r.gamma, "warmup_steps": r.warmup_steps}
    plan |= {"schedule": r.schedule, "total_steps": r.epochs * n_batches}
    return learning_rate(r.lr, epoch=state.epoch, step=step, **plan)


def _train_batch(
    state: Checkpoint, data: Dataset, indices: np.ndarray, n_batches: int, loss: Loss | None = None
) -> Checkpoint:
    began = time.perf_counter()
    preset = state.preset
    rng = generator(state.seed, "batch", state.epoch, state.step)
    x, y = load_batch(preset, data, "train", indices, rng=rng)
    rate = _rate(state, n_batches)
    try:
        done = training_step(preset, state.params, state.velocity, x, y, rate=rate, rng=rng, loss=loss)
    except (NotFinite, NotConverged) as error:
        tol, remedy = preset.recipe.tol, "a smaller learning rate"
        if isinstance(error, NotConverged):
            remedy = "a larger tol, another solver or a smaller learning rate"
            if preset.recipe.dtype == "float32" and tol < 1e-6:
                remedy = f"dtype float64, as rounding in float32 leaves more than {tol:.0e}, or a larger tol"
        place = f"epoch {state.epoch + 1}, batch {state.step + 1}"
        kept = f"the checkpoint after epoch {state.epoch} is kept"
        raise Diverged(f"{place}: {error}; {kept}, try {remedy}") from None
    back, last = done.backward, state.step == n_batches - 1
    totals = {
        "samples": len(y),
        "loss": done.loss * len(y),
        "correct": done.n_correct,
        "spikes": int(done.rates.n_spikes.sum()),
    }
    if isinstance(back, Backward):
        totals["iterations"] = back.solution.iterations
    totals = {name: state.totals.get(name, 0) + value for name, value in totals.items()}
    if isinstance(back, Backward):
        totals["residual"] = max(state.totals.get("residual", 0.0), float(back.solution.relative.max()))
        if last:
            totals["certificate"] = float(back.certificate.max())
    if last:
        totals["contraction"] = contraction(back.frozen)
    totals["seconds"] = state.totals.get("seconds", 0.0) + time.perf_counter() - began
    return replace(state, params=done.params, velocity=done.velocity, step=state.step + 1, totals=totals)


def _end_epoch(
    state: Checkpoint, data: Dataset, n_batches: int, check: Callable[[], None], loss: Loss | None
) -> Checkpoint:
    began = time.perf_counter()
    tested = evaluate(state.preset, state.params, data, between=check, loss=loss or cross_entropy)
    gamma = contraction(freeze(state.preset.network, state.params))
    totals, recipe = state.totals, state.preset.recipe
    line = {
        "epoch": state.epoch + 1,
        "lr": _rate(replace(state, step=n_batches - 1), n_batches),
        "train_loss": totals["loss"] / totals["samples"],
        "train_accuracy": totals["correct"] / totals["samples"],
        "test_loss": tested.loss,
        "test_accuracy": tested.accuracy,
        "firing_rate": totals["spikes"] / (totals["samples"] * recipe.n_steps * state.preset.network.state_size),
        # None where nothing was solved.
        "solver_iterations": totals["iterations"] / n_batches if "iterations" in totals else None,
        "solver_residual": totals.get("residual"),
        "certificate": totals["certificate"] if math.isfinite(totals.get("certificate", math.inf)) else None,
        "contraction": totals["contraction"],
        checkpoints.CONTRACTION: gamma,
        "condition_holds": gamma < 1,
        "seconds": totals["seconds"],
        "test_seconds": time.perf_counter() - began,
    }
    return replace(state, step=0, totals={}, history=(*state.history, line))


def _about(preset: Preset, data: Dataset, seed: int, command: Sequence[str], state: Checkpoint) -> dict[str, Any]:
    import numba

    return {
        "preset": preset.to_dict(),
        "seed": seed,
        "parameters": preset.network.n_parameters,
        "data": {"name": data.name, "train": len(data.y_train), "test": len(data.y_test), "notice": data.notice},
        "command": list(command),
        "resumed_at": {"epoch": state.epoch, "batch": state.step} if state.epoch or state.step else None,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": {"system": platform.system(), "cpu": cpu_model(), "threads": numba.get_num_threads()},
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that results depend on."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "scipy", "numba")},
        "ide_ref": sys.modules["ide_ref"].__version__,
    }


def cpu_model() -> str:
    """The processor's name, as far as the system tells."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _write_logs(out: Path, about: dict[str, Any], state: Checkpoint) -> None:
    write_atomically(out / RUN, (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode())
    lines = (json.dumps(line) + "\n" for line in state.history)
    write_atomically(out / METRICS, "".join(lines).encode())


def _epoch_line(state: Checkpoint) -> str:
    line = state.history[-1]
    gamma = line[checkpoints.CONTRACTION]
    return (
        f"epoch {line['epoch']:3d}/{state.preset.recipe.epochs}  loss {line['train_loss']:.4f}  "
        f"train {line['train_accuracy']:7.2%}  test {line['test_accuracy']:7.2%}  lr {line['lr']:.3g}  "
        f"rate {line['firing_rate']:.4f}  gamma {gamma:.3f}  {line['seconds'] + line['test_seconds']:.1f} s"
        + ("" if gamma < 1 else f"  {verdict(gamma)}")
    )


@contextmanager
def _long_start(log: TextIO | None) -> Iterator[Callable[[], None]]:
    """Say why nothing is seen if the first batch takes long; what this yields is to be called after it."""
    if log is None:
        yield lambda: None
        return
    said = "the first batch also compiles what this machine has not run yet, once per version\n"
    timer = threading.Timer(PATIENCE, log.write, [said])
    timer.daemon = True
    timer.start()
    try:
        yield timer.cancel
    finally:
        timer.cancel()


class _Stopped(Exception):
    """With the signal's number, or "callback"."""


@contextmanager
def _stop_signals(log: TextIO | None) -> Iterator[Callable[[], None]]:
    """Turn the first SIGINT or SIGTERM into `_Stopped`, raised by the next call of what this yields."""
    received: list[int] = []

    def handle(signum: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(signum)
        if log is not None:
            log.write("\nstopping after this batch; Ctrl-C again to stop at once\n")

    def check() -> None:
        if received:
            raise _Stopped(received[0])

    # Signals arrive in the main thread, and only there may handlers be set.
    main = threading.current_thread() is threading.main_thread()
    before = {signum: signal.signal(signum, handle) for signum in (signal.SIGINT, signal.SIGTERM) if main}
    try:
        yield check
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
