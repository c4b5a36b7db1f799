"""Sweeps: every combination trained once, resumed, failures named, the table at the end."""

import csv
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from dataclasses import replace

import pytest
import tiny

from ide_ref import presets
from ide_ref.cli import main, sweep
from ide_ref.training import checkpoint, loop

FAST = ["--recipe", "limit=40", "--recipe", "batch_size=20", "--recipe", "n_steps=2", "--recipe", "epochs=2"]


@pytest.fixture
def small(monkeypatch):
    """A preset that trains in a moment in the place of digits."""
    monkeypatch.setitem(presets._TABLE, "digits", replace(tiny.preset(), name="digits"))


@pytest.fixture
def in_process(monkeypatch, small):
    """Trainings one after another in a thread."""
    monkeypatch.setattr(sweep, "_executor", lambda args, n_jobs: lambda n: ThreadPoolExecutor(1))


def swept(capsys, out, *words):
    """Status, document and log of a sweep."""
    status = main(["sweep", "digits", "--out", str(out), "--json", *FAST, *words])
    text, log = capsys.readouterr()
    return status, json.loads(text), log


def test_fast_is_where_fields_and_dropout_start_from(in_process, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(presets._FAST, "digits", replace(tiny.preset(lr=0.01), name="digits", dropout=0.0))
    words = ["--seeds", "0", "--recipe", "fast", "--recipe", "dropout=0.1,0.3", "--recipe", "norm=kernel"]
    status, document, _ = swept(capsys, tmp_path / "out", *words)
    assert status == 0
    assert [row["row"] for row in document["sweep"]] == [f"digits-fast-lif-dropout={p}" for p in (0.1, 0.3)]
    for row in document["sweep"]:
        preset = checkpoint.load(tmp_path / "out" / f"{row['row']}-s0").preset
        assert (preset.recipe.lr, preset.recipe.epochs) == (0.01, 2)
        assert preset.dropout == float(row["row"][-3:])
        assert preset.norm == "kernel"
        assert [c.restriction.norm for c in preset.network.connections if c.restriction] == ["kernel"]


def test_every_combination_is_trained_as_by_train_and_summed_up(in_process, capsys, tmp_path):
    out = tmp_path / "out"
    words = ["--seeds", "0,1", "--neurons", "lif", "if", "--recipe", "lr=0.1,0.2"]
    status, document, log = swept(capsys, out, *words)
    assert status == 0
    rows = [f"digits-{neuron}-lr={lr}" for neuron in ("if", "lif") for lr in (0.1, 0.2)]
    assert [row["row"] for row in document["sweep"]] == rows
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == sorted(
        f"{r}-s{s}" for r in rows for s in (0, 1)
    )
    assert log.count("\n") == 8
    for row in document["sweep"]:
        of_row = [t for t in document["trainings"] if t["row"] == row["row"]]
        first, second = (t["last_accuracy"] for t in of_row)
        assert row["mean"] == pytest.approx((first + second) / 2)
        assert row["deviation"] == pytest.approx(abs(first - second) / 2**0.5)
        assert row["best"] == max(t["best_accuracy"] for t in of_row)
        assert (row["trainings"], row["failed"]) == (2, 0)
    assert json.loads((out / "sweep.json").read_text()) == document
    of_run = json.loads((out / f"{rows[0]}-s1" / "run.json").read_text())
    assert of_run["command"] == ["ide-ref", "sweep", "digits", "--out", str(out), "--json", *FAST, *words]
    with (out / "sweep.csv").open(newline="") as file:
        assert [line["name"] for line in csv.DictReader(file)] == [t["name"] for t in document["trainings"]]
    alone = tmp_path / "alone"
    words = [
        "--limit",
        "40",
        "--batch-size",
        "20",
        "--n-steps",
        "2",
        "--epochs",
        "2",
        "--lr",
        "0.2",
        "--seed",
        "1",
    ]
    assert main(["train", "digits", "--neuron", "if", *words, "--out", str(alone)]) == 0
    there = checkpoint.load(out / "digits-if-lr=0.2-s1")
    assert tiny.same(there.params, checkpoint.load(alone).params)


def test_the_time_to_an_accuracy_is_the_median_of_the_seeds(in_process, capsys, tmp_path):
    out = tmp_path / "out"
    accuracies = [t["best_accuracy"] for t in swept(capsys, out, "--seeds", "0,1,2,3")[1]["trainings"]]
    for target in (1e-9, *sorted({a for a in accuracies if a > 0}), 1.0):
        # What is trained already is only asked once more.
        _, document, _ = swept(capsys, out, "--seeds", "0,1,2,3", "--target", repr(100 * target))
        reached = []
        for training in document["trainings"]:
            lines = [json.loads(line) for line in (out / training["name"] / "metrics.jsonl").read_text().splitlines()]
            first = next((k for k, line in enumerate(lines) if line["test_accuracy"] >= training["target"]), None)
            seconds = None if first is None else sum(x["seconds"] + x["test_seconds"] for x in lines[: first + 1])
            assert training["seconds_to_target"] == pytest.approx(seconds)
            reached += [] if seconds is None else [seconds]
        row = document["sweep"][0]
        half = sorted(reached)[1:3] if len(reached) > 2 else []
        assert row["seconds_to_target"] == (pytest.approx(sum(half) / 2) if half else None)
        words = "—" if not half else f"{row['seconds_to_target']:.1f} s"
        assert sweep.table(document["sweep"]).split("\n")[1].endswith(f"  {words:>9}")
    assert "target" not in swept(capsys, out, "--seeds", "0")[1]["trainings"][0]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-1]), lambda path: path.unlink()])
