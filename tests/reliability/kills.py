"""Kill trainings and resume them: ``python tests/reliability/kills.py [--kills 200] [--seed 0]``.

Each training is a process of its own that runs the command line. It is killed by SIGKILL, SIGTERM, SIGHUP or SIGINT:
three in ten at a step of a write (before a file is opened, with half of its bytes written, before they reach the disk,
before the old file is kept, before the new one takes its place, before the temporary one would be removed), the others
at any time. Then it is resumed, and

- ends with the parameters and velocities of a training that nobody killed, bit for bit,
- leaves no temporary file and no lock,
- had lost at most what ``--save-every`` says, and a batch on either side of that,
- has written no traceback.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

os.environ["NUMBA_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent))

import tiny
from numba.np.ufunc import parallel
from tqdm import tqdm

from ide_ref import __main__, cli, figures, presets
from ide_ref.cli import main as ide_ref
from ide_ref.training import checkpoint, loop

SAVE_EVERY, N_BATCHES = 0.05, 40
SIGNALS = ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT")
IN_WRITES = 0.3
"""Share of the kills."""

Step = Callable[[], None]


class HalfWritten:
    """A file that is open, whose bytes are written in two halves with a step between."""

    def __init__(self, file, step: Step):
        self._file, self._step = file, step

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, data):
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        self._step()
        self._file.write(data[len(data) // 2 :])


def watch_writes(step: Step) -> None:
    """Call `step` before each system call by which a file is written, in this process from now on."""
    plain = builtins.open

    def watched_open(file, mode="r", *args, **kwargs):
        if not str(file).endswith(".tmp"):
            return plain(file, mode, *args, **kwargs)
        step()
        return HalfWritten(plain(file, mode, *args, **kwargs), step)

    builtins.open = watched_open
    for owner, name in ((os, "fsync"), (os, "link"), (os, "replace"), (Path, "unlink")):

        def watched(*args, _call=getattr(owner, name), **kwargs):
            step()
            return _call(*args, **kwargs)

        setattr(owner, name, watched)


def command(*words: str, log: Path, told: Path | None = None, step: Step | None = None) -> int:
    """Start ``ide-ref`` in a process of its own: its number. `told` gets the time at which each batch was done."""
    # Ctrl-C is heard from where the command itself hears it: before that it is Python's.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        return pid
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.dup2(2, 1)
    if told is not None:
        times, batch = os.open(told, os.O_WRONLY | os.O_CREAT), loop._train_batch

        def reported(*args):
            state = batch(*args)
            os.write(times, f"{state.epoch} {state.step} {time.monotonic()}\n".encode())
            return state

        loop._train_batch = reported
    if step is not None:
        watch_writes(step)

    def begun() -> int:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        return ide_ref(words)

    status, cli.main = 1, begun
    try:
        status = __main__.main()
    except BaseException as error:
        os.write(2, f"Traceback: {error!r}".encode())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def lost(folder: Path, told: Path) -> tuple[float, float]:
    """Seconds from the checkpoint to the last batch that was done, and the longest time between two batches."""
    if not (folder / loop.CHECKPOINT).is_file() or not told.is_file():
        return 0.0, 0.0
    state = checkpoint.load(folder)
    times = {(int(e), int(s)): float(t) for e, s, t in map(str.split, told.read_text().splitlines())}
    place = (state.epoch, state.step) if state.step else (state.epoch - 1, N_BATCHES)
    if not times:
        return 0.0, 0.0
    gaps = [b - a for a, b in zip([min(times.values()), *times.values()], times.values(), strict=False)]
    return max(times.values()) - times.get(place, min(times.values())), max(gaps)


def train(words: tuple[str, ...], folder: Path, log: Path, **watched) -> int:
    resume = (folder / loop.CHECKPOINT).is_file() or (folder / loop.PREVIOUS).is_file()
    return command("train", "tiny", *words, "--out", str(folder), *(["--resume"] if resume else []), log=log, **watched)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    rng = random.Random(args.seed)
    # Curves take longer than the training.
    figures.training_curves = lambda *_, **__: None
    presets._TABLE["tiny"] = tiny.preset(epochs=3, limit=8 * N_BATCHES, batch_size=8)
    words = ("--save-every", str(SAVE_EVERY))
    # In memory where that can be had: a disk takes many times as long to write so often.
    work = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    log = work / "log"
    # These locks are one for all processes of a fork, and one that is killed would keep them.
    tqdm.set_lock(threading.RLock())
    parallel._backend_init_process_lock = threading.RLock()
    # Compiled and read here, kernels are there for every process that comes of this one.
    with open(log, "w") as quiet, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        ide_ref(["train", "tiny", *words, "--out", str(work / "warm")])
    began, calls = time.monotonic(), work / "calls"
    counted = os.open(calls, os.O_WRONLY | os.O_CREAT)
    if status_of(train(words, work / "whole", log, told=work / "t", step=lambda: os.write(counted, b"."))):
        sys.exit(log.read_text())
    duration, n_calls = time.monotonic() - began, calls.stat().st_size
    whole = checkpoint.load(work / "whole")
    print(f"a training takes {duration:.2f} s and makes {n_calls} steps of writes", file=sys.stderr)

    failures, kills, in_writes, worst = [], 0, 0, 0.0
    while kills < args.kills:
        folder, told = work / "out", work / "told"
        name = rng.choice(SIGNALS)
        signum = getattr(signal, name)
        if in_write := in_writes < round(IN_WRITES * args.kills):
            at, n = rng.randrange(n_calls), itertools.count()
            place = f"{name} at step {at} of writes"

            def step(n=n, at=at, signum=signum):
                if next(n) == at:
                    signal.raise_signal(signum)

            pid = train(words, folder, log, told=told, step=step)
        else:
            wait = rng.uniform(0, duration)
            place = f"{name} after {wait:.3f} s"
            pid = train(words, folder, log, told=told)
            time.sleep(wait)
            os.kill(pid, signum)
        ended = status_of(pid)
        # One that came too late to stop it is none.
        kills, in_writes = kills + (ended != 0), in_writes + (in_write and ended != 0)
        if ended not in (0, -signum, 128 + signum):
            failures.append(f"{place}: status {ended}")
        seconds, batch = lost(folder, told)
        worst = max(worst, seconds)
        if seconds > SAVE_EVERY + 2 * batch:
            failures.append(f"{place}: lost {seconds:.3f} s, with {batch:.3f} s from batch to batch")
        if status_of(train(words, folder, log)) != 0:
            failures.append(f"{place}: not resumed: {log.read_text()[-500:]}")
            break
        state = checkpoint.load(folder)
        if not (tiny.same(state.params, whole.params) and tiny.same(state.velocity, whole.velocity)):
            failures.append(f"{place}: other weights")
        left = [p.name for p in folder.iterdir() if p.name.startswith(".") or p.name.endswith(".tmp")]
        if left:
            failures.append(f"{place}: left {left}")
        shutil.rmtree(folder)
        told.unlink(missing_ok=True)
        if kills % 20 == 0:
            print(f"{kills} kills", file=sys.stderr)
    if "Traceback" in log.read_text():
        failures.append(f"a traceback: {log.read_text()[-2000:]}")
    shutil.rmtree(work)
    print("\n".join(failures), end="\n" if failures else "")
    print(
        f"{kills} kills, {in_writes} of them within a write: {len(failures)} failures, "
        f"at most {worst:.3f} s lost with --save-every {SAVE_EVERY}"
    )
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
