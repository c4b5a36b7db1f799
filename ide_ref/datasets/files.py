"""A user's own data set, read from a file, a folder, or by a function.

Source: forms of arrays and files in ``docs/data.md``.
"""

from __future__ import annotations

import math
import os
import tokenize
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ide_ref._files import open_regular
from ide_ref._imports import imported
from ide_ref.datasets.dataset import Dataset
from ide_ref.datasets.errors import DataError

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_OPTIONS = ("n_classes", "scale", "spikes")
_BROKEN = (zipfile.BadZipFile, zlib.error, tokenize.TokenError)
_MOST_DEFLATED = 1032
"""Bytes that a byte of deflate can stand for."""
_LONGEST_HEADER = 1000
"""Characters, as NumPy has it; that of 32 dimensions fits, and nothing that is too deep for Python's parser."""


def is_own(place: str) -> bool:
    """Whether this looks like a place for :func:`read_own` rather than a name."""
    return place.endswith(".npz") or ":" in place or (place != "" and Path(place).is_dir())


def is_function(place: str) -> bool:
    """Whether a place of data is ``module:function``, no file and no folder."""
    return ":" in place and not Path(place).exists()


def read_own(place: str) -> Dataset:
    """A data set of one's own.

    Parameters
    ----------
    place : str
        A file ``NAME.npz`` with the arrays x_train, y_train, x_test and y_test; a folder with ``x_train.npy`` and so
        on; or ``module:function``, a function without arguments that returns a :class:`Dataset`, in a module that is
        looked for in the working folder first. Files may hold n_classes, scale and spikes besides, one number each,
        see :meth:`Dataset.from_arrays`.

    Raises
    ------
    DataError
        No such file, one that is damaged, or an array that is missing or does not fit.
    ValueError
        No such module or function, or one that returns something else.
    """
    if is_function(place):
        make = imported("data", place)
        found = make() if callable(make) else make
        if not isinstance(found, Dataset):
            raise ValueError(f"data {place} gives a {type(found).__name__}; expected a function that returns a Dataset")
        return found
    path = Path(place)
    arrays = _read(path)
    missing = [name for name in _ARRAYS if name not in arrays]
    if missing:
        raise DataError(f"{path}: holds no {', '.join(missing)}; expected the arrays {', '.join(_ARRAYS)}")
    try:
        options: dict[str, Any] = {name: arrays[name].item() for name in _OPTIONS if name in arrays}
        data = Dataset.from_arrays(*(arrays[name] for name in _ARRAYS), name=path.stem, **options)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    return replace(data, source=path)


def _read(path: Path) -> dict[str, NDArray]:
    """The arrays that a data set is made of, as far as the file or folder has them."""
    known = (*_ARRAYS, *_OPTIONS)
    try:
        if path.is_dir():
            return {name: _read_npy(path / f"{name}.npy") for name in known if (path / f"{name}.npy").exists()}
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            size, there = os.fstat(file.fileno()).st_size, archive.namelist()
            return {name: _read_member(archive, f"{name}.npy", size) for name in known if f"{name}.npy" in there}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; say with --data where it is") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None
    # All that zipfile and NumPy's reader of headers are known to raise.
    except (ValueError, TypeError, LookupError, EOFError, ArithmeticError, RuntimeError, SyntaxError, *_BROKEN):
        told = "is damaged or holds something else than arrays of numbers"
        raise DataError(f"{path}: {told}; write it with numpy.savez(path, x_train=..., ...)") from None


def _read_npy(path: Path) -> NDArray:
    with open_regular(path) as file:
        return _read_array(file, os.fstat(file.fileno()).st_size)


def _read_member(archive: zipfile.ZipFile, name: str, size: int) -> NDArray:
    """An array of an archive of so many bytes."""
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.file_size > _MOST_DEFLATED * size:
        raise ValueError("more than an archive of this size can hold")
    with archive.open(info) as file:
        return _read_array(file, info.file_size)


def _read_array(file: IO[bytes], size: int) -> NDArray:
    """The array of a .npy file of so many bytes; ValueError, before there is room for it, where it says otherwise."""
    form = np.lib.format
    read_header = {(1, 0): form.read_array_header_1_0, (2, 0): form.read_array_header_2_0}[form.read_magic(file)]
    shape, _, dtype = read_header(file, max_header_size=_LONGEST_HEADER)
    if math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError("header and size differ")
    file.seek(0)
    # Pickled objects could run anything.
    return form.read_array(file, allow_pickle=False, max_header_size=_LONGEST_HEADER)
