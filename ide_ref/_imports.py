"""Objects that a user names as ``module:name``."""

from __future__ import annotations

import importlib
import sys
from typing import Any


def imported(option: str, place: str) -> Any:
    """What ``module:name`` stands for; modules are looked for in the working folder first."""
    module, colon, name = place.partition(":")
    if not (module and colon and name) or module.startswith("."):
        raise ValueError(f"{option} is {place!r}; expected module:name")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"{option} {place}: there is no module {module!r} here; expected a name without .py") from None
    except AttributeError:
        raise ValueError(f"{option} {place}: module {module!r} has no {name!r}") from None
