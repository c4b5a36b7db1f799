"""What happens to a batch of images between the data set and the network.

Source: the paper's recipe for CIFAR, https://arxiv.org/abs/2109.14247: padding by 4, random crop, random flip.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ide_ref import _checks


def check_images(x: ArrayLike, y: ArrayLike, *, n_classes: int, input_shape: Sequence[int]) -> None:
    """Refuse images and labels that a network cannot be trained on.

    Parameters
    ----------
    x : (B, *input_shape) real numbers
    y : (B,) integers
        Labels, 0 to ``n_classes - 1``.

    Raises
    ------
    ValueError
        Wrong shape or type, no items at all, unequal numbers of items and labels, NaN or infinite
        pixels, labels out of range: one line that names the argument and the first wrong item.
    """
    images, labels = np.asarray(x), np.asarray(y)
    shape = _checks.shape("input_shape", input_shape)
    _checks.whole("n_classes", n_classes)
    if images.dtype.kind not in "uif":
        raise ValueError(f"x has dtype {images.dtype}, expected integers or floats")
    if images.shape[1:] != shape or images.ndim != len(shape) + 1:
        wanted = ", ".join(["B", *map(str, shape)])
        raise ValueError(f"x has shape {images.shape}, expected ({wanted})")
    if labels.dtype.kind not in "ui":
        raise ValueError(f"y has dtype {labels.dtype}, expected integers")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"y has shape {labels.shape}, expected ({len(images)},), one label an item")
    if not len(images):
        raise ValueError("x and y are empty, expected at least one item")
    bad = ~np.isfinite(images) if images.dtype.kind == "f" else np.zeros(0, bool)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        given = f"x[{', '.join(map(str, place))}] is {images[place]}"
        raise ValueError(f"{given}, expected finite pixels; {np.count_nonzero(bad)} pixels are NaN or infinite")
    wrong = np.flatnonzero((labels < 0) | (labels >= n_classes))
    if wrong.size:
        given = f"y[{wrong[0]}] is {labels[wrong[0]]}"
        advice = "; they begin at 1: take 1 off" if labels.min() == 1 and labels.max() == n_classes else ""
        raise ValueError(f"{given}, expected labels 0 to {n_classes - 1}; {wrong.size} labels are out of range{advice}")


def normalise(
    x: NDArray[np.generic],
    mean: float | Sequence[float],
    std: float | Sequence[float],
    *,
    scale: float = 255.0,
    dtype: DTypeLike = np.float32,
) -> NDArray[np.floating]:
    """Pixels as the network sees them: (x / scale − mean) / std.

    Parameters
    ----------
    x : (B, C, rows, columns)
        Raw pixels.
    mean, std : float or (C,)
        Of the scaled pixels, for all channels or each.
    scale : float
        The pixel value that becomes 1: 255, or 16 for the digits.
    dtype : float32 or float64
        Type of the computation and the result, an array of the shape of ``x``.

    Raises
    ------
    ValueError
        ``x`` is no batch of images, ``mean`` or ``std`` fits neither form, ``scale`` or ``std`` is not
        positive, or ``dtype`` is not floating.
    """
    kind = _checks.float_type("dtype", dtype)
    _check_batch(x)
    _checks.positive("scale", scale)
    statistics = {}
    for name, value in (("mean", mean), ("std", std)):
        array = np.asarray(value)
        if array.dtype.kind not in "fiu" or not np.all(np.isfinite(array)):
            raise ValueError(f"{name} is {value!r}, expected finite numbers")
        if array.shape not in ((), (x.shape[1],)):
            raise ValueError(f"{name} has shape {array.shape}, expected a number or ({x.shape[1]},)")
        statistics[name] = array.astype(kind).reshape(-1, 1, 1)
    if not np.all(statistics["std"] > 0):
        raise ValueError(f"std is {std}, expected positive numbers")
    result: NDArray[np.floating] = x.astype(kind)
    result /= np.asarray(scale, kind)
    result -= statistics["mean"]
    result /= statistics["std"]
    return result


def random_crop(x: NDArray[np.generic], rng: np.random.Generator, *, padding: int = 4) -> NDArray[np.generic]:
    """Each image shifted by up to ``padding`` pixels in rows and columns, zeros moving in.

    Call it on raw pixels, before :func:`normalise`, as the paper's authors do: the border is then black.
    After normalisation the same zeros would be the mean grey.

    Parameters
    ----------
    x : (B, C, rows, columns)
        Raw pixels; the result has their shape and dtype.
    rng : Generator
        One uniform draw of shape (2, B): for each image the first row, then for each the first column.

    Raises
    ------
    ValueError
        ``x`` is no batch of images or ``padding`` negative.
    """
    _check_batch(x)
    _checks.kind("rng", rng, np.random.Generator)
    padding = _checks.whole("padding", padding, 0)
    n, channels, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    top, left = rng.integers(0, 2 * padding, size=(2, n), endpoint=True)
    rows = top[:, None] + np.arange(height)
    columns = left[:, None] + np.arange(width)
    images, planes = np.ogrid[:n, :channels]
    return padded[images[..., None, None], planes[..., None, None], rows[:, None, :, None], columns[:, None, None, :]]


def random_flip(x: NDArray[np.generic], rng: np.random.Generator, *, probability: float = 0.5) -> NDArray[np.generic]:
    """Each image mirrored left to right with the given probability.

    Parameters
    ----------
    x : (B, C, rows, columns)
        The result has its shape and dtype.
    rng : Generator
        One draw of shape (B,).

    Raises
    ------
    ValueError
        ``x`` is no batch of images or ``probability`` not in [0, 1].
    """
    _check_batch(x)
    _checks.kind("rng", rng, np.random.Generator)
    if not (_checks.is_real(probability) and 0 <= probability <= 1):
        raise ValueError(f"probability is {probability!r}, expected 0 to 1")
    flipped = rng.random(len(x)) < probability
    result = x.copy()
    result[flipped] = x[flipped, :, :, ::-1]
    return result


def _check_batch(x: NDArray[np.generic]) -> None:
    _checks.kind("x", x, np.ndarray)
    if x.ndim != 4:
        raise ValueError(f"x has shape {x.shape}, expected (B, channels, rows, columns)")
    if x.dtype.kind not in "fiub":
        raise ValueError(f"x has dtype {x.dtype}, expected real numbers")
