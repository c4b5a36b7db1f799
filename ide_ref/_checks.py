"""Refusals that several modules share."""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Container, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_PACKAGE = Path(__file__).parent


def is_real(value: object) -> bool:
    """Whether value is a finite real number, Python's or NumPy's; not a bool, not an array."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond the floats
        return False


def is_whole(value: object, least: int = 1) -> bool:
    """Whether value is an integer, Python's or NumPy's, of at least ``least``."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def is_one_of(value: object, names: Container[str]) -> bool:
    """Whether value is a string among names; False for what cannot be looked up."""
    return isinstance(value, str) and value in names


def one_of(name: str, value: object, names: Sequence[str]) -> None:
    """ValueError unless value is one of the names."""
    if not is_one_of(value, names):
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(names)}")


def whole(name: str, value: Any, least: int = 1) -> int:
    """Value as an int; ValueError unless it is a whole number of at least ``least``."""
    if not is_whole(value, least):
        raise ValueError(f"{name} is {value!r}; expected a whole number of at least {least}")
    return int(value)


def positive(name: str, value: Any) -> float:
    """Value as a float; ValueError unless it is a positive, finite number."""
    if not (is_real(value) and value > 0):
        raise ValueError(f"{name} is {value!r}; expected a positive, finite number")
    return float(value)


def tolerance(value: Any, dtype: DTypeLike, defaults: Mapping[str, float], *, must_reach: bool = True) -> float:
    """A relative tolerance: that of the dtype unless one is given; ValueError for one below what the dtype can tell."""
    dtype = np.dtype(dtype)
    if value is None:
        return defaults[dtype.name]
    tol, least = positive("tol", value), 2.0 * float(np.finfo(dtype).eps)
    if must_reach and tol < least:
        advice = "" if dtype == np.float64 else ", or compute in float64"
        raise ValueError(
            f"tol is {tol:.0e}; rounding of {dtype} keeps residuals above {least:.0e}: ask for more{advice}"
        )
    return tol


def warn(text: str) -> None:
    """A RuntimeWarning that names the line outside the package from which it was called."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and Path(frame.f_code.co_filename).is_relative_to(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, RuntimeWarning, stacklevel=level)


def shape(name: str, value: Any) -> tuple[int, ...]:
    """Value as a tuple of ints; ValueError unless it is a sequence of whole numbers of at least 1."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or not value or not all(map(is_whole, value)):
        raise ValueError(f"{name} is {value!r}; expected a tuple of whole numbers of at least 1")
    return tuple(int(n) for n in value)


def kind(name: str, value: object, *expected: type) -> None:
    """ValueError unless value is of an expected class."""
    if not isinstance(value, expected):
        wanted = " or ".join(e.__name__ for e in expected)
        raise ValueError(f"{name} is of type {type(value).__name__}; expected {wanted}")


def path(name: str, value: Any) -> Path:
    """Value as a Path; ValueError unless it is a string or a path."""
    if not isinstance(value, (str, os.PathLike)) or isinstance(os.fspath(value), bytes):
        raise ValueError(f"{name} is of type {type(value).__name__}; expected a path")
    return Path(value)


def reals(name: str, value: Any) -> NDArray:
    """Value as an array of float64 in C order; ValueError unless it is one of real numbers, within float64's range."""
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.empty((), object)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} is a {type(value).__name__} of {array.dtype}; expected an array of real numbers")
    return converted(name, array, np.float64)


def converted(name: str, array: NDArray, dtype: DTypeLike) -> NDArray:
    """An array of real numbers in C order, aligned, and of a float type in the machine's byte order.

    What comes from outside passes here before it is computed with: kernels are compiled for such arrays alone, and
    sums over others may run in another order. ValueError where a finite number is beyond the type's range.
    """
    array = np.asarray(array)
    if array.dtype == dtype and array.dtype.isnative and array.flags.c_contiguous and array.flags.aligned:
        return array
    with np.errstate(over="ignore"):
        out = np.require(array, dtype, ["C", "A"])
    # A narrower type's numbers all fit.
    if not np.can_cast(array.dtype, out.dtype):
        beyond = np.isinf(out) & np.isfinite(array)
        if beyond.any():
            # Python's formats know no longer float than its own.
            largest = np.format_float_scientific(np.abs(array[beyond]).max(), 2)
            raise ValueError(f"{name} has values as large as {largest}, beyond {out.dtype}")
    return out


def float_type(name: str, value: Any) -> np.dtype:
    """Value as a dtype; ValueError unless it is float32 or float64."""
    try:
        dtype = np.dtype(value)
    except TypeError:
        dtype = np.dtype(object)
    if dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"{name} is {value if dtype.hasobject else dtype}; expected float32 or float64")
    return dtype
