"""The command line: what it prints, its exit statuses, and one line for everything that goes wrong."""

import errno
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import tiny

import ide_ref
from ide_ref import figures, presets
from ide_ref.training import checkpoint
from ide_ref.training.loop import begin
from ide_ref.verify import gradient

SHORT = ["tiny", "--limit", "40", "--epochs", "2"]


def test_evaluate_says_so_where_cond_does_not_hold(run, tmp_path):
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, begin(replace(tiny.preset(limit=20), neuron=ide_ref.IF(0.3)), 0))
    status, text, _ = run("evaluate", path)
    assert status == 0
    assert "(COND) does not hold: the theorems promise no equilibrium for these weights" in text
    found = json.loads(run("evaluate", path, "--json")[1])
    assert found["contraction"] == pytest.approx(3.0, rel=1e-3)
    assert found["condition_holds"] is False
    assert "(COND) does not hold" in run("info", path)[1]
    # Beyond (COND) the sweep goes on for ever here (γ = 5); Newton's method finds a* from the rates.
    checkpoint.save(path, begin(replace(tiny.preset(limit=20), neuron=ide_ref.IF(0.18)), 0))
    assert json.loads(run("evaluate", path, "--json")[1])["distance_to_equilibrium_rms"] > 0


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "ide_ref", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"ide-ref {ide_ref.__version__}\n"


def test_train_evaluate_and_resume(run, named, tmp_path):
    out = tmp_path / "run"
    status, text, log = run("train", *SHORT, "--out", out)
    assert status == 0
    said = r"contraction gamma = 0\.\d{4} in operator norms; \(COND\) holds: the average rates converge to the .*\n"
    share = r"\d+\.\d\d%"
    assert re.match(rf"test accuracy {share} \(best {share} in epoch [12]\), \d+\.\d s per epoch\n{said}written:", text)
    # On a slow machine, or a fresh one, it also says that it compiles.
    assert len([line for line in log.splitlines() if line.startswith("epoch ")]) == 2
    checkpoints = {"checkpoint.safetensors", "checkpoint.previous.safetensors"}
    assert {p.name for p in out.iterdir()} == {"run.json", "metrics.jsonl", "curves.png", *checkpoints}
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])

    status, text, _ = run("evaluate", out / "checkpoint.safetensors", "--json")
    assert status == 0
    assert json.loads(text)["accuracy"] == last["test_accuracy"]
    assert json.loads(text)["distance_to_equilibrium_rms"] > 0
    status, text, _ = run("evaluate", out / "checkpoint.safetensors")
    assert f"accuracy {last['test_accuracy']:.2%}" in text
    assert re.search(said.removesuffix(r"\n"), text)

    status, text, _ = run("train", *SHORT[:-1], "3", "--out", out, "--resume", "--json")
    assert status == 0
    assert json.loads(text)["epochs"] == 3
    assert json.loads((out / "run.json").read_text())["resumed_at"] == {"epoch": 2, "batch": 0}


