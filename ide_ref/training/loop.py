"""The training loop: batches, metrics, files, interruption.

A training is a walk from one `Checkpoint` to the next, a batch per step. Nothing else is carried along, so a
training stopped between any two batches and resumed goes the same way, bit for bit.

Source: ``docs/long-runs.md``.
"""

from __future__ import annotations

import io
import json
import math
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TextIO, cast

import numpy as np

from ide_ref import _checks, _threads, parallel
from ide_ref._files import sweep, write_atomically
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
from ide_ref.training._lock import locked
from ide_ref.training.checkpoint import Checkpoint
from ide_ref.training.evaluation import evaluate, load_batch, statistics
from ide_ref.training.losses import Loss, cross_entropy
from ide_ref.training.schedule import learning_rate, time_steps
from ide_ref.training.step import NotFinite, optimiser, training_step

CHECKPOINT, PREVIOUS, METRICS, RUN = checkpoints.NAME, checkpoints.PREVIOUS, "metrics.jsonl", "run.json"

CURVES = "curves.png"
"""Drawn by the command line."""

SAVE_EVERY = 600.0
"""Seconds of a training that a kill loses at most."""

RETRY = 60.0
"""Seconds until a checkpoint that could not be written is tried again."""

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

    def seconds_to(self, accuracy: float) -> float | None:
        """Seconds of training and testing until a test accuracy (0 to 1) was first reached; None where it was not."""
        seconds = 0.0
        for line in self.checkpoint.history:
            seconds += line["seconds"] + line["test_seconds"]
            if line["test_accuracy"] >= accuracy:
                return seconds
        return None

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
    save_every: float = SAVE_EVERY,
    command: Sequence[str] = (),
    log: TextIO | None = None,
    group: parallel.Group | None = None,
) -> Training:
    """Train a network and log its course.

    Writes into the folder `out`: ``run.json`` (what is needed to repeat it, and the outcome),
    ``metrics.jsonl`` (a line per epoch) and ``checkpoint.safetensors`` (at the start, after each epoch,
    within one by time, and when interrupted), whose predecessor at the end of an epoch is kept as
    ``checkpoint.previous.safetensors``. Each file is replaced as a whole; where the disk is full, a
    RuntimeWarning says so and it is tried again later. The first SIGINT, SIGTERM or SIGHUP ends the training
    after the current batch, or before it where that takes long, a second SIGINT at once. The folder is locked.

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
    save_every : float
        Seconds after which a checkpoint is written within an epoch.
    command : sequence of str
        For ``run.json``.
    log : text stream, optional
        Gets a progress bar and a line per epoch, which says so where (COND) does not hold. One that breaks is
        given up, and the training goes on.
    group : ide_ref.parallel.Group, optional
        Ranks that train together, each by the same call; the first alone reads and writes `out` and the log.

    Raises
    ------
    ValueError
        `out` holds a training and `resume` is off, or holds none or another and `resume` is on, or another
        process trains there; data that do not fit the network; a network without a recipe; a loss whose
        gradient is wrong.
    OSError
        `out` cannot be written, at the start or the end.
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
    if group is not None:
        parallel.check(preset)
        log = log if group.is_first else None
    load_batch(preset, data, "train", [0])
    if loss is not None:
        # What it returns tells whether it fits, before anything is written.
        y = data.y_train[: preset.recipe.batch_size]
        losses.evaluated(loss, np.zeros((len(y), preset.n_classes), preset.recipe.dtype), y)
    if check_loss:
        _check_loss(preset, data, seed, loss)
    _checks.positive("save_every", save_every)
    log = None if log is None else cast(TextIO, _Log(log))
    n_batches = math.ceil(len(data.y_train) / preset.recipe.batch_size)
    stopped_by: int | Literal["callback"] | None = None

    def tell(event: Literal["step", "epoch"]) -> None:
        if callback is None:
            return
        if callback(state, event) if group is None else group.first(lambda: bool(callback(state, event))):
            raise _Stopped("callback")

    # What overflows is found by the loss or the weights being no longer finite, and reported with its place.
    quiet = np.errstate(over="ignore", invalid="ignore")
    work = preset.network.n_multiplications * preset.recipe.batch_size
    stopping, compiling = _stop_signals(log, group), _long_start(log)
    opened = _opened(partial(_folder, preset, data, seed, out, resume, command, save_every), group)
    with opened as (state, files), stopping as check, quiet, _threads.fit(work), compiling as started:
        try:
            while state.epoch < preset.recipe.epochs:
                order = generator(seed, "order", state.epoch).permutation(len(data.y_train))
                chunks = np.split(order, range(preset.recipe.batch_size, len(order), preset.recipe.batch_size))
                left, title = chunks[state.step :], f"epoch {state.epoch + 1}/{preset.recipe.epochs}"
                no_bar = log is None or not log.isatty()
                for chunk in tqdm(left, title, n_batches, initial=state.step, file=log, disable=no_bar, leave=False):
                    check()
                    state = _train_batch(state, data, chunk, n_batches, loss, group)
                    started()
                    tell("step")
                    files.keep(state)
                state = _end_epoch(state, data, n_batches, check, loss, group)
                files.keep(state)
                if group is not None and (slow := group.slow()) and log is not None:
                    log.write(f"epoch {state.epoch}: {slow}\n")
                if log is not None:
                    log.write(_epoch_line(state) + "\n")
                tell("epoch")
        except _Stopped as stopped:
            stopped_by = stopped.args[0]
        files.keep(state, last=True)
        result = Training(state, stopped_by)
        files.write_logs(result)
    return result


class _Log:
    """A log that may break, as when a terminal closes: what nobody can read ends no training."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = io.StringIO()


