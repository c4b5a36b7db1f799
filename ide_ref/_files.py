"""Results as files: written whole or not at all, and what JSON can hold of them."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any


def finite(value: Any) -> Any:
    """The same with null for NaN and infinite, which JSON does not know, and lists for tuples and arrays."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, never a part.

    The bytes go to a temporary name in the same folder, reach the disk, and take the place of `path`
    by a rename. Whatever interrupts this, the temporary file is removed and `path` stays as it was.

    Raises
    ------
    OSError
        The folder cannot be written or the disk is full; names `path`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # A full disk names no file, and the temporary name would tell no one anything.
        error.filename = os.fspath(path)
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
