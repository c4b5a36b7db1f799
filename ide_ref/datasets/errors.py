"""The one error that everything in this package raises about data.

Source: what is refused in ``docs/data.md``.
"""

from __future__ import annotations

import os
from pathlib import Path

from ide_ref._files import open_regular


class DataError(ValueError):
    """Data that are missing, damaged or not what they claim to be: where, what was found and expected, what to do."""


def damaged(path: Path, offset: int, found: str, expected: str) -> DataError:
    """Error for a file that is wrong from a byte on (of which stream of a gzip file the text says)."""
    return DataError(f"{path}: byte {offset}: found {found}, expected {expected}; replace the file with an intact copy")


def unreadable(error: OSError) -> DataError:
    """Error for a folder that the system keeps from us."""
    return DataError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions")


def read_bytes(path: Path, expected: str, most: int = -1) -> bytes:
    """Content of a file, or its first bytes; DataError where it cannot be read, saying what it should hold."""
    try:
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            # Python makes room for what it is asked for, which a damaged header may have made huge.
            return stream.read(size if most < 0 else min(most, size))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, expected {expected}; run `ide-ref data`") from None
    except OSError as error:
        reason = f"cannot be read ({error.strerror}), expected {expected}; check its permissions"
        raise DataError(f"{path}: {reason}") from None
