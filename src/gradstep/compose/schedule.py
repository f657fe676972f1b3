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
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from gradstep.rule.schedule import Schedule, as_schedule, is_schedule

__all__ = [
    "constant",
    "cosine",
    "cosine_restarts",
    "cyclic",
    "exponential",
    "floor",
    "interpolate",
    "inverse_square_root",
    "join",
    "linear",
    "one_cycle",
    "piecewise",
    "polynomial",
    "power_cooldown",
    "rex",
    "scaled",
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


def cosine_restarts(
    start: float,
    period: float,
    *,
    cycles: int | None = None,
    growth: float = 1.0,
    shrink: float = 1.0,
    end: float = 0.0,
) -> Schedule:
    """Half a cosine from ``start`` to ``end``, and again from the top: warm restarts.

    The same as torch's ``CosineAnnealingWarmRestarts(T_0=period, T_mult=growth, eta_min=end)``; and
    as Hugging Face's ``cosine_with_restarts`` of ``n`` steps and ``c`` cycles behind its warm-up,
    with ``period=n / c, cycles=c``.

    Args:
        start: the number at the first step.
        period: steps in the first cycle.
        cycles: how many there are; ``end`` from then on. Default: without end.
        growth: each cycle is so many times as long as the one before. Default: 1.
        shrink: each cycle begins at so many times where the one before did. Default: 1.
        end: where each cycle ends. Default: 0.

    Paper: Loshchilov & Hutter 2016, "SGDR: stochastic gradient descent with warm restarts",
    arXiv:1608.03983.

    Raises:
        ValueError: a period of less than a step, cycles that are no whole number of at least 1, a
            growth below 1, a shrink of 0 or less.
    """
    _check_number("period", period, "at least 1", period >= 1)
    _check_number("growth", growth, "at least 1", growth >= 1)
    _check_number("shrink", shrink, "above 0", shrink > 0)
    if cycles is not None and (
        isinstance(cycles, bool) or not isinstance(cycles, int) or cycles < 1
    ):
        raise ValueError(f"Invalid cycles: {cycles!r}; expected a whole number of at least 1")
    numbers = {"start": start, "period": period, "cycles": cycles, "growth": growth}
    return Schedule(_cosine_restarts, {**numbers, "shrink": shrink, "end": end})


def polynomial(start: float, steps: int, end: float = 0.0, power: float = 1.0) -> Schedule:
    """``end + (start − end)·(1 − step/steps)^power``, and ``end`` ever after.

    The same as torch's ``PolynomialLR(total_iters=steps, power=power)`` for an end of 0, and as
    Hugging Face's ``polynomial`` behind its warm-up.

    Raises:
        ValueError: fewer than one step, or a power of 0 or less.
    """
    _check_number("power", power, "above 0", power > 0)
    numbers = {"start": start, "steps": _at_least(steps, 1), "end": end, "power": power}
    return Schedule(_polynomial, numbers)


def inverse_square_root(start: float, timescale: float) -> Schedule:
    """``start·√(timescale / (timescale + step))``: it has no end.

    Behind a warm-up of as many steps as the timescale it is the Transformer's, and Hugging Face's
    and Megatron's of that name: ``warmup(inverse_square_root(3e-4, 500), 500)``.

    Paper: Vaswani et al. 2017, "Attention is all you need", arXiv:1706.03762.

    Raises:
        ValueError: a timescale of 0 or less.
    """
    _check_number("timescale", timescale, "above 0", timescale > 0)
    return Schedule(_inverse_square_root, {"start": start, "timescale": float(timescale)})


def rex(start: float, steps: int, end: float = 0.0) -> Schedule:
    """High for long, and down at the end: ``(1 − t) / (1 − t/2)`` of the way to ``end``.

    Paper: Chen et al. 2021, "REX: revisiting budgeted training with an improved schedule",
    arXiv:2107.04197.

    Raises:
        ValueError: fewer than one step.
    """
    return Schedule(_rex, {"start": start, "steps": _at_least(steps, 1), "end": end})


def cyclic(low: float, high: float, up: int, down: int | None = None) -> Schedule:
    """A line from ``low`` to ``high`` and back, again and again.

    The same as torch's ``CyclicLR(base_lr=low, max_lr=high, step_size_up=up, …)``.

    Args:
        low: the number at the first step.
        high: the largest.
        up: steps from low to high.
        down: steps back. Default: as many as up.

    Paper: Smith 2015, "Cyclical learning rates for training neural networks", arXiv:1506.01186.

    Raises:
        ValueError: a side of fewer than one step.
    """
    sides = {
        "up": _at_least(up, 1, "up"),
        "down": _at_least(up if down is None else down, 1, "down"),
    }
    return Schedule(_cyclic, {"low": low, "high": high, **sides})


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


def interpolate(values: Mapping[int, float]) -> Schedule:
    """Straight lines between numbers at steps: ``interpolate({0: 0.0, 500: 3e-4, 9000: 0.0})``.

    The last number stays.

    Raises:
        ValueError: no number for step 0, or one for a step below it.
    """
    points = tuple(sorted(values.items()))
    if not points or points[0][0] != 0:
        raise ValueError(f"interpolate() needs a number for step 0 first; got {dict(values)}")
    return Schedule(_interpolate, {"points": points})


def floor(then: Any, lowest: float) -> Schedule:
    """Another schedule, and nowhere less than ``lowest``: a smallest learning rate for any decay.

    Args:
        then: a schedule or a function of the step.
        lowest: the smallest number.
    """
    return Schedule(_floor, {"then": as_schedule(then), "lowest": float(lowest)})


def scaled(then: Any, factor: float) -> Any:
    """Another schedule, times a factor: the same course for a group of another rate.

    Args:
        then: a schedule, a function of the step, a number or a tensor; None is returned as it is.
        factor: what each of its numbers is multiplied by.

    Returns:
        a schedule for a schedule or a function, and a number or tensor for such.
    """
    if factor == 1 or then is None:
        return then
    if is_schedule(then):
        return Schedule(_scaled, {"then": as_schedule(then), "factor": float(factor)})
    return then * factor


def join(parts: Sequence[Any], boundaries: Sequence[int]) -> Schedule:
    """One schedule after another, each counted from where it begins.

    ``join([warm, level, down], [500, 9000])`` is ``warm`` up to step 500, from there on ``level``,
    and ``down`` from 9000 on. The same as torch's ``SequentialLR`` and optax's ``join_schedules``.

    Args:
        parts: schedules, functions of the step, or numbers.
        boundaries: the step at which each part but the first begins.

    Raises:
        ValueError: not one boundary fewer than parts; boundaries that do not rise; or a part that
            is longer than what lies between its boundaries, so that it overlaps the next.
    """
    found = tuple(as_schedule(part) if callable(part) else constant(part) for part in parts)
    if len(found) != len(boundaries) + 1:
        raise ValueError(
            f"join() got {len(found)} parts and {len(boundaries)} boundaries; there is a boundary "
            "between each two parts"
        )
    ends = [0, *(_at_least(step, 0, "boundaries") for step in boundaries)]
    for number, (part, begin, end) in enumerate(zip(found, ends, ends[1:], strict=False)):
        if end <= begin:
            raise ValueError(
                f"join(): part {number + 1} begins at step {end}, and part {number} at step "
                f"{begin}: they overlap. Give the boundaries in rising order"
            )
        own = _length(part)
        if own > end - begin:
            raise ValueError(
                f"join(): part {number} takes {own} steps from step {begin} on, and part "
                f"{number + 1} begins at step {end}: they overlap. Make the part {end - begin} "
                "steps long, or move the boundary"
            )
    return Schedule(_join, {"parts": found, "boundaries": tuple(ends[1:])})


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
    peak: float,
    steps: int,
    *,
    warmup: int,
    decay: int,
    end: float = 0.0,
    shape: str = "linear",
) -> Schedule:
    """Up in a line over ``warmup`` steps, then level, down over the last ``decay``.

    Megatron's WSD and Hugging Face's ``warmup_stable_decay`` with the same words.

    Args:
        peak: the number in the middle.
        steps: in all; ``end`` from there on.
        warmup: steps from 0 to the peak.
        decay: steps from the peak to the end.
        end: the last number. Default: 0.
        shape: of the way down, with t from 0 to 1: ``"linear"`` (1 − t), ``"cosine"``
            ((1 + cos πt)/2), ``"exponential"`` (2·½ᵗ − 1, as Megatron has it) or ``"1-sqrt"``
            (1 − √t, which Megatron calls ``"minus_sqrt"``). Default: ``"linear"``.

    Papers: Zhai et al. 2021, "Scaling vision transformers", arXiv:2106.04560; Hägele et al. 2024,
    "Scaling laws and compute-optimal training beyond fixed training durations", arXiv:2405.18392.

    Raises:
        ValueError: warm-up and decay are longer than the whole or negative, or an unknown shape.
    """
    _check_parts(steps, warmup, decay)
    if shape not in _WAYS_DOWN:
        raise ValueError(f"Invalid shape: {shape!r}; expected one of {', '.join(_WAYS_DOWN)}")
    numbers = {"peak": peak, "steps": steps, "warmup": warmup, "decay": decay, "end": end}
    return Schedule(_warmup_stable_decay, {**numbers, "shape": shape})


