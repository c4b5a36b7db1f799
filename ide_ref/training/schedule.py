"""The learning rate, and the time steps, as functions of where the training stands.

Source: ``steps`` as in the paper's experiments, https://arxiv.org/abs/2109.14247; the others in :func:`learning_rate`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ide_ref import _checks

SCHEDULES = ("steps", "cosine", "one-cycle")

_RISE, _START, _END = 0.3, 1 / 25, 1 / 25e4
"""Of one cycle: the share of steps in which the rate rises, and its first and last value over the largest."""


def learning_rate(
    base: float,
    *,
    epoch: int,
    step: int,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
    warmup_steps: int = 0,
    schedule: str = "steps",
    total_steps: int | None = None,
) -> float:
    """The rate of one step.

    ``steps``: multiplied by `gamma` once for each milestone reached. ``cosine``: base (1 + cos πt)/2, t from 0 at the
    end of the warm-up to 1 at the end of the training. ``one-cycle`` (Smith and Topin 2018): in half waves from base/25
    up to base in three tenths of the steps, and down to base/250,000 in the last one.

    Parameters
    ----------
    base : float
        The largest rate.
    epoch : int
        Epochs finished.
    step : int
        Batches finished since the training began. Step k of the first `warmup_steps` (from 0) has the share
        (k + 1) / warmup_steps of the rate; not with one cycle, which has a warm-up of its own.
    schedule : {"steps", "cosine", "one-cycle"}
    total_steps : int, optional
        Batches of the whole training; needed by the last two.

    Raises
    ------
    ValueError
        `base` or `gamma` is no finite number, `epoch`, `step` or `warmup_steps` no whole number of at least 0; no
        schedule of that name; or `total_steps` is not above `step` where it is needed.
    """
    for name, value in (("base", base), ("gamma", gamma)):
        if not _checks.is_real(value):
            raise ValueError(f"{name} is {value!r}, expected a finite number")
    for name, count in (("epoch", epoch), ("step", step), ("warmup_steps", warmup_steps)):
        _checks.whole(name, count, 0)
    _checks.one_of("schedule", schedule, SCHEDULES)
    if schedule == "steps":
        rate = base * gamma ** sum(epoch >= milestone for milestone in milestones)
        return rate * (step + 1) / warmup_steps if step < warmup_steps else rate
    total_steps = _checks.whole("total_steps", total_steps, step + 1)
    if schedule == "cosine":
        if step < warmup_steps:
            return base * (step + 1) / warmup_steps
        return _half_wave(base, 0.0, (step - warmup_steps) / (total_steps - warmup_steps))
    t = step / max(1, total_steps - 1)
    if t < _RISE:
        return _half_wave(base * _START, base, t / _RISE)
    return _half_wave(base, base * _END, (t - _RISE) / (1 - _RISE))


def time_steps(n_steps: int, first: int | None, *, epoch: int, epochs: int) -> int:
    """T of an epoch's batches where it grows: evenly from `first`, to `n_steps` after two thirds of the epochs.

    A rollout costs in proportion to T, and its rates come closer to the equilibrium with it, (ERR): the gradient of the
    first epochs, whose steps are large anyway, may be the coarser one.

    Parameters
    ----------
    n_steps : int
        T in the end; of every epoch where `first` is None.
    epoch : int
        Epochs finished.
    """
    growing = -(-2 * epochs // 3)
    if first is None or epoch >= growing:
        return n_steps
    return first + (n_steps - first) * epoch // growing


def _half_wave(start: float, end: float, t: float) -> float:
    """From start at t = 0 to end at t = 1 along half a cosine wave."""
    return end + (start - end) * (1 + math.cos(math.pi * t)) / 2
