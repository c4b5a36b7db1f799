import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ide_ref.datasets import DataError, EventFrames, Events, bin_events, find_recordings, read_events, write_events

PIXEL = st.integers(0, 33)
RECORDING = st.lists(
    st.tuples(PIXEL, PIXEL, st.integers(0, 1), st.integers(0, 2**23 - 1)), min_size=1, max_size=40
).map(lambda events: sorted(events, key=lambda event: event[3]))


def as_events(rows):
    x, y, p, t = np.array(rows, np.int64).reshape(-1, 4).T
    return Events(x.astype(np.uint8), y.astype(np.uint8), p.astype(np.uint8), t)


UNEQUAL = Events(np.zeros(1, np.uint8), *np.zeros((2, 2), np.uint8), np.zeros(2, int))


def as_rows(events):
    return list(zip(*(column.tolist() for column in vars(events).values()), strict=True))


@given(rows=RECORDING)
def test_reading_and_writing_follow_the_bit_layout(tmp_path_factory, event_bytes, rows):
    path = tmp_path_factory.mktemp("events") / "00001.bin"
    path.write_bytes(event_bytes(rows))
    events = read_events(path)
    assert as_rows(events) == rows
    assert len(events) == len(rows)
    again = path.with_name("again.bin")
    write_events(again, events)
    assert again.read_bytes() == path.read_bytes()


def test_an_overflow_record_moves_the_time_of_all_later_events(tmp_path, event_bytes):
    path = tmp_path / "long.bin"
    mark = (0, 240, 0, 0)
    path.write_bytes(event_bytes([(1, 2, 1, 10), mark, (3, 4, 0, 5), mark, mark, (5, 6, 1, 0)]))
    assert as_rows(read_events(path)) == [(1, 2, 1, 10), (3, 4, 0, 8192 + 5), (5, 6, 1, 3 * 8192)]


