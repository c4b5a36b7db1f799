"""Data and checkpoints that are damaged or of something else: status 2, one line, nothing left behind."""

import json
import os
import re
import shutil
import struct
from dataclasses import replace

import numpy as np
import pytest

from ide_ref import presets
from ide_ref.training import checkpoint


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist(tmp_path, no_data):
    """A folder with twelve sound images a split, and no data anywhere else."""
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(np.zeros((12, 28, 28))))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(np.arange(12) % 10))
    return folder


def fails(run, *words):
    status, text, log = run(*words)
    assert status == 2
    assert text == ""
    assert len(log.splitlines()) == 1
    return log


def cut(path, n):
    path.write_bytes(path.read_bytes()[:-n])


@pytest.mark.parametrize("command", ["train", "gradcheck"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: cut(d / "train-images-idx3-ubyte", 1), "byte 9423: found the end of the file, expected 9424 bytes"),
        (lambda d: cut(d / "t10k-labels-idx1-ubyte", 15), "t10k-labels-idx1-ubyte: byte 5: found the end of the file"),
        (lambda d: (d / "train-labels-idx1-ubyte").unlink(), "train-labels-idx1-ubyte.gz missing, expected all of"),
        (
            lambda d: (d / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((12, 27, 28)))),
            "found shape (12, 27, 28), expected shape (any, 28, 28)",
        ),
        (
            lambda d: (d / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(12))),
            "byte 18: found label 10, expected 0 to 9",
        ),
        (
            lambda d: (d / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(11))),
            "found shape (11,), expected shape (12)",
        ),
        (lambda d: (d / "train-images-idx3-ubyte").write_text("<html>"), "expected bytes 00 00, the beginning of"),
        (lambda d: [p.unlink() for p in d.iterdir()], "missing, expected all of MNIST"),
        (lambda d: [*(p.unlink() for p in d.iterdir()), d.rmdir()], "mnist was not found below"),
    ],
)
def test_damaged_data(run, tmp_path, mnist, command, damage, message):
    damage(mnist)
    words = ["--out", tmp_path / "run"] if command == "train" else []
    log = fails(run, command, "mnist-64c5", "--data-dir", mnist.parent, *words)
    assert message in log
    assert log.startswith(f"ide-ref {command}: ")
    assert not (tmp_path / "run").exists()


def test_data_says_which_folder_cannot_be_used_and_goes_on(run, mnist):
    (mnist / "train-images-idx3-ubyte").unlink()
    status, text, _ = run("data", "--data-dir", mnist.parent, "--json")
    assert status == 0
    found = json.loads(text)
    assert not found["mnist"]["found"]
    assert "train-images-idx3-ubyte.gz missing" in found["mnist"]["problem"]
    assert found["digits"]["found"]


@pytest.fixture
def saved(tmp_path, drawn):
    """A folder with a checkpoint, and what is in it."""
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(drawn, out / "checkpoint.safetensors")
    return out, checkpoint.load(drawn)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["fashion-mnist-400"], "name 'tiny' there, 'fashion-mnist-400' here"),
        (["tiny", "--neuron", "if"], "neuron LIF(leak=0.9"),
        (["tiny", "--seed", "1"], "seed 0 there, 1 here"),
        (["tiny", "--n-steps", "4"], "n_steps 3 there, 4 here"),
        (["tiny", "--profile", "authors"], "profile"),
    ],
)
def test_a_checkpoint_of_another_network_is_not_resumed(run, monkeypatch, saved, options, message):
    out, state = saved
    monkeypatch.setitem(presets._TABLE, "tiny", state.preset)
    monkeypatch.setitem(presets._TABLE, "fashion-mnist-400", replace(state.preset, name="fashion-mnist-400"))
    before = (out / "checkpoint.safetensors").read_bytes()
    log = fails(run, "train", *options, "--resume", "--out", out)
    assert "is of another training" in log
    if "neuron" not in message:
        assert message in log
    assert (out / "checkpoint.safetensors").read_bytes() == before
    assert [p.name for p in out.iterdir()] == ["checkpoint.safetensors"]


@pytest.mark.parametrize("command", ["evaluate", "gradcheck", "info"])
def test_arrays_of_another_network(run, saved, command):
    out, state = saved
    other = replace(state, preset=replace(state.preset, structure="9 (F9)"))
    checkpoint.save(out / "checkpoint.safetensors", other)
    log = fails(run, command, out / "checkpoint.safetensors")
    assert "content does not fit together (parameter 'input.weight' has shape (8, 64); the network expects" in log


@pytest.mark.parametrize("command", ["evaluate", "gradcheck", "info"])
@pytest.mark.parametrize("n", [4, 1000])
def test_a_truncated_checkpoint(run, saved, command, n):
    path = saved[0] / "checkpoint.safetensors"
    cut(path, n)
    assert "is truncated or damaged; restore it from a copy or train again" in fails(run, command, path)


def test_a_folder_called_like_a_preset_does_not_hide_it(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    status, text, _ = run("info", "digits")
    assert status == 0
    assert text.startswith("digits: 256 (F256), LIF")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_pipe_in_place_of_a_checkpoint_does_not_block(run, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for command in ("evaluate", "info"):
        assert re.search(r"pipe: .*is no (regular )?file", fails(run, command, tmp_path / "pipe"))
