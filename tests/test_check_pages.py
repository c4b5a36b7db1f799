"""The check of the built site finds what it is for, on pages that are wrong in one way each."""

import check_pages
import chromium
import pytest


def pages(folder, **bodies):
    for name, body in bodies.items():
        html = f'<!doctype html><html><head><meta charset="utf-8"></head><body>{body}</body></html>'
        (folder / f"{name}.html").write_text(html)
    return folder


def test_links_that_lead_nowhere_are_found(tmp_path):
    line = '<h3>(STEP) One step</h3><a href="source/a.html#L-1">a.py, line 1</a>'
    (tmp_path / "source").mkdir()
    pages(tmp_path / "source", a='<span id="L-1">(RATE) a[t]</span>')
    pages(
        tmp_path, one='<p id="here"><a href="two.html#there">x</a><a href="#here">y</a>', two='<a href="no.html">z</a>'
    )
    pages(tmp_path, equations=line)
    assert sorted(check_pages.check_links(tmp_path)) == [
        "one.html links to two.html#there, a page without that place",
        "the link of (STEP), source/a.html#L-1, does not lead to its formula",
        "two.html links to no.html, which is not there",
    ]
    pages(tmp_path / "source", a='<span id="L-1">(STEP) v = 1</span>')
    pages(tmp_path, one="", two="")
    assert check_pages.check_links(tmp_path) == []


@pytest.mark.slow
@pytest.mark.skipif(chromium.PROGRAM is None, reason="needs Chromium, which shows the pages")
def test_what_a_browser_shows_is_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(check_pages, "QUERIES", {})
    long = "x" * 400
    pages(
        tmp_path,
        error="<script>console.error('broken')</script>",
        image='<img src="no.png">',
        inside=f'<div style="overflow-x: auto"><pre>{long}</pre></div>',
        mathematics='<span class="math">x</span>',
        network='<script src="http://127.0.0.1:9/x.js"></script>',
        wide=f"<pre>{long}</pre>",
    )
    found = {fault.split(" at ")[0] for fault in check_pages.check(tmp_path)}
    assert found == {"error.html", "image.html", "mathematics.html", "network.html", "wide.html"}