class _Files:
    """What a training has on disk, and when that is due again."""

    def __init__(self, out: Path, about: dict[str, Any], state: Checkpoint, save_every: float) -> None:
        self._out, self._about, self._save_every = out, about, save_every
        # The largest file first: when the disk is too full for it, nothing else lies there.
        checkpoints.save(out / CHECKPOINT, state)
        self.saved, self._due = state, time.monotonic() + save_every
        self.write_logs()

    def keep(self, state: Checkpoint, *, last: bool = False) -> None:
        """Save a state if it is the end of an epoch or the last was saved long ago; try later if that fails.

        What is the `last` one is saved now, and an OSError says so where it cannot be.
        """
        if state is self.saved or not (last or state.step == 0 or time.monotonic() >= self._due):
            return
        before = self.saved
        try:
            # The end of an epoch is kept when the next checkpoint takes its place.
            previous = self._out / PREVIOUS if before.step == 0 else None
            checkpoints.save(self._out / CHECKPOINT, state, previous=previous)
            self.saved, self._due = state, time.monotonic() + self._save_every
            if state.epoch > before.epoch:
                self.write_logs()
        except OSError as error:
            if last:
                raise
            self._due = time.monotonic() + min(RETRY, self._save_every)
            told = f"{self._out}: {error.strerror or error}; make room there: the training goes on"
            _checks.warn(f"{told} and tries again, but until then a kill loses what is not saved")

    def write_logs(self, result: Training | None = None) -> None:
        about = self._about if result is None else {**self._about, "result": result.summary()}
        # What of a file's name is not UTF-8 becomes what JSON has in its place.
        text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
        write_atomically(self._out / RUN, text.encode(errors="backslashreplace"))
        lines = (json.dumps(line) + "\n" for line in self.saved.history)
        write_atomically(self._out / METRICS, "".join(lines).encode())

    def remove(self) -> None:
        for name in (CHECKPOINT, METRICS, RUN):
            (self._out / name).unlink(missing_ok=True)


class _NoFiles:
    """What a rank has on disk that is not the first."""

    def keep(self, state: Checkpoint, *, last: bool = False) -> None: ...

    def write_logs(self, result: Training | None = None) -> None: ...


@contextmanager
def _opened(
    folder: Callable[[], AbstractContextManager[tuple[Checkpoint, _Files]]], group: parallel.Group | None
) -> Iterator[tuple[Checkpoint, _Files | _NoFiles]]:
    """The folder of a training, of ranks that of the first, and the state to go on from."""
    if group is None:
        with folder() as opened:
            yield opened
        return
    with ExitStack() as stack:
        files: _Files | _NoFiles = _NoFiles()

        def enter() -> Checkpoint:
            nonlocal files
            state, files = stack.enter_context(folder())
            return state

        yield group.first(enter), files


@contextmanager
def _folder(
    preset: Preset, data: Dataset, seed: int, out: Path, resume: bool, command: Sequence[str], save_every: float
) -> Iterator[tuple[Checkpoint, _Files]]:
    """The folder of a training, this run's alone for as long, and the state to go on from."""
    if resume:
        _found(out)
    else:
        out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        state = _resumed(preset, data, seed, out) if resume else _begun(preset, seed, out)
        sweep(out, CHECKPOINT, METRICS, RUN, CURVES)
        files = _Files(out, _about(preset, data, seed, command, state), state, save_every)
        try:
            yield state, files
        except (MemoryError, ValueError):
            # Of a training that could not even begin nothing is to be in the way of the next try.
            if files.saved.epoch == files.saved.step == 0:
                files.remove()
            raise


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


def _found(out: Path) -> list[Path]:
    """The checkpoints of the training in a folder, the last first; a CheckpointError where there is none."""
    found = [out / name for name in (CHECKPOINT, PREVIOUS) if (out / name).is_file()]
    if not found:
        told = f"holds no {CHECKPOINT} to resume; leave out --resume to start a training there"
        raise checkpoints.CheckpointError(f"{out}: {told}")
    return found


def resumable(out: Path) -> Checkpoint:
    """The checkpoint from which the training in a folder goes on.

    Where it is missing or damaged, that is the previous one, and a RuntimeWarning says so: a training from there
    comes by the same states again.

    Raises
    ------
    CheckpointError
        There is none that can be used.
    """
    found, problem = _found(out), f"{out / CHECKPOINT}: is missing"
    if found[0].name == CHECKPOINT:
        try:
            return checkpoints.load(found[0])
        except checkpoints.Damaged as error:
            if len(found) == 1:
                raise
            problem = str(error).rpartition(";")[0]
    state = checkpoints.load(found[-1])
    _checks.warn(f"{problem}; going on from {PREVIOUS}, after epoch {state.epoch}")
    return state


