"""The learning rate as a function of where the training stands."""

from __future__ import annotations

from collections.abc import Sequence

from ide_ref import _checks


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

    Raises
    ------
    ValueError
        `base` or `gamma` is no finite number, `epoch`, `step` or `warmup_steps` no whole number of at least 0.
    """
    for name, value in (("base", base), ("gamma", gamma)):
        if not _checks.is_real(value):
            raise ValueError(f"{name} is {value!r}, expected a finite number")
    for name, count in (("epoch", epoch), ("step", step), ("warmup_steps", warmup_steps)):
        _checks.whole(name, count, 0)
    rate = base * gamma ** sum(epoch >= milestone for milestone in milestones)
    return rate * (step + 1) / warmup_steps if step < warmup_steps else rate
