"""A small checkpoint, a small preset by name, and a way to run a command line."""

import pytest
import tiny

from ide_ref import presets
from ide_ref.cli import main
from ide_ref.training import checkpoint
from ide_ref.training.loop import begin


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """Path of a checkpoint of the tiny preset before its first batch; who changes it takes a copy."""
    path = tmp_path_factory.mktemp("drawn") / "tiny.safetensors"
    checkpoint.save(path, begin(tiny.preset(), 0))
    return path


@pytest.fixture
def named(monkeypatch):
    """The tiny preset, of two epochs, is known by its name."""
    monkeypatch.setitem(presets._TABLE, "tiny", tiny.preset(epochs=2))


@pytest.fixture
def run(capsys):
    """Run a command line: exit status, standard output, standard error."""

    def call(*words):
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call
