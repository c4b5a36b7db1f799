"""Frames a second of the explorer while it plays, in headless Chromium: ``python docs/explorer_frames.py``.

A screen's clock gives 60 at most. The processor time of the page's main thread per frame, which does not depend on what
else the machine does, stands beside it: below 16.7 ms it can keep up.
"""
# ruff: noqa: T201

from pathlib import Path

import chromium

INDEX = Path(__file__).parent / "explorer/index.html"
SETTINGS = ["n=32&T=1000", "n=200&T=1000", "n=200&T=1000&hears=50&gamma=0.97", "n=200&T=1000&time=continuous&drive=1"]
FRAMES = """
new Promise((done) => {
  document.querySelectorAll(".ide-act")[%d].scrollIntoView();
  const times = [];
  const frame = (now) => {
    times.push(now);
    // The first second is the browser's own, compiling and laying out.
    if (now - times[0] < %d) return requestAnimationFrame(frame);
    const late = times.filter((time) => time - times[0] > 1000);
    const gaps = late.slice(1).map((time, k) => time - late[k]).sort((one, other) => one - other);
    done([gaps.length, (1000 * gaps.length) / (late.at(-1) - late[0]), gaps[Math.floor(0.95 * gaps.length)]]);
  };
  requestAnimationFrame(frame);
})
"""


def main() -> None:
    with chromium.Page() as page:
        page.call("Performance.enable", timeDomain="threadTicks")

        def busy() -> float:
            """Seconds that the page's main thread has worked."""
            return next(
                m["value"] for m in page.call("Performance.getMetrics")["metrics"] if m["name"] == "TaskDuration"
            )

        for settings in SETTINGS:
            for act, name in enumerate(("forward", "backward")):
                page.open(f"{INDEX.as_uri()}#{settings}", width=1280)
                page.evaluate(FRAMES % (act, 1200))
                before = busy()
                count, rate, late = page.evaluate(FRAMES % (act, 5000))
                work = 1000 * (busy() - before) / (count * 5 / 4)
                print(
                    f"{settings:45} {name:9} {rate:5.1f} a second, 95 % within {late:5.1f} ms, {work:5.2f} ms of work"
                )


if __name__ == "__main__":
    main()
