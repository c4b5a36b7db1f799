"""The loss at the readout and its gradient by hand.

Source: (READ), and the cross entropy of its softmax.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ide_ref import _checks

Loss = Callable[[NDArray[np.floating], NDArray[np.int64]], tuple[float, NDArray[np.floating]]]
"""Of logits (B, n_classes) and labels (B,): the mean over the samples, and ∂L/∂o by hand, (B, n_classes)."""


def cross_entropy(
    logits: NDArray[np.floating], y: ArrayLike, *, label_smoothing: float = 0.0
) -> tuple[float, NDArray[np.floating]]:
    """Mean cross-entropy of the softmax and its gradient: L of (READ).

    With p = softmax(o), L = -mean log p[y] and ∂L/∂o = (p - onehot(y)) / B. The largest logit of each row is
    taken off first, so no exponential overflows and no logarithm sees a zero. Smoothed by ε, the K classes get
    q = (1 - ε) onehot(y) + ε/K in the place of onehot(y): L = -mean Σ_k q_k log p_k, ∂L/∂o = (p - q) / B.

    Parameters
    ----------
    logits : (B, n_classes) array
        Output o of the readout; not written to.
    y : (B,) integers
        Labels, 0 to n_classes - 1.
    label_smoothing : float
        ε, in [0, 1).

    Returns
    -------
    loss : float
        Natural units, summed in float64.
    gradient : (B, n_classes) array
        ∂L/∂o in the dtype of `logits`. Both are NaN where a logit is.

    Raises
    ------
    ValueError
        `logits` is no non-empty matrix of floats, `y` does not fit it, or `label_smoothing` is out of its range.
    """
    logits = np.asarray(logits)
    if logits.ndim != 2 or logits.size == 0 or logits.dtype.kind != "f":
        given = f"logits has shape {logits.shape} and dtype {logits.dtype}"
        raise ValueError(f"{given}, expected floats of shape (B, n_classes)")
    n_samples, n_classes = logits.shape
    labels = np.asarray(y)
    if labels.shape != (n_samples,):
        raise ValueError(f"y has shape {labels.shape}, expected ({n_samples},): one label per sample")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"y has dtype {labels.dtype}, expected integers")
    if not (labels.min() >= 0 and labels.max() < n_classes):
        raise ValueError(f"y holds labels {labels.min()} to {labels.max()}, expected 0 to {n_classes - 1}")
    if not (_checks.is_real(label_smoothing) and 0 <= label_smoothing < 1):
        raise ValueError(f"label_smoothing is {label_smoothing!r}; expected a number in [0, 1)")
    # Sums run in another order where the numbers of a row do not lie side by side.
    logits = np.ascontiguousarray(logits, logits.dtype.newbyteorder("="))
    rows = np.arange(n_samples)
    shifted = logits - logits.max(axis=1, keepdims=True)
    gradient = np.exp(shifted)
    total = gradient.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(total[:, 0]) - shifted[rows, labels], dtype=np.float64))
    gradient /= total
    if label_smoothing:
        off = shifted[rows, labels] - shifted.mean(axis=1, dtype=np.float64)
        loss += float(label_smoothing * np.mean(off, dtype=np.float64))
        gradient -= gradient.dtype.type(label_smoothing / n_classes)
    gradient[rows, labels] -= gradient.dtype.type(1 - label_smoothing)
    gradient /= n_samples
    return loss, gradient


def evaluated(loss: Loss, logits: NDArray[np.floating], y: NDArray[np.int64]) -> tuple[float, NDArray[np.floating]]:
    """Value and gradient of a loss that a user wrote, the latter in the shape and dtype of the logits, (B, n_classes).

    Raises
    ------
    ValueError
        `loss` is no function, or returns something else than a number and an array like the logits.
    """
    if not callable(loss):
        raise ValueError(f"loss is of type {type(loss).__name__}; expected a function of logits and labels")
    found = loss(logits, y)
    expected = f"expected a number and its gradient, floats of shape {logits.shape}"
    if not (isinstance(found, tuple) and len(found) == 2):
        raise ValueError(f"loss returned a {type(found).__name__}; {expected}")
    value, gradient = np.asarray(found[0]), np.asarray(found[1])
    for part, shape in ((value, ()), (gradient, logits.shape)):
        if part.shape != shape or part.dtype.kind != "f":
            raise ValueError(f"loss returned {part.dtype} of shape {part.shape}; {expected}")
    return float(value), _checks.converted("the gradient that loss returned", gradient, logits.dtype)


def check_loss(loss: Loss, logits: NDArray[np.floating], y: NDArray[np.int64], *, tol: float = 1e-5) -> None:
    """Hold the gradient of a loss against differences of its value in every logit, (B, n_classes), in float64.

    Where a kink lies between the two differences, any slope between them is right.

    Raises
    ------
    ValueError
        Some number differs by more than `tol` of the largest, with the place where they differ most and both numbers;
        or as `evaluated`.
    """
    logits = np.array(logits, np.float64)
    value, by_hand = evaluated(loss, logits, y)
    ahead, behind = np.empty_like(logits), np.empty_like(logits)
    for place in np.ndindex(*logits.shape):
        middle = logits[place]
        # The step at which rounding and curvature weigh the same, as it is after rounding.
        h = (middle + np.cbrt(np.finfo(np.float64).eps) * max(1.0, abs(middle))) - middle
        for sign, slopes in ((1, ahead), (-1, behind)):
            logits[place] = middle + sign * h
            slopes[place] = sign * (evaluated(loss, logits, y)[0] - value) / h
        logits[place] = middle
    off = np.maximum(np.minimum(ahead, behind) - by_hand, by_hand - np.maximum(ahead, behind))
    wrong = ~(off <= tol * np.abs(by_hand).max())
    if wrong.any():
        place = tuple(int(i) for i in np.unravel_index(np.where(np.isnan(off), np.inf, off).argmax(), off.shape))
        slope = (ahead[place] + behind[place]) / 2
        given = f"∂L/∂o[{place[0]}, {place[1]}] is {by_hand[place]:.6g} by hand and {slope:.6g} by differences"
        raise ValueError(
            f"loss: {given}; {np.count_nonzero(wrong)} of {wrong.size} numbers differ, correct its gradient"
        )