def test_a_damaged_or_missing_checkpoint_gives_way_to_the_one_before(in_process, capsys, tmp_path, damage):
    straight = swept(capsys, tmp_path / "out", "--seeds", "0")[1]
    damage(tmp_path / "out" / "digits-lif-s0" / loop.CHECKPOINT)
    status, again, log = swept(capsys, tmp_path / "out", "--seeds", "0")
    assert status == 0
    assert f"going on from {loop.PREVIOUS}" in log
    row, before = again["trainings"][0], straight["trainings"][0]
    assert row["last_accuracy"] == before["last_accuracy"]


def test_what_is_finished_is_not_trained_again_and_the_rest_goes_on(in_process, capsys, tmp_path, monkeypatch):
    straight = swept(capsys, tmp_path / "straight", "--seeds", "0,1,2")[1]
    original, steps = loop._train_batch, iter(range(99))

    def stops(*args):
        # In the second training's second epoch.
        if next(steps) == 7:
            raise RuntimeError("the cat")
        return original(*args)

    monkeypatch.setattr(loop, "_train_batch", stops)
    status, document, log = swept(capsys, tmp_path / "out", "--seeds", "0,1,2")
    assert status == 1
    assert [t.get("failed") for t in document["trainings"]] == [None, "the cat", None]
    assert document["sweep"][0]["failed"] == 1
    assert "failed: digits-lif-s1;" in log
    trained = []
    monkeypatch.setattr(loop, "_train_batch", lambda *args: trained.append(args[0].seed) or original(*args))
    status, document, _ = swept(capsys, tmp_path / "out", "--seeds", "0,1,2")
    assert status == 0
    # The batches of its second epoch.
    assert trained == [1, 1]
    assert document["sweep"] == straight["sweep"]


