"""The learning rate as a function of where the training stands."""

from __future__ import annotations

from collections.abc import Sequence


def learning_rate(
    base: float, *, epoch: int, step: int, milestones: Sequence[int] = (), gamma: float = 0.1, warmup_steps: int = 0
) -> float:
    """Step decay with a linear warm-up.

    Parameters
    ----------
    base : float
        Rate before any decay.
    epoch : int
        Epochs finished. The rate is multiplied by `gamma` once for each milestone reached.
    step : int
        Batches finished since the training began. Step k of the first `warmup_steps` (from 0) has the share
        (k + 1) / warmup_steps of the rate.

    Returns
    -------
    float
    """
    rate = base * gamma ** sum(epoch >= milestone for milestone in milestones)
    return rate * (step + 1) / warmup_steps if step < warmup_steps else rate
