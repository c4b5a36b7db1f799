"""Trainings that meet what ends others: signals, other runs, damaged files, full disks, logs that break."""

import errno
import io
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from ide_ref import IF, build
from ide_ref.training import _lock, checkpoint, loop

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def data():
    return tiny.data()


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The last state of a training that met nothing."""
    return loop.train(tiny.preset(), data, out=tmp_path_factory.mktemp("whole")).checkpoint


def stopped(data, out, at, **options):
    """A training that is stopped after so many batches and tests, and its state."""
    calls = iter(range(at))
    return loop.train(tiny.preset(), data, out=out, callback=lambda *_: next(calls, None) is None, **options).checkpoint


def ends_as(state, whole):
    return tiny.same(state.params, whole.params) and tiny.same(state.velocity, whole.velocity)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["kills.py", "--kills", "5", "--seed", "1"], "5 kills, 2 of them within a write: 0 failures"),
        (["flips.py", "--flips", "100"], "100 flips: 100 refused, 0 without effect, 0 failures"),
    ],
)
def test_the_long_commands_in_short(command, says):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, HERE / command[0], *command[1:]], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith(says), done.stdout + done.stderr
    assert done.returncode == 0


@pytest.fixture(autouse=True)
def heard():
    """Nothing ignored, as it may be where the tests run in the background or under nohup."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    for signum in before:
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def signals_in_batch(monkeypatch, *signals):
    batch = loop._train_batch

    def signalled(*args):
        for signum in signals:
            signal.raise_signal(signum)
        return batch(*args)

    monkeypatch.setattr(loop, "_train_batch", signalled)


@pytest.mark.parametrize(
    "signals", [["SIGHUP"], ["SIGTERM", "SIGTERM"], ["SIGHUP", "SIGTERM", "SIGHUP"], ["SIGINT", "SIGTERM"]]
)
def test_a_terminal_that_closes_ends_it_saved(data, tmp_path, monkeypatch, signals):
    """Whatever follows the first signal, unless it is a second Ctrl-C."""
    signals = [getattr(signal, name) for name in signals]
    signals_in_batch(monkeypatch, *signals)
    done = loop.train(tiny.preset(), data, out=tmp_path)
    assert (done.stopped_by, done.checkpoint.step) == (signals[0], 1)
    assert checkpoint.load(tmp_path).step == 1
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_what_nohup_ignores_stays_ignored(data, tmp_path, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signals_in_batch(monkeypatch, signal.SIGHUP)
        assert loop.train(tiny.preset(epochs=1), data, out=tmp_path).stopped_by is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_two_checkpoints_are_kept_and_one_within_the_epoch_by_time(data, tmp_path):
    places = []

    def note(state, event):
        found = [tmp_path / name for name in (loop.CHECKPOINT, loop.PREVIOUS)]
        places.append([(s.epoch, s.step) for s in (checkpoint.load(p) for p in found if p.is_file())])

    loop.train(tiny.preset(epochs=2), data, out=tmp_path, save_every=1e-9, callback=note)
    n = tiny.N_BATCHES
    first = [[(0, 0)], *([(0, k), (0, 0)] for k in range(1, n)), [(1, 0), (0, 0)]]
    # The end of an epoch is told when it is saved.
    second = [[(1, 0), (0, 0)], *([(1, k), (1, 0)] for k in range(1, n)), [(2, 0), (1, 0)]]
    assert places == first + second
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [loop.CHECKPOINT, loop.PREVIOUS, loop.METRICS, loop.RUN]
    )


def test_without_that_time_only_epochs_are_saved(data, tmp_path, monkeypatch):
    saved, save = [], checkpoint.save
    monkeypatch.setattr(
        checkpoint, "save", lambda path, state, **o: (saved.append((state.epoch, state.step)), save(path, state, **o))
    )
    loop.train(tiny.preset(), data, out=tmp_path)
    assert saved == [(0, 0), (1, 0), (2, 0), (3, 0)]


