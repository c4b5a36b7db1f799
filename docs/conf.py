"""Sphinx settings: ``sphinx-build docs docs/_build/html``."""

import importlib.metadata
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "ide_ref"
author = "the ide_ref developers"
release = importlib.metadata.version("ide_ref")
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.linkcode",
    "numpydoc",
    "site_pages",
]
exclude_patterns = ["_build", "jupyter_execute", "examples", "explorer"]
nitpicky = True

# Notebooks are shown with the outputs that they were stored with.
nb_execution_mode = "off"
nb_ipywidgets_js: dict = {}
myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "attrs_inline", "colon_fence"]
myst_heading_anchors = 3
# MathJax is copied into the site (site_pages), one file that draws SVG: no network, no fonts.
mathjax_path = "tex-svg-full.js"
mathjax3_config = {"svg": {"fontCache": "local"}, "options": {"enableMenu": False}}

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autosummary_generate = False
numpydoc_show_class_members = False

html_theme = "furo"
html_title = "ide_ref"
html_static_path = ["_static", "explorer"]  # the latter: scripts and style of explorer.md
html_css_files = ["site.css"]
html_js_files = ["site.js"]
# Summaries of search results are fetched from the pages, which a browser refuses on pages opened from disk.
html_show_search_summary = False
html_copy_source = False
html_show_copyright = False


def linkcode_resolve(domain: str, info: dict) -> str | None:
    """Where an object of the API pages, which all lie in ``api/``, is in the source pages."""
    from site_pages import line_of

    found = line_of(info["module"], info["fullname"])
    return found and f"../{found}"
