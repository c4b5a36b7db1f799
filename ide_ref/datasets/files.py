"""A user's own data set, read from a file, a folder, or by a function.

Source: forms of arrays and files in ``docs/data.md``.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ide_ref._imports import imported
from ide_ref.datasets.dataset import Dataset
from ide_ref.datasets.errors import DataError

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_OPTIONS = ("n_classes", "scale", "spikes")


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
        # Pickled objects could run anything.
        if path.is_dir():
            files = {name: path / f"{name}.npy" for name in known}
            return {name: np.load(file, allow_pickle=False) for name, file in files.items() if file.exists()}
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in known if name in archive}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; say with --data where it is") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None
    except (ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error):
        told = "is damaged or holds something else than arrays of numbers"
        raise DataError(f"{path}: {told}; write it with numpy.savez(path, x_train=..., ...)") from None
