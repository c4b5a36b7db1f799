"""Sphinx settings: ``sphinx-build docs docs/_build``."""

project = "ide_ref"
author = "the ide_ref developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
exclude_patterns = ["_build"]
html_theme = "alabaster"

html_static_path = ["explorer"]  # scripts and style of explorer.md
