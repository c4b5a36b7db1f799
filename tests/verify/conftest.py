"""Conformance packs, made once per run; a test that alters one copies what it changes."""

import pytest
from packs import DROPOUT, ONE, SPIKES

from ide_ref.verify import conformance


@pytest.fixture(scope="session")
def whole_pack(tmp_path_factory):
    """Folder of all cases."""
    directory = tmp_path_factory.mktemp("whole")
    conformance.make(directory)
    return directory


@pytest.fixture(scope="session")
def pack(tmp_path_factory):
    """Folder of three cases."""
    directory = tmp_path_factory.mktemp("pack")
    conformance.make(directory, names=(DROPOUT, SPIKES, ONE))
    return directory


@pytest.fixture(scope="session")
def cases(pack):
    return {case.name: case for case in conformance.load(pack)}


@pytest.fixture
def case(cases):
    return cases[ONE]
