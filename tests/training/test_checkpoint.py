import errno
import hashlib
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
    totals = {"samples": 32, "loss": 0.1, "correct": 3, "spikes": 200, "residual": 1 / 3}
    names = ("lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds", "test_seconds")
    history = ({"epoch": 1, **dict.fromkeys(names, 0.25), "certificate": None, "condition_holds": True},)
    return replace(start, velocity=velocity, step=2, totals=totals, history=history)


def test_what_was_saved_is_loaded_to_the_last_bit(state, tmp_path):
    checkpoint.save(tmp_path / "c", state)
    loaded = checkpoint.load(tmp_path / "c")
    assert tiny.same(loaded.params, state.params)
    assert tiny.same(loaded.velocity, state.velocity)
    assert replace(loaded, params={}, velocity={}) == replace(state, params={}, velocity={})
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


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
            for words in ("[]", "{", "[" * 100_000, '{"format_version": 1, "preset": 3}')
        ),
        *(
            (lambda p, part=part: tiny.rewritten(p, lambda about: about["preset"].update({part: []})), UNFIT)
            for part in ("recipe", "neuron", "profile")
        ),
        (lambda p: p.unlink(), "cannot be read (No such file or directory); give a checkpoint file"),
        (lambda p: p.write_bytes(b""), "is no safetensors file; give a checkpoint of ide-ref train"),
        (lambda p: p.write_text("epoch,loss\n1,0.5\n"), "is no safetensors file"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "is truncated or damaged; restore it from a copy"),
        (lambda p: p.write_bytes(p.read_bytes()[:50]), "is truncated or damaged"),
        (lambda p: p.write_bytes(to_bytes({"w": np.ones(2)})), "holds tensors but was not written by ide_ref"),
        (
            lambda p: tiny.rewritten(p, lambda about: about.update({"format_version": 4})),
            "has format 4, this ide_ref reads 1 to 3; install a newer",
        ),
        *(
            (
                lambda p, no=no: tiny.rewritten(p, lambda about: about.update({"format_version": no})),
                f"has format {no!r}, this ide_ref reads 1 to 3",
            )
            for no in (0, -7, 0.5, float("nan"), True, "3", None)
        ),
        (lambda p: tiny.rewritten(p, lambda about: about.update({"seed": 3, "preset": {}})), UNFIT),
        (
            lambda p: tiny.rewritten(p, tensors={"params/readout.bias": np.zeros(9, np.float32)}),
            f"{UNFIT} (parameter 'readout.bias' has shape (9,); the network expects (10,))",
        ),
        (
            lambda p: tiny.rewritten(p, tensors={"velocity/readout.bias": np.zeros(9, np.float32)}),
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


def in_recipe(**fields):
    return lambda about: about["preset"]["recipe"].update(fields)


@pytest.mark.parametrize(
    "change",
    [
        *(
            lambda about, name=name, value=value: about.update({name: value})
            for name, values in {
                "history": ([None], ["x"], [{}], {}, None, [{"epoch": 2}]),
                "step": (None, "x", -1, 10**6, 1, 10**400, True),
                "totals": (
                    [1],
                    None,
                    {},
                    {"samples": "x"},
                    {"samples": 32, "loss": 0.1, "correct": 3, "spikes": 10**400},
                ),
                "seed": (None, -1, "0", 0.5),
                "preset": (None, [], {}),
            }.items()
            for value in values
        ),
        *(lambda about, name=name: about.pop(name) for name in ("seed", "step", "totals", "history", "preset")),
        lambda about: about["history"][0].update(test_accuracy="x"),
        lambda about: about["history"][0].update(seconds=10**400),
        lambda about: about["history"][0].update(certificate=[]),
        *(lambda about, name=name: about["history"][0].pop(name) for name in ("lr", "seconds", "test_seconds")),
        *(lambda about, value=value: about["history"][0].update(test_seconds=value) for value in (None, True)),
        lambda about: about["history"].extend([dict(about["history"][0], epoch=n) for n in (2, 3, 4)]),
        lambda about: about["preset"].update(dropout=10**400),
        in_recipe(lr=10**400),
        in_recipe(n_steps=2**31),
        in_recipe(dtype="float64"),
    ],
)
def test_every_field_is_checked(state, tmp_path, change):
    """Also where the digest is right: whoever wrote the file may have made that, too."""
    checkpoint.save(tmp_path / "c", state)
    tiny.rewritten(tmp_path / "c", change)
    with pytest.raises(checkpoint.Damaged) as error:
        checkpoint.load(tmp_path / "c")
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("part", ["params", "velocity"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused(state, tmp_path, part, value):
    checkpoint.save(tmp_path / "c", state)
    tiny.rewritten(tmp_path / "c", tensors={f"{part}/readout.bias": np.full(10, value, np.float32)})
    with pytest.raises(checkpoint.Damaged, match="NaN or infinite"):
        checkpoint.load(tmp_path / "c")


def test_the_dtype_of_tensors_is_that_of_numpy(state, tmp_path):
    checkpoint.save(tmp_path / "c", state)
    data = (tmp_path / "c").read_bytes()
    (tmp_path / "c").write_bytes(data.replace(b'"F32"', b'"U32"', 1))
    with pytest.raises(checkpoint.Damaged, match="has dtype U32, expected F32 or F64"):
        checkpoint.load(tmp_path / "c")


def test_the_digest_is_checked_whatever_the_format_and_its_absence_told(state, tmp_path):
    checkpoint.save(tmp_path / "c", state)
    data = (tmp_path / "c").read_bytes()
    # One bit makes 2 of 3, which needs no digest.
    (tmp_path / "c").write_bytes(data.replace(rb"\"format_version\": 3", rb"\"format_version\": 2"))
    with pytest.raises(checkpoint.Damaged, match="is damaged"):
        checkpoint.load(tmp_path / "c")
    (tmp_path / "c").write_bytes(data)
    tiny.rewritten(tmp_path / "c", digest=False)
    with pytest.raises(checkpoint.Damaged, match="the digest is missing"):
        checkpoint.load(tmp_path / "c")
    tiny.rewritten(tmp_path / "c", lambda about: about.update(format_version=2), digest=False)
    with pytest.warns(RuntimeWarning, match="has format 2, which has no digest"):
        assert tiny.same(checkpoint.load(tmp_path / "c").params, state.params)


def test_the_digest_is_what_the_page_says(state, tmp_path):
    """Anybody can check it without this package: the header's two words and the bytes behind it."""
    checkpoint.save(tmp_path / "c", state)
    data = (tmp_path / "c").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__")
    pieces = [metadata["ide_ref"].encode()]
    for name, about in sorted(header.items()):
        dtype = {"F32": "float32", "F64": "float64"}[about["dtype"]]
        first, last = about["data_offsets"]
        pieces += [json.dumps([name, dtype, about["shape"]]).encode(), data[start + first : start + last]]
    whole = b"".join(len(piece).to_bytes(8, "little") + piece for piece in pieces)
    assert metadata["sha256"] == hashlib.sha256(whole).hexdigest()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such thing here")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "c")
    with pytest.raises(CheckpointError, match="is no regular file"):
        checkpoint.load(tmp_path / "c")


@pytest.mark.parametrize("links", [True, False])
def test_what_was_there_is_kept_where_that_is_asked_for(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: os.open(tmp_path / "none" / "such", os.O_RDONLY))
    for text in (b"1", b"2", b"3"):
        write_atomically(tmp_path / "new", text, previous=tmp_path / "old")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"new": b"3", "old": b"2"}
