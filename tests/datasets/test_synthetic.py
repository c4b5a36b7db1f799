from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from ide_ref.datasets import DataError, Sensor, find_recordings, load, make_recordings, read_events, record

QUIET = Sensor(noise_rate=0.0, mismatch=0.0)


def blobs(n):
    """Digits of a kind: bright discs of different places and sizes, soft at the edge."""
    rng = np.random.default_rng(7)
    row, column = np.mgrid[:28, :28]
    centre, radius = rng.uniform(9, 19, (n, 2, 1, 1)), rng.uniform(2, 6, (n, 1, 1))
    distance = np.hypot(row - centre[:, 0], column - centre[:, 1])
    return (255 * np.clip(radius + 0.5 - distance, 0, 1)).astype(np.uint8)


def test_times_pixels_and_silence():
    (events,) = record(blobs(1), sensor=QUIET)
    assert np.all(np.diff(events.t) >= 0)
    assert events.t.min() >= 0
    assert events.t.max() <= 300_000
    assert max(events.x.max(), events.y.max()) < 34
    pixel = events.y.astype(int) * 34 + events.x
    order = np.lexsort((events.t, pixel))
    same = np.diff(pixel[order]) == 0
    # Times are whole microseconds, rounded down.
    assert np.diff(events.t[order])[same].min() >= QUIET.refractory - 1


def test_silence_is_counted_from_the_last_event_sent():
    """With a silent time, the events are those without it, thinned pixel by pixel."""
    (every,), (heard,) = (record(blobs(1), sensor=replace(QUIET, refractory=silence)) for silence in (0, 2000))
    compared = 0
    for p in np.unique(every.y.astype(int) * 34 + every.x):
        times, kept = (e.t[e.y.astype(int) * 34 + e.x == p].tolist() for e in (every, heard))
        if any(abs(b - a - 2000) <= 1 for a in times for b in times):
            continue  # whole microseconds do not decide it
        expected = times[:1]
        for t in times[1:]:
            if t - expected[-1] >= 2000:
                expected.append(t)
        assert kept == expected
        compared += len(times) - len(kept)
    assert compared > 100


def test_on_and_off_events_balance_at_every_pixel():
    """The path is closed: without silence each reference ends within two thresholds of its beginning."""
    images = blobs(6)
    for events in record(images, sensor=replace(QUIET, refractory=0)):
        net = np.zeros((34, 34), int)
        np.add.at(net, (events.y, events.x), 2 * events.polarity.astype(int) - 1)
        assert np.abs(net).max() <= 1
        assert len(events) > 300


