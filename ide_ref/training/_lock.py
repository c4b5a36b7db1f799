"""One training in a folder at a time."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ide_ref import _checks

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody else's for as long: a lock of the operating system, which ends with this process however that ends.

    It is held on a file ``.lock`` that names process and host, and that is removed afterwards. Platforms without
    ``fcntl`` have no lock; a RuntimeWarning says so where a file system has none.

    Raises
    ------
    ValueError
        Another process holds it, which the message names.
    OSError
        The folder cannot be written.
    """
    if fcntl is None:
        yield
        return
    path = folder / ".lock"
    file = _taken(path)
    try:
        yield
    finally:
        # In this order nobody can hold a lock on a file that is gone.
        with suppress(OSError):
            path.unlink()
        os.close(file)


def _taken(path: Path) -> int:
    """The file at `path`, made if missing, open and locked."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 300, 0).decode(errors="replace").strip() or "another process"
            os.close(file)
            raise ValueError(
                f"{path.parent}: {holder} writes there; wait for its end or choose another --out"
            ) from None
        except OSError as error:
            _checks.warn(f"{path}: cannot be locked ({error.strerror}); see that no second run writes there")
        # The holder before may have removed it meanwhile.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                # A full disk takes no name, but the lock is held.
                with suppress(OSError):
                    os.ftruncate(file, 0)
                    os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                return file
        os.close(file)