def test_what_kills_left_is_swept_by_the_next_run(data, tmp_path):
    left = [f".{name}.12345.tmp" for name in (loop.CHECKPOINT, f"{loop.CHECKPOINT}.kept", loop.METRICS, loop.RUN)]
    for name in (*left, ".mine.tmp", "notes"):
        (tmp_path / name).touch()
    stopped(data, tmp_path, 1)
    names = {p.name for p in tmp_path.iterdir()}
    assert not names & set(left)
    assert {".mine.tmp", "notes"} <= names


HOLD = """
import sys
from pathlib import Path
from ide_ref.training._lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


def test_a_second_run_in_a_folder_is_refused_with_the_name_of_the_first(data, tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        told = f"process {holder.pid} on {socket.gethostname()} writes there; wait for its end"
        with pytest.raises(ValueError, match=told):
            loop.train(tiny.preset(), data, out=tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == [".lock"]
    finally:
        holder.kill()
        holder.communicate()
    # The system's lock ends with its process, though its file is still there.
    assert (tmp_path / ".lock").is_file()
    stopped(data, tmp_path, 1)
    assert not (tmp_path / ".lock").exists()


def test_a_file_that_its_holder_removes_meanwhile_is_no_lock(tmp_path, monkeypatch):
    flock, calls = _lock.fcntl.flock, []

    def late(file, how):
        if not calls:
            (tmp_path / ".lock").unlink()
        calls.append(file)
        return flock(file, how)

    monkeypatch.setattr(_lock.fcntl, "flock", late)
    with _lock.locked(tmp_path):
        assert len(calls) == 2
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_where_there_are_no_locks_it_runs_without(data, tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(_lock.fcntl, "flock", none)
    with pytest.warns(RuntimeWarning, match=r"cannot be locked \(No locks available\); see that no second run"):
        stopped(data, tmp_path / "a", 1)
    monkeypatch.setattr(_lock, "fcntl", None)
    stopped(data, tmp_path / "b", 1)


def damaged(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [damaged, Path.unlink, lambda p: p.write_bytes(p.read_bytes()[:100])])
def test_a_training_goes_on_from_the_checkpoint_before_and_says_so(data, whole, tmp_path, damage):
    stopped(data, tmp_path, 2 * tiny.N_BATCHES)
    damage(tmp_path / loop.CHECKPOINT)
    with pytest.warns(RuntimeWarning, match="going on from checkpoint.previous.safetensors, after epoch 1"):
        resumed = loop.train(tiny.preset(), data, out=tmp_path, resume=True).checkpoint
    assert ends_as(resumed, whole)


def test_only_a_training_that_goes_on_takes_the_checkpoint_before(data, tmp_path):
    stopped(data, tmp_path, 2 * tiny.N_BATCHES)
    path = tmp_path / loop.CHECKPOINT
    damaged(path)
    with pytest.raises(checkpoint.Damaged, match=r"checkpoint\.previous\.safetensors beside it is of the epoch before"):
        checkpoint.load(tmp_path)
    # Of a newer version's training nothing is to be lost.
    path.write_bytes((tmp_path / loop.PREVIOUS).read_bytes())
    tiny.rewritten(path, lambda about: about.update(format_version=4))
    with pytest.raises(checkpoint.CheckpointError, match="install a newer"):
        loop.train(tiny.preset(), data, out=tmp_path, resume=True)
    damaged(path)
    (tmp_path / loop.PREVIOUS).unlink()
    with pytest.raises(checkpoint.Damaged, match="is damaged"):
        loop.train(tiny.preset(), data, out=tmp_path, resume=True)


def full(monkeypatch, when):
    """A disk that is full whenever a function of the state to be saved says so; where was saved is returned."""
    save, saved = checkpoint.save, []

    def tried(path, state, **options):
        if when(state):
            raise OSError(errno.ENOSPC, "No space left on device", os.fspath(path))
        save(path, state, **options)
        saved.append((state.epoch, state.step))

    monkeypatch.setattr(checkpoint, "save", tried)
    return saved


def test_a_disk_that_is_full_at_the_end_of_an_epoch_loses_nothing(data, whole, tmp_path, monkeypatch):
    saved = full(monkeypatch, lambda state: (state.epoch, state.step) == (1, 0))
    monkeypatch.setattr(loop, "RETRY", 0.0)
    with pytest.warns(RuntimeWarning, match=r"No space left on device; make room there: the training goes on") as told:
        done = loop.train(tiny.preset(), data, out=tmp_path)
    assert len(told) == 1
    # Tried again after the next batch, which is when the time is up here.
    assert saved == [(0, 0), (1, 1), (2, 0), (3, 0)]
    assert ends_as(done.checkpoint, whole)
    assert ends_as(checkpoint.load(tmp_path), whole)
    assert len((tmp_path / loop.METRICS).read_text().splitlines()) == 3


def test_a_disk_that_stays_full_keeps_what_was_there(data, whole, tmp_path, monkeypatch):
    full(monkeypatch, lambda state: state.epoch > 1)
    with pytest.warns(RuntimeWarning, match="make room"), pytest.raises(OSError, match="No space left"):
        loop.train(tiny.preset(), data, out=tmp_path)
    monkeypatch.undo()
    assert checkpoint.load(tmp_path).epoch == 1
    assert not list(tmp_path.glob(".*"))
    assert ends_as(loop.train(tiny.preset(), data, out=tmp_path, resume=True).checkpoint, whole)


@pytest.mark.parametrize(
    "error", [BrokenPipeError, ValueError("I/O operation on closed file"), OSError(errno.EIO, "gone")]
)
def test_a_log_that_breaks_ends_no_training(data, whole, tmp_path, error):
    class Broken(io.StringIO):
        n_tries = 0

        def write(self, text):
            Broken.n_tries += 1
            raise error

    assert ends_as(loop.train(tiny.preset(), data, out=tmp_path, log=Broken()).checkpoint, whole)
    assert Broken.n_tries == 1


def test_a_training_that_could_not_begin_is_not_in_the_way_of_the_next(data, tmp_path, monkeypatch):
    def too_large(*_):
        raise MemoryError

    def at(call):
        calls, batch = iter(range(99)), loop._train_batch
        monkeypatch.setattr(loop, "_train_batch", lambda *args: too_large() if next(calls) == call else batch(*args))

    at(0)
    with pytest.raises(MemoryError):
        loop.train(tiny.preset(), data, out=tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    at(tiny.N_BATCHES)
    with pytest.raises(MemoryError):
        loop.train(tiny.preset(), data, out=tmp_path)
    assert checkpoint.load(tmp_path).epoch == 1


def test_another_number_of_samples_is_not_what_it_began_with(data, tmp_path):
    stopped(data, tmp_path, 3)
    tiny.rewritten(tmp_path / loop.CHECKPOINT, lambda a: (a.update(step=10), a["totals"].update(samples=160)))
    told = "has seen 160 samples in 10 batches of its epoch, but the data give 50; resume with the data it began with"
    with pytest.raises(checkpoint.CheckpointError, match=told):
        loop.train(tiny.preset(), data, out=tmp_path, resume=True)


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_part_is_refused_before_the_first_epoch(data, split):
    empty = {f"x_{split}": data.x_train[:0], f"y_{split}": np.empty(0, np.int64)}
    with pytest.raises(ValueError, match=rf"{split}: .*(no|empty|0)"):
        replace(data, **empty)
    with pytest.raises(ValueError, match=rf"{split}: "):
        replace(data, **{f"y_{split}": data.y_train[:10]})


def test_what_is_not_utf_8_is_kept_in_run_json(data, tmp_path):
    words = [os.fsdecode(b"x\xff")]
    loop.train(tiny.preset(epochs=1), data, out=tmp_path / words[0], command=words)
    assert json.loads((tmp_path / words[0] / loop.RUN).read_bytes())["command"] == words


def test_an_integer_beyond_the_floats_is_no_number():
    with pytest.raises(ValueError, match="dropout"):
        build("8 (F8)", input_shape=(4,), n_classes=2, neuron=IF(1.0), dropout=10**400)
