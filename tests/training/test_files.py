"""Checkpoints of unusual arrays, from other programs, and on a full disk."""

import errno
import json
from dataclasses import replace

import numpy as np
import pytest
import tiny

from ide_ref import _files
from ide_ref.training import checkpoint
from ide_ref.training.loop import begin


@pytest.fixture
def state():
    return begin(tiny.preset(), 3)


def test_an_array_need_not_lie_in_order(state, tmp_path):
    across = {name: np.array(array, order="F") for name, array in state.params.items()}
    apart = {name: np.repeat(array, 2, axis=0)[::2] if array.ndim else array for name, array in state.velocity.items()}
    checkpoint.save(tmp_path / "c", replace(state, params=across, velocity=apart))
    loaded = checkpoint.load(tmp_path / "c")
    assert tiny.same(loaded.params, state.params)
    assert tiny.same(loaded.velocity, state.velocity)


def test_another_programs_file_in_a_type_numpy_does_not_have(tmp_path):
    header = json.dumps({"w": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "c").write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    with pytest.raises(checkpoint.CheckpointError, match="was not written by ide_ref"):
        checkpoint.load(tmp_path / "c")


@pytest.mark.parametrize("about", ["[]", "{", '{"format_version": "new"}', '{"format_version": 1, "preset": 3}'])
def test_words_that_are_not_ours(state, tmp_path, about):
    from safetensors.numpy import save

    (tmp_path / "c").write_bytes(save({"params/w": np.ones(1)}, {"ide_ref": about}))
    with pytest.raises(checkpoint.CheckpointError, match="content does not fit together"):
        checkpoint.load(tmp_path / "c")


@pytest.mark.parametrize("part", ["recipe", "neuron", "profile"])
def test_a_damaged_preset(state, tmp_path, part, monkeypatch):
    damaged = {**state.preset.to_dict(), part: []}
    monkeypatch.setattr(type(state.preset), "to_dict", lambda _: damaged)
    checkpoint.save(tmp_path / "c", state)
    with pytest.raises(checkpoint.CheckpointError, match="content does not fit together"):
        checkpoint.load(tmp_path / "c")


class Full:
    """A file on a disk with room for 100 bytes."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content):
        self.file.write(content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_keeps_the_old_checkpoint_and_names_the_file(state, tmp_path, monkeypatch):
    path = tmp_path / "c"
    checkpoint.save(path, state)
    before = path.read_bytes()
    monkeypatch.setattr(_files, "open", lambda *args: Full(open(*args)), raising=False)  # noqa: SIM115
    with pytest.raises(OSError, match="No space left") as error:
        checkpoint.save(path, replace(state, step=3))
    assert error.value.filename == str(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(state, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as error:
        checkpoint.save(tmp_path / "file" / "c", state)
    assert error.value.filename == str(tmp_path / "file" / "c")
