"""What starting costs, and a second Ctrl-C, each in a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from ide_ref import figures, presets
from ide_ref.cli import _common, main, parser
from ide_ref.training import checkpoint

HEAVY = {"numpy", "scipy", "numba", "matplotlib", "safetensors", "tqdm"}


def python(code, *words):
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "code",
    [
        "import ide_ref; dir(ide_ref); ide_ref.__version__",
        "from ide_ref.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from ide_ref.cli import main\ntry: main(['train', '--help'])\nexcept SystemExit: pass",
        "from ide_ref.cli import main\ntry: main(['gradcheck', '--help'])\nexcept SystemExit: pass",
        "from ide_ref.cli import main\ntry: main(['--version'])\nexcept SystemExit: pass",
        "from ide_ref.cli import main\ntry: main(['train', 'digits', '--epochs', '0'])\nexcept SystemExit: pass",
    ],
)
def test_nothing_heavy_is_imported(code):
    done = python(f"{code}\nimport sys; sys.stderr.write('loaded ' + ' '.join(sys.modules))")
    assert done.returncode == 0, done.stderr
    loaded = done.stderr.partition("loaded ")[2].split()
    assert not HEAVY & set(loaded)
    assert "ide_ref" in loaded


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system does not list a process's threads")
@pytest.mark.parametrize("given", [None, "1"])
def test_threads_are_those_of_blas_as_well(given, monkeypatch):
    """Of one that was asked for, no library starts a second; who told BLAS a number is heard."""
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", given)
    code = "import os, sys; from ide_ref.cli import main; main(['info', 'digits', '--threads', sys.argv[1], '--json'])"
    told = "sys.stderr.write(f\"{len(os.listdir('/proc/self/task'))} {os.environ['OPENBLAS_NUM_THREADS']}\")"
    assert python(f"{code}; {told}", "1").stderr == "1 1"
    if os.cpu_count() > 1:
        assert python(f"{code}; {told}", "2").stderr.split()[1] == (given or "2")


SLOW = """
import importlib, pkgutil, sys, time
from ide_ref import _kernels
from ide_ref.cli import main
from ide_ref.training import step
original, calls = step.backward, iter(range(100))
def slow(*args, **options):
    if next(calls) == 4:
        sys.stderr.write("waiting\\n")
        sys.stderr.flush()
        time.sleep(60)
    return original(*args, **options)
step.backward = slow
status = main(sys.argv[1:])
modules = [importlib.import_module(m.name) for m in pkgutil.iter_modules(_kernels.__path__, "ide_ref._kernels.")]
found = {id(f): f for m in modules for f in vars(m).values() if hasattr(f, "stats")}.values()
hits, misses = (sum(sum(getattr(f.stats, what).values()) for f in found) for what in ("cache_hits", "cache_misses"))
sys.stderr.write(f"hits {hits} misses {misses}")
sys.exit(status)
"""


def test_the_second_start_compiles_nothing_and_a_second_ctrl_c_stops_it_at_once(tmp_path, monkeypatch):
    """The first lets the batch end, here in a minute; the second does not, and the last epoch's state stays."""
    monkeypatch.setattr(figures, "training_curves", lambda *_, **__: None)
    words = ["train", "digits", "--limit", "40", "--batch-size", "20", "--out"]
    assert main([*words, str(tmp_path / "first"), "--epochs", "1"]) == 0
    out = tmp_path / "second"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *words, str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        while (line := process.stderr.readline()) != "waiting\n":
            assert line
        process.send_signal(signal.SIGINT)
        while "stopping after this batch" not in (line := process.stderr.readline()):
            assert line
        process.send_signal(signal.SIGINT)
        text, log = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    said, counts = log.splitlines()
    assert (text, said) == ("", "ide-ref train: interrupted")
    assert re.fullmatch(r"hits [1-9]\d* misses 0", counts)
    state = checkpoint.load(out / "checkpoint.safetensors")
    assert (state.epoch, state.step) == (2, 0)
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    assert json.loads((out / "run.json").read_text())["preset"]["name"] == "digits"


def test_help_names_the_presets_and_every_option_says_what_it_is(run):
    assert presets.names() == _common.PRESETS
    status, text, _ = run("--help")
    assert status == 0
    assert all(name in " ".join(text.split()) for name in presets.names())
    for action in parser()._subparsers._group_actions[0].choices["train"]._actions:
        assert action.help, action.dest


def test_every_command_that_computes_takes_a_number_of_threads():
    commands = parser()._subparsers._group_actions[0].choices
    for name in ("info", "train", "evaluate", "equilibrium", "gradcheck", "bench"):
        assert "--threads" in commands[name].format_help(), name
    actions = commands["conformance"]._subparsers._group_actions[0].choices
    assert "--threads" in actions["make"].format_help()


def test_the_folder_of_a_training_stands_for_its_checkpoint(run, drawn, tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(drawn.read_bytes())
    assert run("info", tmp_path, "--json")[1] == run("info", drawn, "--json")[1]
    (tmp_path / "empty").mkdir()
    status, _, error = run("evaluate", tmp_path / "empty")
    assert (status, error.count("\n")) == (2, 1)
    assert "Is a directory" in error


def test_what_lacks_is_installed_from_packages_that_are_whose_they_say():
    """Not from an index where this package's name may be anyone's."""
    setup = ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    names = [re.match(r"\w+", line)[0] for line in setup["options.extras_require"]["train"].split()]
    assert f"pip install {' '.join(names)}" == _common.INSTALL
