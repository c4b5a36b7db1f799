"""Results as files: written whole or not at all, and what JSON can hold of them."""

from __future__ import annotations

import errno
import math
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import IO, Any


def finite(value: Any) -> Any:
    """The same with null for NaN and infinite, which JSON does not know, and lists for tuples and arrays."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """A file opened for reading; OSError for a pipe or a device, which might never give anything, or never end."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return open(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise OSError(errno.EINVAL, "is no regular file", os.fspath(path))


def write_atomically(
    path: str | os.PathLike[str], data: bytes, *, previous: str | os.PathLike[str] | None = None
) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, never a part.

    The bytes go to a temporary name in the same folder, reach the disk, and take the place of `path`
    by a rename. Whatever interrupts this, the temporary file is removed and `path` stays as it was; only
    a kill leaves it behind, for `sweep`. What was at `path` goes to `previous`, if given, likewise.

    Raises
    ------
    OSError
        The folder cannot be written or the disk is full; names `path`.
    """
    path = Path(path)
    temporary, kept = (path.with_name(f".{name}.{os.getpid()}.tmp") for name in (path.name, f"{path.name}.kept"))
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            try:
                os.link(path, kept)
            except OSError:
                # Not every file system has links.
                shutil.copyfile(path, kept)
            os.replace(kept, previous)
        os.replace(temporary, path)
        if hasattr(os, "O_DIRECTORY"):
            # So that the new name, too, outlives a power cut.
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        # A full disk names no file, and the temporary name would tell no one anything.
        error.filename = os.fspath(path)
        raise
    finally:
        for left in (temporary, kept):
            with suppress(OSError):
                left.unlink(missing_ok=True)


def sweep(folder: Path, *names: str) -> None:
    """Remove what kills left of `write_atomically` to these names; for who alone writes there."""
    for name in names:
        for left in folder.glob(f".{name}.*.tmp"):
            left.unlink(missing_ok=True)
