"""Schedules: numbers that follow the count of steps, for any hyperparameter, lr included.

::

    lr = gradstep.schedule.warmup(gradstep.schedule.cosine(3e-4, 10_000), 500)
    optimizer = gradstep.AdamW(model.parameters(), lr=lr)
    optimizer = gradstep.AdamW(model.parameters(), weight_decay=lambda step: 0.1 * 0.999**step)

The step is the count of steps that the optimizer has made before: 0 at the first, as torch's
schedulers count. The group holds the present number, as everywhere in torch, and the count
(``schedule_step``), which a checkpoint keeps; the optimizer holds the schedule. A number that
follows a schedule is not to be changed by anybody else, such as a scheduler of torch: a step says
so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gradstep.rule.schedule import Schedule, as_schedule

__all__ = [
    "constant",
    "cosine",
    "exponential",
    "linear",
    "one_cycle",
    "piecewise",
    "warmup",
    "warmup_stable_decay",
]


def constant(value: float) -> Schedule:
    """The same number at every step."""
    return Schedule(_constant, {"value": float(value)})


def linear(start: float, end: float, steps: int) -> Schedule:
    """From ``start`` in a straight line to ``end``, which it has after ``steps`` and ever after.

    Raises:
        ValueError: fewer than one step.
    """
    return Schedule(_linear, {"start": start, "end": end, "steps": _at_least(steps, 1)})


def cosine(start: float, steps: int, end: float = 0.0) -> Schedule:
    """From ``start`` along half a cosine to ``end``, which it has after ``steps`` and ever after.

    The same as torch's ``CosineAnnealingLR(T_max=steps, eta_min=end)`` up to there.

    Raises:
        ValueError: fewer than one step.
    """
    return Schedule(_cosine, {"start": start, "steps": _at_least(steps, 1), "end": end})


def exponential(start: float, rate: float, steps: int = 1) -> Schedule:
    """``start · rate^(step / steps)``: times ``rate`` every ``steps`` steps, smoothly.

    Raises:
        ValueError: fewer than one step, or a rate of 0 or less.
    """
    if not rate > 0:
        raise ValueError(f"Invalid rate: {rate}; it must be above 0")
    return Schedule(_exponential, {"start": start, "rate": rate, "steps": _at_least(steps, 1)})


def piecewise(values: Mapping[int, float]) -> Schedule:
    """A number from a step on, until the next: ``piecewise({0: 0.1, 3000: 0.01})``.

    Raises:
        ValueError: no number for step 0.
    """
    pieces = tuple(sorted(values.items()))
    if not pieces or pieces[0][0] != 0:
        raise ValueError(f"piecewise() needs a number from step 0 on; got {dict(values)}")
    return Schedule(_piecewise, {"pieces": pieces})


def warmup(then: Any, steps: int, start: float = 0.0) -> Schedule:
    """From ``start`` in a straight line to where another schedule begins, and then that one.

    Args:
        then: a schedule, a function of the step, or a number; its step 0 is at ``steps``.
        steps: how long the line is.
        start: the number at the first step. Default: 0.

    Raises:
        ValueError: fewer than one step.
    """
    then = as_schedule(then) if callable(then) else constant(then)
    return Schedule(_warmup, {"then": then, "steps": _at_least(steps, 1), "start": start})


def warmup_stable_decay(
    peak: float, steps: int, *, warmup: int, decay: int, end: float = 0.0
) -> Schedule:
    """Up in a line over ``warmup`` steps, then level, down in a line over the last ``decay``.

    Args:
        peak: the number in the middle.
        steps: in all; ``end`` from there on.
        warmup: steps from 0 to the peak.
        decay: steps from the peak to the end.
        end: the last number. Default: 0.

    Raises:
        ValueError: warm-up and decay are longer than the whole.
    """
    if warmup < 0 or decay < 0 or warmup + decay > steps:
        raise ValueError(
            f"a warm-up of {warmup} and a decay of {decay} steps do not fit into {steps}"
        )
    numbers = {"peak": peak, "steps": steps, "warmup": warmup, "decay": decay, "end": end}
    return Schedule(_warmup_stable_decay, numbers)


def one_cycle(
    peak: float,
    steps: int,
    *,
    rise: float = 0.3,
    start_divisor: float = 25.0,
    end_divisor: float = 1e4,
) -> Schedule:
    """Up along a cosine to ``peak``, and down along another to nearly nothing.

    The same as torch's ``OneCycleLR(max_lr=peak, total_steps=steps, pct_start=rise, …)``.

    Args:
        peak: the largest number.
        steps: in all; the last number stays.
        rise: the share of the steps that goes up. Default: 0.3.
        start_divisor: it begins at ``peak / start_divisor``. Default: 25.
        end_divisor: and ends at the start over this. Default: 1e4.

    Paper: Smith & Topin 2017, "Super-convergence: very fast training of neural networks using
    large learning rates", arXiv:1708.07120.

    Raises:
        ValueError: fewer than two steps, or a rise that is not between 0 and 1.
    """
    if not 0 < rise < 1 or rise * _at_least(steps, 2) <= 1:
        raise ValueError(f"a rise of {rise} of {steps} steps is not between one step and all")
    numbers = {"peak": peak, "steps": steps, "rise": rise}
    return Schedule(
        _one_cycle, {**numbers, "start_divisor": start_divisor, "end_divisor": end_divisor}
    )


def _at_least(steps: int, fewest: int) -> int:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < fewest:
        raise ValueError(f"Invalid steps: {steps!r}; expected a whole number of at least {fewest}")
    return steps


def _constant(step: int, *, value: float) -> float:
    return value


def _linear(step: int, *, start: float, end: float, steps: int) -> float:
    share = min(1.0, step / steps)
    return start * (1 - share) + end * share


def _cosine(step: int, *, start: float, steps: int, end: float) -> float:
    share = (1 + math.cos(math.pi * min(1.0, step / steps))) / 2
    return end + (start - end) * share


def _exponential(step: int, *, start: float, rate: float, steps: int) -> float:
    return float(start * rate ** (step / steps))


def _piecewise(step: int, *, pieces: tuple[tuple[int, float], ...]) -> float:
    return [value for begin, value in pieces if begin <= step][-1]


def _warmup(step: int, *, then: Schedule, steps: int, start: float) -> float:
    if step >= steps:
        return then(step - steps)
    return _linear(step, start=start, end=then(0), steps=steps)


def _warmup_stable_decay(
    step: int, *, peak: float, steps: int, warmup: int, decay: int, end: float
) -> float:
    if step < warmup:
        return peak * step / warmup
    if step < steps - decay:
        return peak
    if step >= steps:
        return end
    return _linear(step - (steps - decay), start=peak, end=end, steps=decay)


def _one_cycle(
    step: int, *, peak: float, steps: int, rise: float, start_divisor: float, end_divisor: float
) -> float:
    start, top = peak / start_divisor, rise * steps - 1
    if step <= top:
        return _cosine_between(start, peak, step / top)
    down = min(1.0, (step - top) / (steps - 1 - top))
    return _cosine_between(peak, start / end_divisor, down)


def _cosine_between(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
