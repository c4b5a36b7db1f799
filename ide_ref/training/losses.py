"""The loss at the readout and its gradient by hand."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def cross_entropy(logits: NDArray[np.floating], y: ArrayLike) -> tuple[float, NDArray[np.floating]]:
    """Mean cross-entropy of the softmax and its gradient: L of (READ).

    With p = softmax(o), L = -mean log p[y] and ∂L/∂o = (p - onehot(y)) / B. The largest logit of each row is
    taken off first, so no exponential overflows and no logarithm sees a zero.

    Parameters
    ----------
    logits : (B, n_classes) array
        Output o of the readout; not written to.
    y : (B,) integers
        Labels, 0 to n_classes - 1.

    Returns
    -------
    loss : float
        Natural units, summed in float64.
    gradient : (B, n_classes) array
        ∂L/∂o in the dtype of `logits`. Both are NaN where a logit is.

    Raises
    ------
    ValueError
        `logits` is no non-empty matrix of floats, or `y` does not fit it.
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
    # Sums run in another order where the numbers of a row do not lie side by side.
    logits = np.ascontiguousarray(logits, logits.dtype.newbyteorder("="))
    rows = np.arange(n_samples)
    shifted = logits - logits.max(axis=1, keepdims=True)
    gradient = np.exp(shifted)
    total = gradient.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(total[:, 0]) - shifted[rows, labels], dtype=np.float64))
    gradient /= total
    gradient[rows, labels] -= 1
    gradient /= n_samples
    return loss, gradient