def test_the_default_folder_is_named_after_the_training(run, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("train", "tiny", "--limit", 20, "--epochs", 1, "--neuron", "if", "--seed", 7)[0] == 0
    assert (tmp_path / "runs" / "tiny-if-s7" / "run.json").exists()


def test_info_counts_what_the_preset_has(run):
    status, text, _ = run("info", "digits", "--json")
    found = json.loads(text)
    assert status == 0
    assert found["neurons"] == 64 + 256
    # Weight, bias and batch norm of the input; weight and α of the feedback; the readout.
    assert found["parameters"] == (64 * 256 + 3 * 256) + (256 * 256 + 1) + (256 * 10 + 10)
    assert found["operator_norms"]["feedback"] == pytest.approx(0.9, rel=1e-3)
    assert found["contraction"] == pytest.approx(0.45, rel=1e-3)


def test_info_tells_the_norms_of_the_network_as_the_profile_freezes_it(run, named):
    preset = presets.load("tiny", profile="authors")
    frozen = ide_ref.freeze(preset.network, begin(preset, 0).params)
    found = json.loads(run("info", "tiny", "--profile", "authors", "--json")[1])
    assert found["contraction"] == ide_ref.contraction(frozen) > 0.5


def test_gradcheck_passes_and_a_wrong_sign_fails(run, drawn, monkeypatch):
    words = ("gradcheck", drawn, "--coordinates", 0, "--directions", 1, "--samples", 4)
    status, text, _ = run(*words)
    assert status == 0
    assert "passed" in text
    original = gradient.backward

    for name in tiny.preset().network.trainable:
        if name.startswith("readout") or name == "input.bias":
            continue  # no gradient of (BETA); and a bias that batch normalisation takes off again

        def flipped(*args, name=name, **options):
            result = original(*args, **options)
            return replace(result, gradients={**result.gradients, name: -result.gradients[name]})

        monkeypatch.setattr(gradient, "backward", flipped)
        status, text, _ = run(*words, "--json")
        assert status == 1, name
        errors = {row["parameter"]: row["max_rel_error"] for row in json.loads(text)["parameters"] if row["checked"]}
        assert {name for name, error in errors.items() if error > 1e-5} - {"(all)"} == {name}


def test_gradcheck_takes_the_options_of_the_check(run, drawn):
    words = ("gradcheck", drawn, "--samples", 4, "--json")
    status, text, _ = run(*words, "--method", "cell", "--coordinates", 0, "--directions", 1, "--evaluation")
    found = json.loads(text)
    assert (status, found["method"], found["tol"], found["samples"]) == (0, "cell", 1e-9, 4)
    assert {(row["kind"], row["checked"]) for row in found["parameters"]} == {("directions", 1)}
    status, text, _ = run(*words, "--coordinates", 2, "--directions", 0, "--tol", 1e-6, "--one-sided", "--step", 1e-3)
    found = json.loads(text)
    assert (status, found["method"], found["tol"]) == (0, "central", 1e-6)
    assert {row["kind"] for row in found["parameters"]} == {"coordinates"}
    assert found["unresolved"] == 0
    # Of a step this short rounding leaves little.
    assert json.loads(run(*words, "--coordinates", 1, "--directions", 0, "--step", 1e-9)[1])["unresolved"] > 0


def test_gradcheck_draws_the_steps(run, drawn, tmp_path, monkeypatch):
    figure = tmp_path / "new" / "steps.png"
    words = ("gradcheck", drawn, "--samples", 2, "--coordinates", 0, "--directions", 1, "--sweep", figure)
    status, text, _ = run(*words)
    assert status == 0
    assert f"written: {figure}" in text
    assert "linear region" in text
    assert figure.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(figures, "step_sweep", lambda *_, **__: None)  # drawn once is enough
    status, text, _ = run(*words, "--parameter", "input.weight", "--json")
    sweep = json.loads(text)["sweep"]
    assert (status, sweep["parameter"], sweep["figure"]) == (0, "input.weight", str(figure))
    for name in ("second order", "fourth order"):
        errors = sweep["errors"][name]
        kept = [e for e, crossed in zip(errors, sweep["crossed"][name], strict=True) if not crossed]
        # Rounding on the left of the V, the formula's own error or a kink on its right.
        assert errors[-1] > 100 * min(kept)
        assert errors[0] > 100 * min(kept)


def test_gradcheck_draws_the_budget_over_time(run, drawn, tmp_path, monkeypatch):
    figure = tmp_path / "new" / "budget.png"
    words = ("gradcheck", drawn, "--samples", 2, "--coordinates", 0, "--directions", 1, "--budget", figure)
    status, text, _ = run(*words, "--times", "40,1,5")
    assert status == 0
    assert f"written: {figure}" in text
    assert "what separates training's gradient" in text
    assert figure.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(figures, "budget_over_time", lambda *_, **__: None)  # drawn once is enough
    status, text, _ = run(*words, "--times", "40,1,5", "--json")
    budget = json.loads(text)["budget"]
    assert (status, budget["figure"]) == (0, str(figure))
    assert [line["n_steps"] for line in budget["over_time"]] == [1, 5, 40]
    assert all(line["closure"] <= 1e-10 for line in budget["over_time"])
    finite = [part["norm"] for line in budget["over_time"] for part in line["parts"] if part["name"] == "finite T"]
    assert finite[0] > finite[1] > finite[2] > 0
    whole = [line["n_steps"] for line in json.loads(run(*words, "--json")[1])["budget"]["over_time"]]
    assert (whole[0], whole[-1]) == (1, 200)


@pytest.mark.parametrize("preset", [name for name in presets.names() if not name.startswith("cifar100")])
def test_gradcheck_of_small_structures_needs_no_data(run, tmp_path, preset):
    # The method's accuracy itself is held in tests/verify; here one difference a parameter is enough.
    words = ("--small", "--method", "cell", "--coordinates", 0, "--directions", 1, "--n-steps", 3, "--samples", 2)
    status, text, error = run("gradcheck", preset, *words, "--data-dir", tmp_path / "none", "--json")
    assert status == 0, error
    found = json.loads(text)
    assert found["preset"] == f"{preset} in small"
    assert found["max_direction_error"] <= 1e-9
    assert found["checked"] == len(found["parameters"])


def test_data_lists_what_is_there_and_how_to_get_the_rest(run):
    status, text, _ = run("data", "--json")
    assert status == 0
    assert json.loads(text)["digits"]["found"]
    status, text, _ = run("data")
    assert re.search(r"digits +found +1,438 \+ 359", text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("fly", "invalid choice: 'fly'"),
        ("train digts", "no preset is called 'digts': did you mean 'digits'?"),
        ("equilibrium digitz --out {tmp}/run", "no preset is called 'digitz': did you mean 'digits'?"),
        ("info digits --neuron hh", "invalid choice: 'hh'"),
        ("info digits --n-steps 0", "is '0', expected a whole number of at least 1"),
        ("train digits --seed -1", "is '-1', expected a whole number of at least 0"),
        ("train digits --epochs 0", "is '0', expected a whole number of at least 1"),
        ("train digits --lr 0", "is '0', expected a positive number"),
        ("train digits --solver magic", "'magic'"),
        ("train digits --milestones a", "--milestones is 'a'; expected epochs like 30,60,90"),
        ("train digits --threads 100000", "--threads is 100000"),
        ("train digits --resume --out {tmp}", "holds no checkpoint.safetensors to resume; leave out --resume"),
        ("train digits --out {tmp}/file/run", "Not a directory; give another place"),
        ("train digits --out {tmp}/old", "holds a training already; continue it with --resume or choose another --out"),
        ("train fashion-mnist-400 --data-dir {tmp}/none", "expected one that holds fashion-mnist/"),
        ("evaluate {tmp}/none.safetensors", "cannot be read (No such file or directory); give a checkpoint file"),
        ("evaluate {tmp}/file", "is no safetensors file; give a checkpoint of ide-ref train"),
        ("gradcheck {tmp}/file", "is no safetensors file"),
        ("gradcheck digits --method forward", "invalid choice: 'forward' (choose from"),
        ("gradcheck digits --solver magic", "invalid choice: 'magic' (choose from"),
        ("gradcheck digits --coordinates 0 --directions 0", "both 0; expected something to check"),
        ("gradcheck digits --step 0", "is '0', expected a positive number"),
        ("gradcheck digits --parameter W", "--parameter says where --sweep FILE goes; give both"),
        ("gradcheck digits --sweep {tmp}/steps.pdf", "expected a file that ends in .png or .svg"),
        ("gradcheck digits --sweep {tmp}/s.png --parameter W", "--parameter is 'W'; expected one of input.weight,"),
        ("gradcheck digits --budget {tmp}/b.pdf", "b.pdf'; expected a file that ends in .png or .svg"),
        ("gradcheck digits --times 1,2", "--times are those of --budget FILE; give both"),
        ("gradcheck digits --budget {tmp}/b.png --times 0,2", "--times is '0,2'; expected numbers of steps like 1,10"),
        ("gradcheck digits --budget {tmp}/b.png --times few", "--times is 'few'; expected numbers of steps"),
        ("gradcheck nmnist-64c5 --small --budget {tmp}/b.png --times 31", "--times has 31; expected at most 30"),
        ("gradcheck {tmp}/file --small", "no preset is called"),
        ("gradcheck digits --sweep {tmp}/file/s.png", "/file: File exists; give another place"),
    ],
)
def test_wrong_use_is_one_line_and_status_two(run, tmp_path, words, message):
    (tmp_path / "file").write_text("just a text\n")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "run.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    status, text, log = run(*words.format(tmp=tmp_path).split())
    assert status == 2
    assert text == ""
    assert message in log
    assert len(log.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_diverging_training_is_one_line_and_status_one(run, named, tmp_path):
    status, text, log = run("train", *SHORT, "--lr", "1e30", "--out", tmp_path / "run")
    assert status == 1
    assert text == ""
    assert re.fullmatch(r"ide-ref train: epoch 1, batch \d: .*; the checkpoint after epoch 0 is kept, .*\n", log)


def test_an_unsolved_beta_is_status_one_and_is_taken_on_request(run, named, tmp_path):
    hard = ("train", *SHORT[:-1], 1, "--tol", "1e-6", "--max-iter", 2)
    status, _, log = run(*hard, "--out", tmp_path / "a")
    assert status == 1
    assert "(BETA): fixed_point stopped after 3 products" in log
    assert run(*hard, "--allow-unconverged", "--out", tmp_path / "b")[0] == 0
    line = json.loads((tmp_path / "b" / "metrics.jsonl").read_text())
    assert line["solver_iterations"] == 2
    assert line["solver_residual"] > 1e-3


def test_a_full_disk_is_one_line_and_leaves_no_part_of_a_file(run, named, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    status, _, log = run("train", *SHORT, "--out", tmp_path / "run")
    assert status == 2
    file = tmp_path / "run" / "checkpoint.safetensors"
    assert log == f"ide-ref train: {file}: No space left on device; give another place or make room there\n"
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_reader_that_has_gone_is_no_error():
    words = [sys.executable, "-m", "ide_ref", "data"]
    # Unbuffered output fails where it is printed; what is buffered fails at the end.
    env = {**os.environ, "PYTHONUNBUFFERED": ""}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        process.stdout.close()
        log = process.stderr.read()
    assert process.returncode == 0
    assert log == ""