def power_cooldown(
    peak: float,
    steps: int,
    *,
    cooldown: int | None = None,
    power: float = 0.4,
    warmup: int = 0,
    end: float = 0.0,
) -> Schedule:
    """Up in a line, level, and down as ``1 − t^power`` over the last ``cooldown`` steps.

    A power below 1 falls fast at first and then slowly; ½ is 1 − √t. Records of modded-nanogpt's
    third track decay by such a power law.

    Args:
        peak: the number in the middle.
        steps: in all; ``end`` from there on.
        cooldown: steps from the peak to the end. Default: all behind the warm-up.
        power: of the share of the cool-down that is done. Default: 0.4.
        warmup: steps from 0 to the peak. Default: 0.
        end: the last number. Default: 0.

    Raises:
        ValueError: parts that are longer than the whole or negative, or a power of 0 or less.
    """
    _check_number("power", power, "above 0", power > 0)
    cooldown = steps - warmup if cooldown is None else cooldown
    _check_parts(steps, warmup, cooldown)
    numbers = {"peak": peak, "steps": steps, "warmup": warmup, "cooldown": cooldown}
    return Schedule(_power_cooldown, {**numbers, "power": power, "end": end})


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


def _at_least(steps: int, fewest: int, name: str = "steps") -> int:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < fewest:
        raise ValueError(f"Invalid {name}: {steps!r}; expected a whole number of at least {fewest}")
    return steps