@pytest.mark.parametrize(("sub_frames", "amplitude"), [(8, 5.0), (32, 4.0)])
def test_between_two_events_of_a_pixel_lies_one_threshold(sub_frames, amplitude):
    """L(next time) - L(time) = threshold, up for ON and down for OFF, with L interpolated linearly.

    The oracle moves the image by SciPy's interpolation along its own copy of the path.
    """
    image = blobs(3)[2:]
    sensor = replace(QUIET, refractory=0, sub_frames=sub_frames, amplitude=amplitude)
    (events,) = record(image, sensor=sensor)
    corners = 3 + amplitude * (np.array([(0, 0), (1, 0.5), (0, 1), (0, 0)]) - 0.5)  # row, column
    brightness = np.pad(image[0] / 255, ((0, 6), (0, 6)))
    intensity = []
    for k in range(3 * sub_frames + 1):
        saccade = min(k // sub_frames, 2)
        s = k / sub_frames - saccade
        place = corners[saccade] + (10 * s**3 - 15 * s**4 + 6 * s**5) * (corners[saccade + 1] - corners[saccade])
        intensity.append(np.log(sensor.floor + ndimage.shift(brightness, place, order=1).ravel()))
    moments = np.arange(3 * sub_frames + 1) * (100_000 / sub_frames)
    pixel = events.y.astype(int) * 34 + events.x
    n_pairs = 0
    for p in np.unique(pixel):
        mine = pixel == p
        level = np.interp(events.t[mine], moments, np.array(intensity)[:, p])
        sign = 2.0 * events.polarity[mine][1:] - 1
        # Times are whole microseconds, and intensity moves by up to 1e-3 in one.
        np.testing.assert_allclose(np.diff(level), sensor.threshold * sign, atol=2e-3)
        n_pairs += len(sign)
    assert n_pairs > 500


def test_noise_is_all_there_is_in_the_dark():
    dark = np.zeros((20, 28, 28), np.uint8)
    n = np.array([len(events) for events in record(dark)])
    mean = Sensor().noise_rate * 34 * 34 * 0.3
    assert n.mean() == pytest.approx(mean, abs=4 * np.sqrt(mean / 20))
    assert all(not len(events) for events in record(dark, sensor=QUIET))


def test_equal_images_give_recordings_of_their_own():
    same = record(np.repeat(blobs(1), 40, axis=0))
    assert len({events.t.tobytes() for events in same}) == 40


def recordings(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.bin"))}


def test_the_seed_the_image_and_its_index_decide_alone(tmp_path):
    images, labels = blobs(40), np.arange(40) % 10
    images.flags.writeable = False
    all_of_them = make_recordings(images, labels, tmp_path / "a", split="train", seed=3)
    make_recordings(images[:, None], labels, tmp_path / "b", split="train", seed=3, limit=35)
    a, b = recordings(tmp_path / "a"), recordings(tmp_path / "b")
    assert len(a) == 40
    assert set(b) == {f"Train/{i % 10}/{i + 1:05d}.bin" for i in range(35)}
    assert all(a[name] == b[name] for name in b)
    make_recordings(images[:1], labels[:1], tmp_path / "c", split="train", seed=4)
    assert recordings(tmp_path / "c")["Train/0/00001.bin"] != a["Train/0/00001.bin"]
    assert all_of_them.folder == tmp_path / "a" / "Train"
    assert all_of_them.n_events.tolist() == [len(a[f"Train/{i % 10}/{i + 1:05d}.bin"]) // 5 for i in range(40)]


def test_a_written_set_loads_and_says_that_it_is_synthetic(tmp_path, no_data):
    images, labels = blobs(6), np.array([3, 1, 4, 1, 5, 9])
    for split in ("train", "test"):
        make_recordings(images, labels, tmp_path / "nmnist", split=split)
    data = load("nmnist", data_dir=tmp_path, n_frames=10, limit=5)
    assert "Synthetic" in data.notice
    assert data.y_train.tolist() == labels[:5].tolist()
    assert data.n_frames == 10
    assert data.input_shape == (2, 34, 34)
    x, y = data.batch("test", [4, 0])
    assert x.shape == (2, 10, 2, 34, 34)
    assert y.tolist() == [5, 3]
    lazy = load("nmnist", data_dir=tmp_path, n_frames=10, cache=False)
    np.testing.assert_array_equal(lazy.batch("test", [4, 0])[0], x)
    paths, _ = find_recordings(tmp_path / "nmnist", "test")
    assert len(read_events(paths[4])) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((2, 27, 28), np.uint8)}, r"images are uint8 of shape \(2, 27, 28\), expected uint8"),
        ({"images": np.zeros((2, 28, 28))}, "images are float64"),
        ({"labels": [1]}, r"labels are int64 of shape \(1,\), expected \(2,\) integers"),
        ({"labels": [1, 10]}, "labels reach from 1 to 10, expected 0 to 9"),
        ({"split": "valid"}, "split is 'valid'; expected one of train, test"),
        ({"limit": 0}, "limit is 0; expected a whole number of at least 1"),
        ({"images": np.zeros((2, 28, 28), np.uint8), "sensor": QUIET}, r"images\[0\] gives no event"),
    ],
)
def test_wrong_arguments_write_nothing(tmp_path, change, message):
    arguments = {"images": blobs(2), "labels": [0, 1], "split": "train", "limit": None, "sensor": None} | change
    with pytest.raises(ValueError, match=message):
        make_recordings(out_dir=tmp_path / "out", **arguments)
    assert not recordings(tmp_path)
    assert not list(tmp_path.glob("out/*"))


def test_an_existing_split_is_kept(tmp_path):
    make_recordings(blobs(1), [0], tmp_path, split="train")
    before = recordings(tmp_path)
    with pytest.raises(DataError, match="Train: exists already"):
        make_recordings(blobs(2), [0, 1], tmp_path, split="train")
    assert recordings(tmp_path) == before


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        make_recordings(blobs(1), [0], tmp_path / "file" / "out", split="train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.001}, "threshold is 0.001, expected at least 0.01"),
        ({"amplitude": 6.0}, "amplitude is 6.0, expected 0 to 5 pixels"),
    ],
)
def test_impossible_sensors(options, message):
    with pytest.raises(ValueError, match=message):
        Sensor(**options)
