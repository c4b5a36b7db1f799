"""The explorer in a notebook: the module that anywidget gets, in headless Chromium with a model like anywidget's."""

import importlib.util
import json
from pathlib import Path

import chromium
import pytest

pytest.importorskip("anywidget", reason="needs anywidget, which shows the explorer in notebooks")

SOURCE = Path(__file__).parent.parent / "notebooks/explorer_widget.py"

# The module as text, as anywidget hands it over, and a model that keeps values and tells of their changes.
HOST = """
(async () => {
  const module = await import(URL.createObjectURL(new Blob([%s], { type: "text/javascript" })));
  const style = document.head.appendChild(document.createElement("style"));
  style.textContent = %s;
  const values = { settings: %s };
  const listeners = new Set();
  let saved = 0;
  const model = {
    get: (name) => values[name],
    set(name, value) { values[name] = value; for (const tell of listeners) tell(); },
    save_changes: () => (saved += 1),
    on: (_, listener) => listeners.add(listener),
    off: (_, listener) => listeners.delete(listener),
  };
  const el = document.body.appendChild(document.createElement("div"));
  const end = await module.default.render({ model, el });
  const frame = () => new Promise(requestAnimationFrame);
  const output = (name) => [...el.querySelectorAll("label")].find((one) => one.textContent === name).nextElementSibling;
  for (let k = 0; k < 5; k++) await frame();
  const seen = { first: output("Neurons").textContent };
  const input = el.querySelector("input");
  input.value = 9;
  input.dispatchEvent(new Event("input"));
  seen.moved = values.settings.n;
  seen.saved = saved;
  model.set("settings", { ...values.settings, n: 5 });
  await frame();
  seen.set = output("Neurons").textContent;
  model.set("settings", { n: -3, gamma: 2, T: "many", time: "never" });
  await frame();
  seen.inside = ["n", "gamma", "T", "time"].map((name) => values.settings[name]);
  seen.canvases = el.querySelectorAll("canvas").length;
  end();
  await frame();
  return { ...seen, left: el.children.length, listeners: listeners.size };
})()
"""


@pytest.fixture(scope="module")
def widget():
    spec = importlib.util.spec_from_file_location("explorer_widget", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_widget_has_the_scripts_and_settings(widget):
    made = widget.ExplorerWidget(settings={"n": 12})
    assert made.settings == {"n": 12}
    state = made.get_state()
    for name in ("ide.js", "explorer.js"):
        assert (widget.EXPLORER / name).read_text() in state["_esm"]
    assert ".ide-explorer" in state["_css"]
    assert "settings" in state


@pytest.mark.skipif(chromium.PROGRAM is None, reason="needs Chromium, which runs the widget's module")
def test_its_module_renders_and_follows_both_ways(widget, tmp_path):
    host = tmp_path / "host.html"
    host.write_text("<!doctype html><meta charset='utf-8'><body></body>")
    made = widget.ExplorerWidget(settings={"n": 12}).get_state()
    with chromium.Page() as page:
        page.open(host.as_uri(), width=900)
        seen = page.evaluate(HOST % tuple(json.dumps(made[name]) for name in ("_esm", "_css", "settings")))
        assert page.complaints == []
    assert seen["saved"] > 0
    assert (seen["first"], seen["moved"], seen["set"]) == ("12", 9, "5")
    assert seen["inside"] == [1, 0.99, 200, "discrete"]
    assert (seen["canvases"], seen["left"], seen["listeners"]) == (6, 0, 0)
