"""Streams that are closed or break, memory that is too small, names that are not UTF-8: one line, a right status."""

import json
import os
import signal
import subprocess
import sys
import warnings

import pytest
import tiny

from ide_ref import figures
from ide_ref.cli import main, train
from ide_ref.training import checkpoint, loop


def started(*words, **streams):
    """The command in a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-m", "ide_ref", *words], env=environment, text=True, **streams)


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """They take longer than the training."""
    monkeypatch.setattr(figures, "training_curves", lambda *_, **__: None)


@pytest.fixture
def broken():
    """The writing end of a pipe that nobody reads."""
    reads, writes = os.pipe()
    os.close(reads)
    with open(writes, "w", encoding="utf-8", buffering=1) as stream:
        yield stream
        # What it still holds is written once more when it is closed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), writes)


def test_a_training_goes_on_when_nobody_reads_its_log(named, tmp_path, monkeypatch, capfd, broken):
    monkeypatch.setattr(sys, "stderr", broken)
    assert main(["train", "tiny", "--out", str(tmp_path)]) == 0
    assert checkpoint.load(tmp_path).epoch == 2


def test_a_command_ends_as_it_does_when_nobody_reads_its_result(monkeypatch, broken):
    monkeypatch.setattr(sys, "stdout", broken)
    assert main(["data"]) == 0


def test_a_reader_that_goes_in_the_middle_is_told_by_the_status(monkeypatch, broken):
    monkeypatch.setattr(sys, "stdout", broken)
    monkeypatch.setattr(train, "run", lambda args: sys.stdout.write("text\n" * 100_000))
    assert main(["train", "digits"]) == 141


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_a_stream_that_is_closed_leads_nowhere(monkeypatch, stream):
    monkeypatch.setattr(sys, stream, None)
    assert main(["data"]) == 0
    getattr(sys, stream).close()


def test_no_stream_takes_the_number_of_a_file():
    """In a process that begins without any: results are complete where they can be, and no file is written into."""
    with started("data", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        whole = process.communicate()[0]
    closing = ["sh", "-c", 'exec "$@" 0<&- 2>&-', "sh", sys.executable, "-m", "ide_ref", "data"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(closing, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == whole != ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such thing here")
def test_output_that_cannot_be_written_is_told():
    with open("/dev/full", "w") as full, started("data", stdout=full, stderr=subprocess.PIPE) as process:
        log = process.communicate()[1]
    assert process.returncode == 2
    assert len(log.splitlines()) == 1
    assert log.endswith("No space left on device; give another place or make room there\n")


def test_ctrl_c_while_modules_are_read_gives_no_traceback():
    """As soon as it is this package that is read; before that the traceback is Python's own."""
    code = (
        "import signal, sys\n"
        # Of a process in the background it may be ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'ide_ref.cli.train': signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from ide_ref.__main__ import main\n"
        "sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "")


def test_a_warning_is_one_line(run, drawn, tmp_path):
    path = tmp_path / "old.safetensors"
    path.write_bytes(drawn.read_bytes())
    tiny.rewritten(path, lambda about: about.update(format_version=2), digest=False)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        status, _, log = run("info", path)
    assert status == 0
    assert log.splitlines() == [
        f"ide-ref info: {path}: has format 2, which has no digest: bits that changed would not be seen"
    ]


def test_memory_that_is_too_small_is_told_in_a_line(run, named, tmp_path, monkeypatch):
    def too_small(*_):
        raise MemoryError("Unable to allocate 7.45 GiB")

    monkeypatch.setattr(loop, "_train_batch", too_small)
    status, text, log = run("train", "tiny", "--out", tmp_path)
    assert (status, text) == (2, "")
    told = "the memory is too small (Unable to allocate 7.45 GiB); fewer --n-steps, a smaller --batch-size"
    assert log.startswith(f"ide-ref train: {told}")
    assert len(log.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_steps_beyond_all_bounds_leave_no_folder(run, named, tmp_path):
    status, _, log = run("train", "tiny", "--n-steps", "9" * 20, "--out", tmp_path / "run")
    assert (status, log) == (2, f"ide-ref train: n_steps is {'9' * 20}; expected less than 2^31\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_a_folder_need_not_be_utf_8(run, named, tmp_path, json_too):
    out = os.fsdecode(os.fsencode(tmp_path) + b"/x\xff")
    status, text, _ = run("train", "tiny", "--out", out, *json_too)
    assert status == 0
    assert checkpoint.load(out).epoch == 2
    if json_too:
        assert json.loads(text)["out"] == out
    else:
        assert rf"written: {tmp_path}/x\udcff/" in text


def test_save_every_is_passed_on(run, named, tmp_path, monkeypatch):
    given = []
    plain = loop.train
    monkeypatch.setattr(loop, "train", lambda *a, **o: (given.append(o["save_every"]), plain(*a, **o))[1])
    for words in ([], ["--save-every", "7"]):
        assert run("train", "tiny", "--out", tmp_path / str(len(words)), *words)[0] == 0
    assert given == [600, 7]
    assert run("train", "tiny", "--save-every", "0")[0] == 2


def test_resume_alone_takes_the_checkpoint_before(run, named, tmp_path):
    assert run("train", "tiny", "--out", tmp_path)[0] == 0
    (tmp_path / loop.CHECKPOINT).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        status, _, log = run("train", "--resume", "--out", tmp_path)
    assert status == 0
    said = f"{tmp_path / loop.CHECKPOINT}: is missing; going on from checkpoint.previous.safetensors, after epoch 1"
    assert f"ide-ref train: {said}" in log
    assert checkpoint.load(tmp_path).epoch == 2
