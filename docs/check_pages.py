"""Opens every page of the built site in headless Chromium: ``python docs/check_pages.py docs/_build/html``.

At 1280 and at 380 pixels: no console errors and no failed requests, nothing wider than the page (formulas, tables
and code scroll inside their own box), all mathematics typeset, all images loaded. Then the search box finds what it is
asked. Exit status 1 where anything is wrong; ``--screenshots DIR`` keeps pictures of the pages.
"""

import argparse
import shutil
import sys
from pathlib import Path

WIDTHS = (1280, 380)
QUERIES = {"contraction": "glossary.html", "Hebbian": "derivation.html"}

# Elements that reach beyond the page, unless a box around them scrolls or hides what is too much.
TOO_WIDE = """() => {
  const width = document.documentElement.clientWidth, found = [];
  for (const e of document.body.querySelectorAll('*')) {
    const box = e.getBoundingClientRect();
    if (box.width === 0 || box.height === 0 || box.right <= width + 1) continue;
    let inside = false;
    for (let up = e.parentElement; up && up !== document.body; up = up.parentElement) {
      const style = getComputedStyle(up), edge = up.getBoundingClientRect();
      if (style.overflowX !== 'visible' && edge.right <= width + 1 || style.position === 'fixed') inside = true;
    }
    const style = getComputedStyle(e);
    if (!inside && style.position !== 'fixed' && style.visibility !== 'hidden')
      found.push(`${e.tagName.toLowerCase()}.${e.getAttribute('class')}: ${Math.round(box.right)} px, ` +
                 e.textContent.trim().slice(0, 50));
  }
  if (document.documentElement.scrollWidth > width + 1)
    found.push(`the page scrolls sideways: ${document.documentElement.scrollWidth} px`);
  return found.slice(0, 3);
}"""
MATHEMATICS = """async () => {
  const formulas = document.querySelectorAll('span.math, div.math').length;
  if (formulas === 0) return [];
  if (!window.MathJax?.startup?.promise) return ['MathJax is not there'];
  await MathJax.startup.promise;
  const found = [];
  const typeset = document.querySelectorAll('mjx-container > svg').length;
  if (typeset < formulas) found.push(`${formulas} formulas, of which ${typeset} are typeset`);
  for (const e of document.querySelectorAll('[data-mml-node="merror"]')) found.push('wrong formula: ' + e.textContent);
  return found;
}"""
IMAGES = """() => [...document.images].filter(e => e.naturalWidth === 0).map(e => 'not loaded: ' + e.src)"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path)
    parser.add_argument("--screenshots", type=Path, metavar="DIR")
    parser.add_argument("--only", metavar="TEXT", default="", help="pages whose path contains this")
    args = parser.parse_args()
    faults = check(args.site.resolve(), args.screenshots, args.only)
    print("\n".join(faults) if faults else "no faults")
    return bool(faults)


def check(site: Path, screenshots: Path | None = None, only: str = "") -> list[str]:
    """A line for each fault."""
    from playwright.sync_api import sync_playwright

    pages = sorted(page for page in site.rglob("*.html") if "_static" not in page.parts and only in str(page))
    faults: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for width in WIDTHS:
            tab = browser.new_page(viewport={"width": width, "height": 900})
            said: list[str] = []  # of the page that is open
            tab.on("console", lambda m, said=said: m.type == "error" and said.append(f"console: {m.text}"))
            tab.on("pageerror", lambda error, said=said: said.append(f"error: {error}"))
            tab.on("requestfailed", lambda request, said=said: said.append(f"not loaded: {request.url}"))
            tab.on("request", lambda r, said=said: r.url.startswith("http") and said.append(f"network: {r.url}"))
            for page in pages:
                tab.goto(page.as_uri())
                for script in (MATHEMATICS, IMAGES, TOO_WIDE):
                    said += tab.evaluate(script)
                faults += [f"{page.relative_to(site)} at {width} px: {text}" for text in said]
                said.clear()
                if screenshots:
                    screenshots.mkdir(parents=True, exist_ok=True)
                    name = str(page.relative_to(site).with_suffix("")).replace("/", "-")
                    tab.screenshot(path=screenshots / f"{name}-{width}.png", full_page=True)
            for query, expected in QUERIES.items():
                tab.goto((site / "search.html").as_uri() + f"?q={query}")
                tab.wait_for_selector("#search-results p.search-summary:has-text('found')", timeout=20_000)
                links = tab.eval_on_selector_all("#search-results a", "all => all.map(e => e.getAttribute('href'))")
                if not any(link.split("?")[0].split("#")[0].endswith(expected) for link in links):
                    faults.append(f"search for {query} at {width} px does not find {expected}")
            tab.close()
        browser.close()
    return faults


if __name__ == "__main__":
    sys.exit(main())