def test_who_dies_is_tried_again_alone_and_named(small, capsys, tmp_path, monkeypatch):
    class Dies(ThreadPoolExecutor):
        """A pool of which one training takes all others along."""

        def submit(self, function, job):
            def work():
                if job.seed == 1 or self.several:
                    raise BrokenExecutor
                return function(job)

            return super().submit(work)

    def opened(n):
        pool = Dies(1)
        pool.several = n is None
        return pool

    monkeypatch.setattr(sweep, "_executor", lambda args, n_jobs: opened)
    status, document, _ = swept(capsys, tmp_path / "out", "--seeds", "0,1")
    assert status == 1
    assert [("failed" in t) for t in document["trainings"]] == [False, True]
    assert "ended from outside" in document["trainings"][1]["failed"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--recipe", "speed=3"], "--recipe is 'speed=3'; expected FIELD=VALUE"),
        (["--recipe", "lr"], "--recipe is 'lr'; expected FIELD=VALUE"),
        (["--recipe", "fast"], "digits has no fast recipe"),
        (["--recipe", "dropout=a"], "dropout is 'a'; expected a number in [0, 1)"),
        (["--recipe", "dropout=2"], "dropout is 2; expected a number in [0, 1)"),
        (["--recipe", "norm=none"], "norm is 'none'"),
        (["--recipe", "lr=fast"], "lr is 'fast'"),
        (["--solvers", "magic"], "solver is 'magic'"),
        (["--recipe", "lr=0.1,0.1"], "asked for twice"),
        (["--seeds", "x"], "--seeds is 'x'"),
        *((["--target", bad], f"--target is {bad}; expected a test accuracy") for bad in ("0", "101", "nan", "-5")),
        (["--scheduler", "tcp://x:1"], "--scheduler is of --executor dask"),
    ],
)
def test_wrong_use_is_one_line_before_anything_is_trained(capsys, tmp_path, words, said):
    assert main(["sweep", "digits", "--out", str(tmp_path / "out"), *words]) == 2
    text, log = capsys.readouterr()
    assert text == ""
    assert len(log.splitlines()) == 1
    assert said in log
    assert not (tmp_path / "out").exists()


def test_the_table_has_a_dash_where_nothing_ended():
    trainings = [
        {"row": "a", "last_accuracy": 0.5, "best_accuracy": 0.625},
        {"row": "b", "failed": "x"},
    ]
    assert sweep.table(sweep.summary(trainings)).splitlines() == [
        "   trained  failed     mean  deviation     best",
        "a        1       0   50.00%          —   62.50%",
        "b        0       1        —          —        —",
    ]


def test_who_failed_did_not_reach_the_target():
    reached = {"row": "a", "last_accuracy": 0.5, "best_accuracy": 0.625, "target": 0.5, "seconds_to_target": 3.0}
    failed = {"row": "a", "failed": "x"}
    for trainings, expected in (([reached] * 2 + [failed], 3.0), ([reached, failed], None)):
        assert sweep.summary(trainings)[0]["seconds_to_target"] == expected
    rows = sweep.summary([reached, {**reached, "row": "b", "seconds_to_target": None}, {"row": "c", "failed": "x"}])
    assert [line[-11:] for line in sweep.table(rows).splitlines()] == [
        "  to target",
        "      3.0 s",
        "          —",
        "          —",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["processes", "mpi", "dask"])
def test_executors_give_the_same_numbers(executor, tmp_path):
    launcher = []
    if executor == "mpi":
        pytest.importorskip("mpi4py", reason="mpi4py is not installed")
        beside = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
        if (mpiexec := shutil.which("mpiexec", path=beside)) is None:
            pytest.skip("there is no mpiexec")
        launcher = [mpiexec, "-n", "3"]
    elif executor == "dask":
        pytest.importorskip("distributed", reason="distributed is not installed")
    module = ["-m", "mpi4py.futures"] if executor == "mpi" else []
    words = ["sweep", "digits", "--executor", executor, "--workers", "2", "--seeds", "0,1", *FAST, "--json"]
    command = [*launcher, sys.executable, *module, "-m", "ide_ref", *words, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    accuracies = [t["last_accuracy"] for t in json.loads(done.stdout)["trainings"]]
    one_by_one = [*words[:2], *words[6:], "--workers", "1", "--out", str(tmp_path / "own")]
    alone = subprocess.run([sys.executable, "-m", "ide_ref", *one_by_one], capture_output=True, timeout=120, check=True)
    assert [t["last_accuracy"] for t in json.loads(alone.stdout)["trainings"]] == accuracies
