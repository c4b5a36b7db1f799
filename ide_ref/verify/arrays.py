"""Arrays of other libraries as NumPy's, and the dtypes that they had there.

Source: NumPy's array protocol and DLPack, https://dmlc.github.io/dlpack/latest/.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def dtype_name(value: Any) -> str:
    """Name of an array's dtype as its own library has it, such as ``"bfloat16"``; of what has none, NumPy's."""
    dtype = value.dtype if hasattr(value, "dtype") else as_array("", value).dtype
    return str(getattr(dtype, "name", dtype)).rpartition(".")[2]


def grain(dtype: str) -> float:
    """Distance from 1 to the next larger number of a dtype by name, also of those that NumPy lacks."""
    return {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23}.get(dtype, 2.0**-52)


def as_array(name: str, value: Any) -> NDArray:
    """A foreign array as NumPy: through ``__array__``, DLPack, or what NumPy makes of it; bfloat16 as float32.

    Its shape stays.

    ValueError, naming the array and its dtype, where it holds no real numbers or cannot be reached from the CPU.
    """
    if hasattr(value, "detach"):  # an array that records its history gives no view of itself
        value = value.detach()
    why = [dtype_name(value)] if hasattr(value, "dtype") else []
    if why == ["bfloat16"]:  # NumPy lacks it: widened by its own library
        value = value.float() if hasattr(value, "float") else value.astype("float32")
    for convert in (np.asarray, np.from_dlpack) if hasattr(value, "__dlpack__") else (np.asarray,):
        try:
            array = np.asarray(convert(value))
            if array.dtype.kind in "biuf":
                return array
        except (TypeError, ValueError, RuntimeError, BufferError) as error:
            why.append(str(error))
    given = f"a {type(value).__name__} that gives no real numbers" + f" ({'; '.join(why)})" * bool(why)
    raise ValueError(f"array {name!r} is {given}; expected an array on the CPU")
