"""Every deliberately wrong port is stopped by the pack at the stage it names; the right one passes."""

import re
from pathlib import Path

import pytest
from wrong_ports import CORPUS, TAGS, OtherGeometry, Port, section

from ide_ref.verify import conformance

PAGE = (Path(__file__).parents[2] / "docs/wrong-ports.md").read_text()
REAL = {
    *("snntorch#341", "snntorch#364", "snntorch#426", "ml_genn#70", "spikingjelly#660", "spikingjelly#267"),
    *("norse#411", "NIR#137", "NIR#138", "optimistix#54", "jaxopt#466"),
}


@pytest.fixture(scope="module")
def every_case(whole_pack):
    return {case.name: case for case in conformance.load(whole_pack)}


@pytest.mark.parametrize("w", CORPUS, ids=lambda w: w.name)
def test_each_is_stopped_where_it_says(w, every_case):
    port = w.make()
    *before, last = (every_case[name] for name in w.cases)
    assert all(conformance.check(case, port(case)).complete for case in before)
    assert w.tag in last.tags
    strict = conformance.Case({**last.config, "readings": []}, last.arrays)
    found = conformance.check(strict, port(last)).divergence
    assert found is not None
    # A spike train that holds 2 is no train of zeros and ones: its dtype is said to be wrong.
    assert (found.stage, found.array, found.kind in ("value", "dtype")) == (w.stage, w.array, True), str(found)


def test_the_right_port_passes_every_case(every_case):
    port = Port()
    for case in every_case.values():
        result = conformance.check(case, port(case))
        assert result.complete, str(result.divergence)


def test_the_geometry_that_wrong_convolutions_change_is_the_right_one_unchanged(every_case):
    """So that what is caught is the change."""
    for name in ("alexnet-f-lif-static-float64-bn", "mnist-64c5-lif-static-float64-plain"):
        result = conformance.check(every_case[name], OtherGeometry()(every_case[name]))
        assert result.complete, str(result.divergence)


def test_an_acceptable_case_names_the_reading_that_it_lets_pass(every_case):
    taken = {
        w: conformance.check(every_case[w.cases[-1]], w.make()(every_case[w.cases[-1]])) for w in CORPUS if w.reading
    }
    assert len(taken) == 2
    assert all(result.complete and result.reading == w.reading for w, result in taken.items())


def test_what_is_kept_between_calls_shows_as_run_port_calls_a_port(whole_pack):
    (w,) = (w for w in CORPUS if w.name == "state-kept-between-calls")
    report = conformance.run_port(w.make(), directory=whole_pack, names=w.cases)
    assert [result.passed for result in report.results] == [True, False]
    assert report.first.stage == w.stage


def test_the_corpus_is_whole():
    names = [w.name for w in CORPUS]
    assert len(set(names)) == len(names) >= 40
    of_tags = [w.tag for w in CORPUS]
    assert set(of_tags) == set(TAGS) == set(conformance.TAGS)
    assert min(of_tags.count(tag) for tag in TAGS) >= 2
    assert {w.stage for w in CORPUS} == set(conformance.STAGES)
    assert all(re.fullmatch(r"[^|\n]+\.", w.says) for w in CORPUS)
    assert all(len(w.cases) <= 2 for w in CORPUS)
    assert {found for w in CORPUS for found in re.findall(r"\w+#\d+", w.reference)} >= REAL


def test_the_page_has_every_wrong_port_and_no_other():
    parts = re.findall(r"^## (?:" + "|".join(TAGS) + r")\n(?:(?!^## ).*\n)*", PAGE + "\n", re.M)
    assert [part.rstrip() + "\n" for part in parts] == [section(tag) for tag in TAGS]
    told = re.search(r"^(\d+) wrong ports", PAGE, re.M)
    assert int(told[1]) == len(CORPUS)
    for reference in {found for w in CORPUS for found in re.findall(r"\w+#\d+", w.reference)}:
        assert PAGE.count(reference) >= 2, f"{reference} is not told"
