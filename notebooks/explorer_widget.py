"""The equilibrium explorer in a notebook: ``ExplorerWidget()`` as the last line of a cell.

It needs anywidget, which brings the page's scripts to JupyterLab, VS Code and the like; the package itself does not.
What the page draws and computes is docs/explorer, unchanged: its two classic scripts become one module here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import traitlets

EXPLORER = Path(__file__).parent.parent / "docs/explorer"

# What a notebook calls to show a widget; a value that Python sets moves the controls, and theirs come back to Python.
RENDER = """
export default {
  render({ model, el }) {
    let own = false;
    const explorer = globalThis.ideExplorer.mount(el, {
      settings: model.get("settings"),
      onchange(settings) {
        own = true;
        model.set("settings", settings);
        model.save_changes();
        own = false;
      },
    });
    const follow = () => own || explorer.set(model.get("settings"), { restart: false });
    model.on("change:settings", follow);
    return () => (model.off("change:settings", follow), explorer.destroy());
  },
};
"""


def module_text() -> str:
    """ide.js and explorer.js, and the module that shows them."""
    return "\n".join([*((EXPLORER / name).read_text(encoding="utf-8") for name in ("ide.js", "explorer.js")), RENDER])


class ExplorerWidget(anywidget.AnyWidget):
    """The explorer, with the ``settings`` of its controls.

    They are n, hears (the fan-in), gamma, leak, vTh, drive, contrast, T, time (discrete or continuous), delay and seed.

    >>> explorer = ExplorerWidget(settings={"gamma": 0.9, "n": 60})

    ``explorer.settings`` has what the controls show, and may be set.
    """

    _esm = module_text()
    _css = (EXPLORER / "explorer.css").read_text(encoding="utf-8")
    settings: Any = traitlets.Dict().tag(sync=True)
