import errno
import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import tiny
from safetensors.numpy import save as to_bytes

from ide_ref._files import write_atomically
from ide_ref.training import checkpoint
from ide_ref.training.checkpoint import CheckpointError
from ide_ref.training.loop import begin

UNFIT = "content does not fit together"


@pytest.fixture
def state():
    start = begin(tiny.preset(), 3)
    velocity = {name: np.full_like(array, 0.1) for name, array in start.velocity.items()}
    return replace(start, velocity=velocity, step=2, totals={"loss": 0.1, "residual": 1 / 3}, history=({"epoch": 1},))


def test_what_was_saved_is_loaded_to_the_last_bit(state, tmp_path):
    checkpoint.save(tmp_path / "c", state)
    loaded = checkpoint.load(tmp_path / "c")
    assert tiny.same(loaded.params, state.params)
    assert tiny.same(loaded.velocity, state.velocity)
    assert replace(loaded, params={}, velocity={}) == replace(state, params={}, velocity={})
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def rewritten(path, *, tensors=None, about=None):
    """The checkpoint at `path` with other tensors or other words about them."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        words = json.loads(file.metadata()["ide_ref"])
    path.write_bytes(to_bytes({**arrays, **(tensors or {})}, {"ide_ref": json.dumps({**words, **(about or {})})}))


def in_bfloat16(path):
    """Another program's file, in a type that NumPy does not have."""
    header = json.dumps({"w": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p.unlink(), p.mkdir()), "cannot be read (Is a directory)"),
        (in_bfloat16, "holds tensors but was not written by ide_ref"),
        *(
            (lambda p, words=words: p.write_bytes(to_bytes({"params/w": np.ones(1)}, {"ide_ref": words})), UNFIT)
            for words in ("[]", "{", '{"format_version": "new"}', '{"format_version": 1, "preset": 3}')
        ),
        *(
            (lambda p, part=part: rewritten(p, about={"preset": {**tiny.preset().to_dict(), part: []}}), UNFIT)
            for part in ("recipe", "neuron", "profile")
        ),
        (lambda p: p.unlink(), "cannot be read (No such file or directory); give a checkpoint file"),
        (lambda p: p.write_bytes(b""), "is no safetensors file; give a checkpoint of ide-ref train"),
        (lambda p: p.write_text("epoch,loss\n1,0.5\n"), "is no safetensors file"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "is truncated or damaged; restore it from a copy"),
        (lambda p: p.write_bytes(p.read_bytes()[:50]), "is truncated or damaged"),
        (lambda p: p.write_bytes(to_bytes({"w": np.ones(2)})), "holds tensors but was not written by ide_ref"),
        (lambda p: rewritten(p, about={"format_version": 3}), "has format 3, this ide_ref reads up to 2; install"),
        (lambda p: rewritten(p, about={"seed": 3, "preset": {}}), UNFIT),
        (
            lambda p: rewritten(p, tensors={"params/readout.bias": np.zeros(9, np.float32)}),
            f"{UNFIT} (parameter 'readout.bias' has shape (9,); the network expects (10,))",
        ),
        (
            lambda p: rewritten(p, tensors={"velocity/readout.bias": np.zeros(9, np.float32)}),
            f"{UNFIT} (velocity does not fit the parameters)",
        ),
    ],
)
def test_files_that_cannot_be_used(state, tmp_path, damage, message):
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, state)
    damage(path)
    with pytest.raises(CheckpointError, match=f"^{re.escape(f'{path}: {message}')}") as error:
        checkpoint.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "seed 3 there, 4 here"),
        ({"preset": tiny.preset(lr=0.2)}, "lr 0.1 there, 0.2 here"),
        ({"preset": tiny.preset(lr=0.2, batch_size=8)}, "batch_size 16 there, 8 here; lr 0.1 there, 0.2 here"),
        ({"preset": replace(tiny.preset(), structure="9 (F9)")}, "structure '8 (F8)' there, '9 (F9)' here"),
    ],
)
def test_another_training_is_refused(state, tmp_path, changes, message):
    wanted = {"preset": state.preset, "seed": state.seed, **changes}
    with pytest.raises(CheckpointError, match=re.escape(message)):
        checkpoint.require_same(state, wanted["preset"], wanted["seed"], path=tmp_path)


def test_epochs_may_change_down_to_those_finished(state, tmp_path):
    for epochs in (1, 30):
        checkpoint.require_same(state, tiny.preset(epochs=epochs), 3, path=tmp_path)
    later = replace(state, history=({}, {}))
    with pytest.raises(CheckpointError, match="has finished 2 epochs already, 1 asked for; raise epochs"):
        checkpoint.require_same(later, tiny.preset(epochs=1), 3, path=tmp_path)


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch, failure):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(_):
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(failure)) as caught:
        write_atomically(path, b"new and longer")
    # A full disk names no file of its own.
    assert getattr(caught.value, "filename", str(path)) == str(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_array_need_not_lie_in_order(state, tmp_path):
    across = {name: np.array(array, order="F") for name, array in state.params.items()}
    apart = {name: np.repeat(array, 2, axis=0)[::2] if array.ndim else array for name, array in state.velocity.items()}
    checkpoint.save(tmp_path / "c", replace(state, params=across, velocity=apart))
    loaded = checkpoint.load(tmp_path / "c")
    assert tiny.same(loaded.params, state.params)
    assert tiny.same(loaded.velocity, state.velocity)


def test_a_place_that_cannot_be_written_is_named(state, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as error:
        checkpoint.save(tmp_path / "file" / "c", state)
    assert error.value.filename == str(tmp_path / "file" / "c")