def _begun(preset: Preset, seed: int, out: Path) -> Checkpoint:
    if any((out / name).exists() for name in (CHECKPOINT, PREVIOUS, METRICS, RUN)):
        raise ValueError(f"{out}: holds a training already; continue it with --resume or choose another --out")
    return begin(preset, seed)


def _resumed(preset: Preset, data: Dataset, seed: int, out: Path) -> Checkpoint:
    state = resumable(out)
    checkpoints.require_same(state, preset, seed, path=out / CHECKPOINT)
    n_samples, told = len(data.y_train), state.totals.get("samples", 0)
    expected = min(state.step * preset.recipe.batch_size, n_samples)
    if told != expected or (told == n_samples and "contraction" not in state.totals):
        given = f"has seen {told} samples in {state.step} batches of its epoch, but the data give {expected}"
        raise checkpoints.CheckpointError(f"{out / CHECKPOINT}: {given}; resume with the data it began with")
    return replace(state, preset=preset)


def _rate(state: Checkpoint, n_batches: int) -> float:
    r, step = state.preset.recipe, state.epoch * n_batches + state.step
    plan: dict[str, Any] = {"milestones": r.milestones, "gamma": r.gamma, "warmup_steps": r.warmup_steps}
    plan |= {"schedule": r.schedule, "total_steps": r.epochs * n_batches}
    return learning_rate(r.lr, epoch=state.epoch, step=step, **plan)


def _of_epoch(preset: Preset, epoch: int) -> Preset:
    """With the T that an epoch's batches take."""
    recipe = preset.recipe
    n_steps = time_steps(recipe.n_steps, recipe.first_steps, epoch=epoch, epochs=recipe.epochs)
    if n_steps == recipe.n_steps:
        return preset
    now = replace(preset, recipe=replace(recipe, n_steps=n_steps, first_steps=None))
    # It is the same network, which is built on first use.
    now.__dict__["network"] = preset.network
    return now


def _train_batch(
    state: Checkpoint,
    data: Dataset,
    indices: np.ndarray,
    n_batches: int,
    loss: Loss | None = None,
    group: parallel.Group | None = None,
) -> Checkpoint:
    began = time.perf_counter()
    preset = _of_epoch(state.preset, state.epoch)
    rng = generator(state.seed, "batch", state.epoch, state.step)
    x, y = load_batch(preset, data, "train", indices, rng=rng)
    rate = _rate(state, n_batches)
    try:
        done = training_step(preset, state.params, state.velocity, x, y, rate=rate, rng=rng, loss=loss, group=group)
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
    state: Checkpoint,
    data: Dataset,
    n_batches: int,
    check: Callable[[], None],
    loss: Loss | None,
    group: parallel.Group | None,
) -> Checkpoint:
    began = time.perf_counter()
    tested = evaluate(state.preset, state.params, data, between=check, loss=loss or cross_entropy, group=group)
    gamma = contraction(freeze(state.preset.network, state.params))
    totals, n_steps = state.totals, _of_epoch(state.preset, state.epoch).recipe.n_steps
    line = {
        "epoch": state.epoch + 1,
        "lr": _rate(replace(state, step=n_batches - 1), n_batches),
        "n_steps": n_steps,
        "train_loss": totals["loss"] / totals["samples"],
        "train_accuracy": totals["correct"] / totals["samples"],
        "test_loss": tested.loss,
        "test_accuracy": tested.accuracy,
        "firing_rate": totals["spikes"] / (totals["samples"] * n_steps * state.preset.network.state_size),
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
def _stop_signals(log: TextIO | None, group: parallel.Group | None) -> Iterator[Callable[[], None]]:
    """Turn the first SIGINT, SIGTERM or SIGHUP, of any rank, into `_Stopped`, raised by what this yields.

    Where a kernel is at work that takes long, it is raised at once, but for ranks, which wait for each other.
    """
    received: list[int] = []

    def handle(signum: int, frame: object) -> None:
        # A terminal that closes and a batch system may send one after the other; only a person is in a hurry.
        if received and signum == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signum)
        # A long batch is given up; the state is that of the batch before, and the same batch is drawn again.
        at_once = _threads.waiting and group is None
        when = "now; this batch is for later" if at_once else "after this batch; Ctrl-C again to stop at once"
        if log is not None:
            log.write(f"\nstopping {when}\n")
        if at_once:
            raise _Stopped(signum)

    def check() -> None:
        heard = [received] if group is None else group.allgather(received.copy)
        for signums in heard:
            if signums:
                raise _Stopped(signums[0])

    # Signals arrive in the main thread, and only there may handlers be set.
    main = threading.current_thread() is threading.main_thread()
    stopping = [signal.SIGINT, signal.SIGTERM]
    # nohup has it ignored, and so it stays.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        stopping.append(signal.SIGHUP)
    before = {signum: signal.signal(signum, handle) for signum in stopping if main}
    try:
        yield check
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