def _check_number(name: str, value: float, wanted: str, fits: bool) -> None:
    if not fits:
        raise ValueError(f"Invalid {name}: {value}; it must be {wanted}")


def _check_parts(steps: int, warmup: int, decay: int) -> None:
    if warmup < 0 or decay < 0 or warmup + decay > steps:
        raise ValueError(
            f"a warm-up of {warmup} and a decay of {decay} steps do not fit into {steps}"
        )


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
    step: int, *, peak: float, steps: int, warmup: int, decay: int, end: float, shape: str
) -> float:
    if step < warmup:
        return peak * step / warmup
    if step < steps - decay:
        return peak
    if step >= steps:
        return end
    share = _WAYS_DOWN[shape]((step - (steps - decay)) / decay)
    return peak * share + end * (1 - share)


#: What is left of the way down, by the share of it that is done.
_WAYS_DOWN = {
    "linear": lambda t: 1 - t,
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
    "exponential": lambda t: 2 * 0.5**t - 1,
    "1-sqrt": lambda t: 1 - math.sqrt(t),
    "minus_sqrt": lambda t: 1 - math.sqrt(t),
}


def _power_cooldown(
    step: int, *, peak: float, steps: int, warmup: int, cooldown: int, power: float, end: float
) -> float:
    if step < warmup:
        return peak * step / warmup
    if step < steps - cooldown:
        return peak
    if step >= steps:
        return end
    return peak + (end - peak) * float(((step - (steps - cooldown)) / cooldown) ** power)


def _cosine_restarts(
    step: int,
    *,
    start: float,
    period: float,
    cycles: int | None,
    growth: float,
    shrink: float,
    end: float,
) -> float:
    if growth == 1:
        number = int(step // period)
        within = step / period - number
    else:
        # The cycles before the one of this number take period·(growthⁿ − 1)/(growth − 1) steps.
        number = int(math.log(step / period * (growth - 1) + 1, growth) + 1e-9)
        before = period * (growth**number - 1) / (growth - 1)
        within = (step - before) / (period * growth**number)
    if cycles is not None and number >= cycles:
        return end
    return _cosine_between(start * shrink**number, end, max(0.0, within))


def _polynomial(step: int, *, start: float, steps: int, end: float, power: float) -> float:
    return end + (start - end) * float((1 - min(1.0, step / steps)) ** power)


def _inverse_square_root(step: int, *, start: float, timescale: float) -> float:
    return start * math.sqrt(timescale / (timescale + step))


def _rex(step: int, *, start: float, steps: int, end: float) -> float:
    share = min(1.0, step / steps)
    return end + (start - end) * (1 - share) / (1 - share / 2)


def _cyclic(step: int, *, low: float, high: float, up: int, down: int) -> float:
    within = step % (up + down)
    share = within / up if within <= up else (up + down - within) / down
    return low + (high - low) * share


def _interpolate(step: int, *, points: tuple[tuple[int, float], ...]) -> float:
    for (begin, a), (end, b) in pairwise(points):
        if step < end:
            return a + (b - a) * (step - begin) / (end - begin)
    return points[-1][1]


def _floor(step: int, *, then: Schedule, lowest: float) -> float:
    return max(then(step), lowest)


def _scaled(step: int, *, then: Schedule, factor: float) -> float:
    return then(step) * factor


def _join(step: int, *, parts: tuple[Schedule, ...], boundaries: tuple[int, ...]) -> float:
    number = sum(step >= boundary for boundary in boundaries)
    return parts[number](step - (boundaries[number - 1] if number else 0))


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


#: Those that stay as they are after their ``steps``.
_OF_A_LENGTH = {
    _linear, _cosine, _polynomial, _rex, _one_cycle, _warmup_stable_decay, _power_cooldown,
}  # fmt: skip


def _length(part: Schedule) -> int:
    """After how many steps a schedule stays as it is; 0 where that is not said."""
    if part.function is _warmup:
        return int(part.arguments["steps"]) + _length(part.arguments["then"])
    if part.function in (_floor, _scaled):
        return _length(part.arguments["then"])
    return int(part.arguments["steps"]) if part.function in _OF_A_LENGTH else 0
