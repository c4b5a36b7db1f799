"""The explorer's page, opened from disk: no error, nothing wider than the page, it plays, pauses and ends."""

import re
from pathlib import Path

import chromium
import pytest

INDEX = Path(__file__).parent.parent / "docs/explorer/index.html"

pytestmark = pytest.mark.skipif(chromium.PROGRAM is None, reason="needs Chromium, which shows the explorer's page")

# Uses every control as a visitor would, and tells what was seen.
VISIT = r"""
(async () => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const frames = (count) => new Promise((done) => {
    const next = () => (count-- > 0 ? requestAnimationFrame(next) : done());
    next();
  });
  const status = () => all(".ide-status").map((one) => one.textContent);
  const settle = async () => {
    do await frames(3);
    while (!(/t = (\d+) of \1$/.test(status()[0]) && status()[1] === "∇W is complete"));
  };
  const wide = () => all("body *")
    .filter((one) => one.getBoundingClientRect().right > innerWidth + 0.5)
    .map((one) => `${one.tagName}.${one.className}`);
  const blank = () => all("canvas").filter((canvas) => {
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
    return !data.some((value) => value > 0);
  }).map((canvas) => canvas.className);
  const seen = { wide: [], blank: [], experiments: [] };
  const note = () => document.querySelector(".ide-note").textContent;
  for (const button of all(".ide-experiments button")) {
    button.click();
    await settle();
    seen.wide.push(...wide());
    seen.blank.push(...blank());
    seen.experiments.push([button.textContent, note(), ...status()]);
  }
  for (const input of all("input[type=range]:enabled")) {
    for (const value of [input.max, input.min, input.defaultValue]) {
      input.value = value;
      input.dispatchEvent(new Event("input", { bubbles: true }));
      await frames(1);
    }
  }
  all(".ide-experiments button")[0].click();
  await settle();
  const matrix = document.querySelector(".ide-matrix");
  for (const key of ["ArrowDown", "ArrowDown", "ArrowRight"]) {
    matrix.dispatchEvent(new KeyboardEvent("keydown", { key }));
  }
  seen.cell = document.querySelector(".ide-cell").textContent;
  seen.unlabelled = all("input, select, button, canvas")
    .filter((one) => !(one.labels && one.labels.length) && !one.textContent.trim() && !one.getAttribute("aria-label"))
    .map((one) => one.outerHTML);
  seen.loaded = performance.getEntriesByType("resource").map((one) => one.name);
  return seen;
})()
"""


@pytest.fixture(scope="module")
def page():
    with chromium.Page() as page:
        yield page


@pytest.mark.parametrize("width", [380, 1280])
def test_a_visit_without_motion(page, width):
    """What would move is complete at once; every experiment and every control from end to end."""
    page.open(INDEX.as_uri(), width=width, reduced_motion=True)
    seen = page.evaluate(VISIT)
    assert page.complaints == []
    assert all(name.startswith((INDEX.parent.as_uri(), "data:")) for name in seen["loaded"])
    assert seen["wide"] == []
    assert seen["blank"] == []
    assert seen["unlabelled"] == []
    assert len({note for _, note, *_ in seen["experiments"]}) == 6
    found = re.search(r"^Row 3, column 2: .* = (\S+); .*: (\S+)$", seen["cell"])
    assert found, seen["cell"]
    gradient, quotient = (float(text.replace("−", "-")) for text in found.groups())
    assert gradient == pytest.approx(quotient, rel=1e-4, abs=1e-9)


def test_the_film_plays_pauses_steps_and_ends(page):
    """Of its own accord once it is in sight; the address keeps the settings."""
    page.open(INDEX.as_uri() + "#n=3&T=20&drive=0.5&speed=9&n=1e9&gamma=no", width=900)
    running = page.evaluate(
        r"""
        (async () => {
          const all = (selector) => [...document.querySelectorAll(selector)];
          const frame = () => new Promise(requestAnimationFrame);
          // Before the first frame no time is shown.
          const time = () => +(all(".ide-status")[0].textContent.match(/t = (\d+)/) || [0, -1])[1];
          const [play, step, again] = all(".ide-transport button");
          while (time() < 2) await frame();
          play.click();
          await frame();
          const paused = [play.textContent, time()];
          for (let k = 0; k < 5; k++) await frame();
          paused.push(time());
          step.click();
          await frame();
          paused.push(time());
          again.click();
          await frame();
          paused.push(time());
          play.click();
          while (play.textContent !== "Play again") await frame();
          const output = (name) => all("label").find((one) => one.textContent === name).nextElementSibling.textContent;
          all("input")[5].dispatchEvent(new Event("input"));
          return [...paused, time(), step.disabled, output("Neurons"), output("Contraction γ"), location.hash];
        })()
        """
    )
    word, paused, later, stepped, again, *end = running
    assert word == "Play"
    assert (later, stepped, again) == (paused, paused + 1, 0)
    assert end == [20, True, "200", "0.70", "#n=200&drive=0.5&T=20"]
    assert page.complaints == []
