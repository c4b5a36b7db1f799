"""A user's own arrays, files and functions as data sets: what they become, and every refusal."""

import pickle
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ide_ref.datasets import DataError, Dataset, EventFrames, load, read_own
from ide_ref.neurons import LIF
from ide_ref.presets import Preset, Recipe
from ide_ref.training.evaluation import load_batch

KINDS = ("u1", "i1", "<i2", ">i4", "i8", "u8", "?", "f2", "f4", ">f4", "f8")


@st.composite
def arrays(draw):
    """Four arrays as a user may have them, whether they are trains, and the shape of an item as a network takes it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.sampled_from([(1,), (5,), (1, 1), (2, 3), (1, 1, 1), (3, 2, 4)]))
    spikes, dtype = draw(st.booleans()), np.dtype(draw(st.sampled_from(KINDS)))
    n_classes = draw(st.integers(1, 4))
    found = []
    for n in draw(st.tuples(st.integers(1, 9), st.integers(1, 9))):
        size = (n, *((draw(st.just(3)),) if spikes else ()), *shape)
        found += [rng.integers(0, 100, size).astype(dtype), rng.integers(0, n_classes, n).astype(rng.choice(KINDS[:6]))]
    found[1][0] = 0
    if draw(st.booleans()):
        found[0] = np.asfortranarray(found[0])
    return found, spikes, (1, *shape) if len(shape) == 2 else shape


@given(arrays())
def test_arrays_become_what_a_network_takes(drawn):
    (x_train, y_train, x_test, y_test), spikes, shape = drawn
    data = Dataset.from_arrays(x_train, y_train, x_test, y_test, spikes=spikes)
    assert (data.input_shape, data.n_frames) == (shape, 3 if spikes else None)
    assert data.n_classes == max(y_train.max(), y_test.max()) + 1
    assert data.scale == (255 if x_train.dtype == np.uint8 and not spikes else 1)
    assert (data.name, data.source, data.notice) == ("arrays", None, "")
    for x, y, given_x, given_y in (
        (data.x_train, data.y_train, x_train, y_train),
        (data.x_test, data.y_test, x_test, y_test),
    ):
        np.testing.assert_array_equal(x.reshape(given_x.shape), given_x)
        np.testing.assert_array_equal(y, given_y)
        assert y.dtype == np.int64
        assert not x.flags.writeable
        assert not y.flags.writeable
    assert x_train.flags.writeable

    scaled = x_train.astype(float) / data.scale
    pixels = scaled.reshape(len(scaled), shape[0] if len(shape) == 3 else 1, -1)
    mean, std = pixels.mean(axis=(0, 2)), pixels.std(axis=(0, 2))
    std[std == 0] = 1
    if spikes:
        mean, std = np.zeros_like(mean), np.ones_like(std)
    np.testing.assert_allclose(data.statistics, [mean, std], rtol=1e-12, atol=1e-14)
    recipe = Recipe("arrays", data.n_frames or 4, input="spikes" if spikes else "static", dtype="float64")
    for size in (shape, (int(np.prod(shape)),)):
        preset = Preset("own", "4 (F4)", size, data.n_classes, LIF(), 0.0, recipe)
        x, y = load_batch(preset, data, "train", [0])
        expected = scaled[0] if spikes else (pixels[0] - mean[:, None]) / std[:, None]
        assert x.shape == (1, *((3,) if spikes else ()), *size)
        np.testing.assert_allclose(x.ravel(), expected.ravel(), rtol=1e-9, atol=1e-9)
        assert y == y_train[0]


def test_many_items_have_the_statistics_of_all():
    """More than are looked at at once; and a constant stays one, whatever its mean rounds to."""
    rng = np.random.default_rng(0)
    x = rng.normal(5, 2, (3000, 2, 2, 1))
    x[:, 1] = 0.1
    data = Dataset.from_arrays(x, np.zeros(3000, int), x[:1], [0], scale=2)
    np.testing.assert_allclose(data.statistics, [[x[:, 0].mean() / 2, 0.05], [x[:, 0].std() / 2, 1]], rtol=1e-12)
    assert data.first(7).x_train.shape == (7, 2, 2, 1)
    assert len(data.first(7).y_test) == 1


X, Y = np.zeros((4, 6)), np.arange(4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_train": Y[:3]}, "data set 'arrays', train: y has shape (3,), expected (4,), one label an item"),
        ({"y_test": np.arange(5)}, "test: y has shape (5,), expected (4,), one label an item"),
        ({"x_train": X.astype(object)}, "x_train is a ndarray of object; expected an array of real numbers"),
        ({"x_test": [[1, 2], [3]]}, "x_test is a list of object; expected an array of real numbers"),
        ({"x_train": X.astype(complex)}, "x_train is a ndarray of complex128"),
        ({"x_train": [["a"] * 6] * 4}, "x_train is a list of <U1"),
        ({"y_train": Y / 1}, "y_train is a ndarray of float64; expected an array of whole numbers"),
        ({"y_test": ["cat"] * 4}, "y_test is a list of <U3; expected an array of whole numbers"),
        ({"y_train": np.eye(4, dtype=int)}, "y_train has shape (4, 4), expected (B,): a label an item, not a row"),
        ({"x_train": np.full_like(X, np.nan)}, "train: x[0, 0] is nan, expected finite pixels"),
        ({"x_test": X - np.inf}, "test: x[0, 0] is -inf, expected finite pixels"),
        ({"x_train": X[:0], "y_train": Y[:0]}, "train: x and y are empty, expected at least one item"),
        ({"x_test": X[:0], "y_test": Y[:0]}, "test: x and y are empty, expected at least one item"),
        ({"x_train": np.zeros((4, 0)), "x_test": np.zeros((4, 0))}, "input_shape is (0,)"),
        ({"x_test": np.zeros((4, 7))}, "test: x has shape (4, 7), expected (B, 6)"),
        ({"x_train": np.zeros(4)}, "x_train has shape (4,), expected (B, n) or (B, channels, rows, columns)"),
        ({"x_train": X, "spikes": True}, "x_train has shape (4, 6), expected (B, T, n) or (B, T, channels"),
        ({"x_train": np.zeros((4, 1, 2, 3, 4))}, "x_train has shape (4, 1, 2, 3, 4), expected (B, n) or"),
        ({"y_train": Y + 1, "y_test": Y + 1}, "labels reach from 1 to 4, expected them to begin at 0: take 1 off, or"),
        ({"y_train": Y + 1, "y_test": Y + 1, "n_classes": 4}, "y[3] is 4, expected labels 0 to 3; 1 labels are out "),
        ({"y_train": Y + 1, "y_test": Y + 1, "n_classes": 4}, "out of range; they begin at 1: take 1 off"),
        ({"y_train": Y - 1}, "y[0] is -1, expected labels 0 to 3"),
        ({"n_classes": 3}, "y[3] is 3, expected labels 0 to 2"),
        ({"n_classes": 0}, "n_classes is 0; expected a whole number of at least 1"),
        ({"scale": 0}, "scale is 0; expected a positive, finite number"),
        ({"scale": 1.0, "spikes": True, "x_train": X[None], "x_test": X[None]}, "scale is 1.0, but spike trains are"),
        ({"name": 3}, "name is of type int; expected str"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_in_one_line(changes, message):
    given = {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y, **changes}
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the words are compared below
        Dataset.from_arrays(**given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_data_set_made_by_hand_is_checked_as_well():
    digits = load("digits")
    with pytest.raises(ValueError, match="data set 'digits', test: x and y are empty"):
        replace(digits, x_test=digits.x_test[:0], y_test=digits.y_test[:0])
    with pytest.raises(ValueError, match=r"train: y has shape \(10,\), expected \(64,\)"):
        replace(digits, x_train=digits.x_train[:64], y_train=digits.y_train[:10])


@pytest.mark.parametrize(
    ("recipe", "x", "shape", "message"),
    [
        ({"crop": 1}, X, (6,), "crop is 1 and flip False, but data set 'arrays' holds no pictures to shift or mirror"),
        ({"flip": True}, X, (6,), "crop is 0 and flip True, but data set 'arrays' holds no pictures"),
        ({}, X, (1, 2, 3), "has images of shape (6,), preset 'own' expects (1, 2, 3)"),
        ({}, np.zeros((4, 2, 3)), (3, 2, 1), "has images of shape (1, 2, 3), preset 'own' expects (3, 2, 1)"),
        ({"input": "spikes"}, X, (6,), "is of input 'static', the recipe's input is 'spikes'"),
        ({}, X[:, None], (6,), "is of input 'spikes', the recipe's input is 'static'"),
        ({"input": "spikes", "n_steps": 2}, X[:, None], (6,), "has trains of 1 steps, n_steps is 2"),
        ({"mean": (0.0, 0.0)}, X, (6,), "mean has shape (2,), expected a number or (1,)"),
    ],
)
def test_data_that_do_not_fit_a_preset_are_refused(recipe, x, shape, message):
    data = Dataset.from_arrays(x, Y, x, Y, spikes=x.shape[1:] == (1, 6))
    preset = Preset("own", "4 (F4)", shape, 4, LIF(), 0.0, Recipe(**{"dataset": "arrays", "n_steps": 1, **recipe}))
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the words are compared below
        load_batch(preset, data, "train", [0])
    assert message in str(caught.value)


ARRAYS = {
    "x_train": np.arange(36, dtype=np.uint8).reshape(6, 2, 3),
    "y_train": np.arange(6) % 3,
    "x_test": np.ones((2, 2, 3), np.uint8),
    "y_test": np.array([1, 0], np.uint8),
}


def save_folder(folder, arrays):
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def test_files_and_functions_are_read_by_their_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("mine.npz", **ARRAYS, other=np.zeros(3))
    save_folder(tmp_path / "folder", {**ARRAYS, "n_classes": 5, "scale": 2.0})
    np.savez_compressed("trains.npz", **ARRAYS, spikes=True)
    (tmp_path / f"made_{tmp_path.name}.py").write_text(
        "from ide_ref.datasets import Dataset, load\nmake = lambda: load('mine.npz')\nready = make()\n"
    )
    made = [f"made_{tmp_path.name}:{name}" for name in ("make", "ready")]
    for place, n_classes, scale, n_frames in (
        ("mine.npz", 3, 255.0, None),
        (str(tmp_path / "mine.npz"), 3, 255.0, None),
        ("folder", 5, 2.0, None),
        ("trains.npz", 3, 1.0, 2),
        *((place, 3, 255.0, None) for place in made),
    ):
        data = load(place)
        assert (data.n_classes, data.scale, data.n_frames) == (n_classes, scale, n_frames)
        np.testing.assert_array_equal(data.x_train.reshape(6, 2, 3), ARRAYS["x_train"])
        np.testing.assert_array_equal(data.y_test, [1, 0])
        few = load(place, limit=1)
        assert (len(few.x_train), len(few.y_test), few.n_classes) == (1, 1, n_classes)
    assert load("trains.npz", n_frames=2).n_frames == 2
    assert (load("mine.npz").name, load("mine.npz").source.name) == ("mine", "mine.npz")


class Evil:
    def __reduce__(self):
        return print, ("ran",)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: None, "own.npz: no such file; say with --data where it is"),
        (lambda p: np.savez(p, x_train=X, y_train=Y), "own.npz: holds no x_test, y_test; expected the arrays x_train"),
        (
            lambda p: p.write_text("text"),
            "own.npz: is damaged or holds something else than arrays of numbers; write it",
        ),
        (lambda p: p.touch(), "is damaged or holds something else"),
        (lambda p: p.write_bytes(pickle.dumps(Evil())), "is damaged or holds something else"),
        (lambda p: np.savez(p, **{**ARRAYS, "x_test": np.array([Evil()])}), "is damaged or holds something else"),
        (lambda p: (np.savez(p, **ARRAYS), p.write_bytes(p.read_bytes()[:-40])), "is damaged or holds something else"),
        (lambda p: np.savez(p, **{**ARRAYS, "y_test": Y}), "own.npz: data set 'own', test: y has shape (4,), expected"),
        (lambda p: np.savez(p, **ARRAYS, n_classes=Y), "own.npz: can only convert an array of size 1"),
        (lambda p: save_folder(p, {"x_train": X}), "own.npz: holds no y_train, x_test, y_test"),
    ],
)
def test_files_that_cannot_be_used_are_refused_in_one_line(tmp_path, capsys, write, message):
    write(tmp_path / "own.npz")
    with pytest.raises(DataError) as caught:
        load(str(tmp_path / "own.npz"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_wrong_places_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("mine.npz", **ARRAYS)
    np.savez("trains.npz", **ARRAYS, spikes=True)
    for message, place, options in (
        ("expected a data set: digits, .*; or one's own as NAME.npz, a folder of .npy files or", "mine", {}),
        ("data no_module_here:f: there is no module", "no_module_here:f", {}),
        ("data json:nothing: module 'json' has no 'nothing'", "json:nothing", {}),
        ("data os:getcwd gives a str; expected a function that returns a Dataset", "os:getcwd", {}),
        ("data is ':f'; expected module:name", ":f", {}),
        ("n_frames is 4, but mine.npz holds constant inputs", "mine.npz", {"n_frames": 4}),
        ("n_frames is 4, but trains.npz holds trains of 2 steps", "trains.npz", {"n_frames": 4}),
        ("limit is 0; expected a whole number", "mine.npz", {"limit": 0}),
    ):
        with pytest.raises(ValueError, match=message):
            load(place, **options)
    assert read_own("mine.npz").n_classes == 3


def test_recordings_are_counted_and_shortened_without_being_read():
    frames = EventFrames(tuple(Path(f"{k}.bin") for k in range(3)), 4)
    data = Dataset("events", frames, Y[:3], frames, Y[:3], 3, 1.0, None, "", spikes=True)
    assert (data.input_shape, data.n_frames) == ((2, 34, 34), 4)
    assert data.first(2).x_test.paths == frames.paths[:2]
    packed = replace(data, x_train=replace(frames, packed=np.eye(3, dtype=np.uint8)))
    assert packed.first(2).x_train.packed.tolist() == [[1, 0, 0], [0, 1, 0]]
    with pytest.raises(ValueError, match=r"data set 'events', test: y has shape \(2,\), expected \(3,\)"):
        replace(data, y_test=Y[:2])


def header(shape, descr="<f4"):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text


HOSTILE = {
    "a terabyte announced": header("(1000000000000,)") + b"x",
    "no element of a huge shape": header("(0, 4611686018427387904, 4611686018427387904)"),
    "a negative length": header("(-1,)") + b"xxxx",
    "nested brackets": header("(" * 9000 + ")" * 9000),
    "many signs": header("-" * 9000 + "1"),
    "an unclosed bracket": header("(1, ['"),
    "objects": header("(1,)", "|O") + b"x" * 8,
    "an unknown version": b"\x93NUMPY\x07\0" + bytes(20),
    "bytes after the array": header("(1,)") + bytes(5),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.filterwarnings("ignore:Reading `.npy`:UserWarning")
def test_hostile_arrays_are_refused_before_there_is_room_for_them(tmp_path, content, archived):
    place = tmp_path / "data.npz" if archived else tmp_path
    if archived:
        with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x_train.npy", content)
    else:
        (tmp_path / "x_train.npy").write_bytes(content)
    with pytest.raises(DataError, match="is damaged or holds something else than arrays of numbers"):
        read_own(str(place))


def test_an_archive_that_announces_more_than_it_can_hold(tmp_path):
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_train.npy", header("(1000000000,)"))
    data = bytearray(path.read_bytes())
    # The size in the directory, 24 bytes behind its mark.
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = (len(header("(1000000000,)")) + 4_000_000_000).to_bytes(4, "little")
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(DataError, match="is damaged"):
        read_own(str(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000
