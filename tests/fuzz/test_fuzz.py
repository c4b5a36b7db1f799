"""No file and no command line is answered with a traceback, a hang or memory out of proportion.

``python -m pytest tests/fuzz --hypothesis-profile=fuzz`` tries 12,000, a thousand a reader;
``python tests/fuzz/fuzz.py`` searches guided by coverage. What ever failed stays in ``corpus/READER/``.
"""

import copy
import json
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from readers import READERS, judge

CORPUS = Path(__file__).parent / "corpus"
JSON = {"metadata", "manifest"}


@contextmanager
def stopped_after(seconds):
    """AssertionError for what hangs."""

    def stop(*_):
        raise AssertionError(f"no end within {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@st.composite
def mutated(draw, seeds):
    """A sound file with bytes changed, put in, taken out or repeated; or any bytes at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        # Headers, at the front, are where it hurts.
        at = draw(st.one_of(st.integers(0, min(len(data), 40)), st.integers(0, len(data))))
        kind = draw(st.sampled_from(("set", "insert", "cut", "drop", "repeat")))
        if kind == "set":
            new = draw(st.binary(min_size=1, max_size=8))
            data[at : at + len(new)] = new
        elif kind == "insert":
            data[at:at] = draw(
                st.one_of(st.binary(max_size=8), st.sampled_from([b"[" * 5000, b"9" * 5000, b"-" * 5000]))
            )
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + draw(st.integers(1, 20))]
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 2000))]
    return bytes(data)


VALUES = st.one_of(
    st.sampled_from(
        [None, True, False, [], {}, "", "x", [None], [1], ["x"], [{}], {"a": 1}, float("nan"), float("inf")]
    ),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 10**6, 10**20, 10**400, 1e-320, 1e308, -0.0, 0.5]),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
)


def places(document, path=()):
    """Where a JSON document has values."""
    yield path
    if isinstance(document, dict | list):
        for key, value in document.items() if isinstance(document, dict) else enumerate(document):
            yield from places(value, (*path, key))


@st.composite
def edited(draw, seeds):
    """A sound document with other values in some places, or without them."""
    document = copy.deepcopy(json.loads(draw(st.sampled_from(seeds))))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([path for path in places(document) if path] or [()]))
        if not path:
            return json.dumps(draw(VALUES)).encode()
        parent = document
        for key in path[:-1]:
            parent = parent[key]
        kind = draw(st.sampled_from(("set", "set", "wrap", "remove")))
        if kind == "remove":
            del parent[path[-1]]
        else:
            parent[path[-1]] = [parent[path[-1]]] if kind == "wrap" else draw(VALUES)
    return json.dumps(document).encode()


@pytest.mark.parametrize("name", READERS)
def test_sound_files_are_read(name, tmp_path):
    reader = READERS[name]
    for i, seed in enumerate(reader.seeds()):
        judge(reader, seed)
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / f"file{reader.suffix}").write_bytes(seed)
        reader.read(folder / f"file{reader.suffix}")


@pytest.mark.parametrize("name", READERS)
def test_no_file_is_answered_with_a_traceback_a_hang_or_much_memory(name, no_data):
    reader = READERS[name]
    seeds = reader.seeds()
    files = st.one_of(edited(seeds), mutated(seeds)) if name in JSON else mutated(seeds)

    @given(files)
    def hostile(data):
        with stopped_after(10):
            judge(reader, data)

    hostile()


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_failed_once(path, no_data):
    with stopped_after(10):
        judge(READERS[path.parent.name], path.read_bytes())