@pytest.mark.parametrize(
    ("rows", "cut", "message"),
    [
        ([], 0, "byte 0: found the end of the file, expected a whole number of 5-byte events"),
        ([(1, 1, 1, 1)] * 2, 2, "byte 8: found the end of the file, expected a whole number of 5-byte events"),
        ([(1, 1, 1, 1), (34, 5, 1, 2)], 0, "byte 5: found column 34, row 5, expected both below 34"),
        ([(1, 1, 1, 1), (1, 1, 1, 1), (7, 99, 0, 2)], 0, "byte 10: found column 7, row 99, expected both below 34"),
        ([(1, 1, 1, 9), (2, 2, 0, 8)], 0, "byte 5: found time 8 µs after 9 µs, expected times in order"),
        # The offset counts the overflow records that the times do not.
        ([(0, 240, 0, 0), (1, 1, 1, 9), (0, 240, 0, 0), (50, 2, 0, 8)], 0, "byte 15: found column 50"),
    ],
)
def test_damage_is_named_with_its_place(tmp_path, event_bytes, rows, cut, message):
    path = tmp_path / "00001.bin"
    content = event_bytes(rows)
    path.write_bytes(content[: len(content) - cut])
    with pytest.raises(DataError, match=re.escape(f"{path}: {message}")):
        read_events(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (UNEQUAL, r"events.x is uint8 of shape \(1,\), expected \(2,\) integers"),
        ([(34, 0, 0, 0)], "events.x reaches from 34 to 34, expected 0 to 33"),
        ([(0, 40, 0, 0)], "events.y reaches from 40 to 40, expected 0 to 33"),
        ([(0, 0, 2, 0)], "events.polarity reaches from 2 to 2, expected 0 to 1"),
        ([(0, 0, 0, 2**23)], "events.t reaches from 8388608 to 8388608, expected 0 to 8388607"),
        ([(0, 0, 0, 5), (0, 0, 0, 4)], "events.t is not in order"),
    ],
)
def test_what_the_format_cannot_hold_is_not_written(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        write_events(tmp_path / "x.bin", rows if rows is UNEQUAL else as_events(rows))
    assert not list(tmp_path.iterdir())


def binned(rows, n_frames, window):
    """The rule of bin_events, an event at a time."""
    counts = np.zeros((n_frames, 2, 34, 34), int)
    for x, y, p, t in rows:
        frame = t // window if window else t * n_frames // (rows[-1][3] + 1)
        if frame < n_frames:
            counts[frame, p, y, x] += 1
    return counts


@given(rows=RECORDING, n_frames=st.integers(1, 12), window=st.none() | st.integers(1, 2**20))
@example(rows=[], n_frames=3, window=None)
@example(rows=[], n_frames=3, window=10)
@example(rows=[(1, 2, 0, 29), (3, 4, 1, 30)], n_frames=3, window=10)
def test_frames_are_counts_of_events(rows, n_frames, window):
    events = as_events(rows)
    expected = binned(rows, n_frames, window)
    counts = bin_events(events, n_frames, window=window, binary=False)
    np.testing.assert_array_equal(counts, expected)
    spikes = bin_events(events, n_frames, window=window)
    assert spikes.dtype == np.uint8
    np.testing.assert_array_equal(spikes, expected > 0)
    if window is None:
        assert counts.sum() == len(rows)


@pytest.mark.parametrize("n_frames", [1, 3, 7])
def test_packed_frames_are_those_read_from_the_files(tmp_path, n_frames):
    rng = np.random.default_rng(1)
    paths = []
    for k in range(4):
        rows = np.column_stack([rng.integers(34, size=(50, 2)), rng.integers(2, size=50), np.arange(50) * 700])
        paths.append(tmp_path / f"{k}.bin")
        write_events(paths[-1], as_events(rows))
    lazy = EventFrames(tuple(paths), n_frames)
    cached = lazy.cached()
    assert lazy.shape == cached.shape == (4, n_frames, 2, 34, 34)
    assert len(lazy) == 4
    chosen = np.array([2, 0, 2])
    expected = [bin_events(read_events(paths[i]), n_frames) for i in chosen]
    for path in paths:
        np.testing.assert_array_equal(lazy.take(chosen), expected)
        path.rename(path.with_suffix(".gone")) if path == paths[-1] else None
    np.testing.assert_array_equal(cached.take(chosen), expected)
    assert cached.packed.shape == (4, -(-n_frames * 2 * 34 * 34 // 8))
    with pytest.raises(DataError, match="no such file"):
        lazy.take([3])


def fill(folder, files):
    for label in range(10):
        (folder / "Train" / str(label)).mkdir(parents=True)
    for label, name in files:
        write_events(folder / "Train" / str(label) / f"{name}.bin", as_events([(label, 0, 1, 0)]))


def test_recordings_come_in_the_order_of_their_names(tmp_path):
    fill(tmp_path, [(3, "00003"), (0, "00002"), (9, "00001"), (3, "00004"), (1, "00002")])
    paths, labels = find_recordings(tmp_path, "train")
    assert [path.stem for path in paths] == ["00001", "00002", "00002", "00003", "00004"]
    assert labels.tolist() == [9, 0, 1, 3, 3]


def test_folders_without_recordings_are_refused(tmp_path):
    fill(tmp_path, [])
    with pytest.raises(DataError, match=r"Train: no recordings, expected .bin files.*unpack Train.zip"):
        find_recordings(tmp_path, "train")
    (tmp_path / "Train" / "7").rmdir()
    with pytest.raises(DataError, match=r"7: no such folder, expected the recordings of class 7"):
        find_recordings(tmp_path, "train")


def test_a_real_recording(real_data):
    """Size, first and last event of the sample, decoded byte by byte."""
    path = real_data / "nmnist" / "sample.bin"
    if not path.is_file():
        pytest.skip("IDE_REF_DATA has no nmnist/sample.bin")
    events = read_events(path)
    content = path.read_bytes()
    assert len(events) == len(content) // 5
    for k in (0, -1):
        word = int.from_bytes(content[5 * k : 5 * k + 5 or None], "big")
        assert as_rows(events)[k] == (word >> 32, word >> 24 & 255, word >> 23 & 1, word & 0x7FFFFF)
    # Three saccades of about 100 ms: the rate is lowest between them.
    rate = np.histogram(events.t, bins=31, range=(0, 310_000))[0]
    assert min(rate[8:12]) < max(rate[:8]) / 5
    assert min(rate[18:23]) < max(rate[12:18]) / 5


@pytest.mark.parametrize("overflows", [1, 1024, 300_000])
def test_times_past_the_end_of_time_are_refused_with_their_place(tmp_path, event_bytes, overflows):
    """Through overflow records, in whatever number: such a recording could not be binned or written."""
    path = tmp_path / "late.bin"
    late = 2**23 - 1 if overflows == 1 else 0
    path.write_bytes(event_bytes([(1, 2, 1, 5)]) + event_bytes([(0, 240, 0, 0)]) * overflows)
    assert len(read_events(path)) == 1
    path.write_bytes(path.read_bytes() + event_bytes([(1, 2, 1, late)]))
    with pytest.raises(
        DataError, match=rf"late\.bin: byte {5 + 5 * overflows}: found time \d+ µs or more, expected times"
    ):
        read_events(path)
