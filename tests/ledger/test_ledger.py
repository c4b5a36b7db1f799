"""The ledger against its page, (STEP) and the files that simulators exported; run.py alone runs the simulators."""

import json
import re
import runpy
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytest.importorskip("nir")
run = runpy.run_path(str(HERE / "run.py"))
LEDGER = json.loads((HERE / "ledger.json").read_text())
PAGE = (HERE.parent.parent / "docs/fidelity.md").read_text()


def test_the_page_has_the_rows_of_the_ledger():
    table = re.search(r"\| who .*\n\|---.*\n((?:\| .*\n)*)", PAGE)[1].splitlines()
    assert table == [run["page_row"](entry, LEDGER["versions"]) for entry in LEDGER["rows"]]


@pytest.mark.parametrize("entry", LEDGER["rows"], ids=lambda entry: f"{entry['library']}: {entry['what']}")
def test_what_the_ledger_says_of_step_is_so(entry):
    assert run["ours"](run["entry_case"](entry)) == entry["ours"] != entry["spikes"]


def test_versions_are_those_that_are_locked():
    locked = dict(re.findall(r"^([\w]+)==(\S+)$", (HERE / "requirements.txt").read_text(), re.M))
    locked |= re.findall(r"(sinabs)==(\S+)`", (HERE / "requirements.txt").read_text())
    versions = {name: version.split("+")[0] for name, version in LEDGER["versions"].items()}
    assert versions.items() <= locked.items()
    assert all(f"{name}=={version}" in PAGE for name, version in versions.items() if name == "sinabs")


def test_one_network_fires_as_in_all_simulators():
    spikes = run["ours"](LEDGER["network"]["case"])
    assert spikes == LEDGER["network"]["spikes"]
    assert sum(map(sum, spikes)) > 20


@pytest.mark.parametrize("name", ["snntorch", "norse", "sinabs", "spikingjelly"])
def test_a_file_of_another_simulator_is_read_and_fires_the_same_spikes(name):
    found = run["of_file"](name, LEDGER["network"]["case"])
    # spikingjelly exports neurons that reset to zero alone.
    assert (found == LEDGER["files"][name]) == (name != "spikingjelly")
    assert sum(map(sum, found)) > 20


@pytest.mark.parametrize("name", LEDGER["files"])
def test_without_a_reading_it_is_refused_for_what_it_leaves_open(name):
    from ide_ref.nir import load

    with pytest.raises(ValueError, match=r"NIR leaves open what .* reset: by subtraction"):
        load(HERE / "files" / f"{name}.nir")
