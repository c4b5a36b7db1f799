"""The one error that everything in this package raises about data."""

from __future__ import annotations

from pathlib import Path


class DataError(ValueError):
    """Data that is missing, damaged or not what it claims to be.

    The message is one line: where, what was found, what was expected, and what to do.
    """


def damaged(path: Path, offset: int, found: str, expected: str) -> DataError:
    """Error for a file whose content is wrong at a place: what stands there, and what should.

    ``offset`` is that of the first wrong byte (for gzip, the text says which stream is counted).
    """
    return DataError(f"{path}: byte {offset}: found {found}, expected {expected}; replace the file with an intact copy")


def read_bytes(path: Path, expected: str) -> bytes:
    """Whole content of a file; DataError where it is not there or cannot be read, saying what it should hold."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, expected {expected}; run `ide-ref data`") from None
    except OSError as error:
        reason = f"cannot be read ({error.strerror}), expected {expected}; check its permissions"
        raise DataError(f"{path}: {reason}") from None
