"""Opens every page of the built site in headless Chromium: ``python docs/check_pages.py docs/_build/html``.

At 1280 and at 380 pixels: no console errors and no failed requests, nothing wider than the page (formulas, tables
and code scroll inside their own box), all mathematics typeset, all images loaded. Then the search box finds what it is
asked. Before that, every link inside the site leads to a page and a place that are there, and the link of every formula
in the equation index to the line of the source that states it. Exit status 1 where anything is wrong;
``--screenshots DIR`` keeps pictures of the pages.
"""

import argparse
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import chromium

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
# Links of the search, once it says how many there are; nothing after twenty seconds.
FOUND = """async () => {
  for (let i = 0; i < 200; i++) {
    if (document.querySelector('#search-results p.search-summary')?.textContent.includes('found'))
      return [...document.querySelectorAll('#search-results a')].map(e => e.getAttribute('href'));
    await new Promise((done) => setTimeout(done, 100));
  }
  return [];
}"""
IMAGES = """() => [...document.images].filter(e => e.naturalWidth === 0).map(e => 'not loaded: ' + e.src)"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path)
    parser.add_argument("--screenshots", type=Path, metavar="DIR")
    parser.add_argument("--only", metavar="TEXT", default="", help="pages whose path contains this")
    args = parser.parse_args()
    faults = check_links(args.site) + check(args.site.resolve(), args.screenshots, args.only)
    print("\n".join(faults) if faults else "no faults")
    return bool(faults)


class Page(HTMLParser):
    """The links of a page, its anchors, and the text that begins at each."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: dict[str, str] = {}
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if value and (name == "id" or (tag == "a" and name == "name")):
                self.anchors[value] = ""
            elif value and name in ("href", "src"):
                self.links.append(value)

    def handle_data(self, data: str) -> None:
        if self.anchors:
            self.anchors[next(reversed(self.anchors))] += data


def check_links(site: Path) -> list[str]:
    """A line for each link inside the site that leads nowhere, and for each formula that its link does not meet."""
    pages = {path: Page(path) for path in site.resolve().rglob("*.html") if "_static" not in path.parts}
    faults = []
    for path, page in pages.items():
        where = path.relative_to(site.resolve())
        for link in page.links:
            if re.match(r"[a-z]+:|//", link):
                continue
            file, _, anchor = unquote(link).partition("#")
            target = (path.parent / file.split("?")[0]).resolve() if file else path
            if not target.is_file():
                faults.append(f"{where} links to {link}, which is not there")
            elif anchor and target in pages and anchor not in pages[target].anchors:
                faults.append(f"{where} links to {link}, a page without that place")
    index = site.resolve() / "equations.html"
    for label, link in formulas(index.read_text()) if index.is_file() else ():
        file, _, anchor = link.partition("#")
        if f"({label}) " not in pages[(site.resolve() / file)].anchors.get(anchor, ""):
            faults.append(f"the link of ({label}), {link}, does not lead to its formula")
    return faults


def formulas(html: str) -> list[tuple[str, str]]:
    """Label and link to the source of each formula in the equation index."""
    return re.findall(r'<h3>\(([A-Z-]+)\).*?href="(source/[^"]+)">[^<]*, line \d+</a>', html, re.S)


def check(site: Path, screenshots: Path | None = None, only: str = "") -> list[str]:
    """A line for each fault."""
    pages = sorted(page for page in site.rglob("*.html") if "_static" not in page.parts and only in str(page))
    faults: list[str] = []
    with chromium.Page() as tab:
        for width in WIDTHS:
            for page in pages:
                tab.open(page.as_uri(), width=width)
                said = [text for script in (MATHEMATICS, IMAGES, TOO_WIDE) for text in tab.evaluate(f"({script})()")]
                faults += [f"{page.relative_to(site)} at {width} px: {text}" for text in tab.complaints + said]
                if screenshots:
                    screenshots.mkdir(parents=True, exist_ok=True)
                    name = str(page.relative_to(site).with_suffix("")).replace("/", "-")
                    (screenshots / f"{name}-{width}.png").write_bytes(tab.screenshot())
            for query, expected in QUERIES.items():
                tab.open((site / "search.html").as_uri() + f"?q={query}", width=width)
                links = tab.evaluate(f"({FOUND})()")
                if not any(link.split("?")[0].split("#")[0].endswith(expected) for link in links):
                    faults.append(f"search for {query} at {width} px does not find {expected}")
    return faults


if __name__ == "__main__":
    sys.exit(main())
