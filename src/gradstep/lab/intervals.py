"""How far the mean of a few seeds may be from the mean of all: Student's t-interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A mean and the half width of its interval; ``half`` is None for fewer than three values.

    Of two values it would be more than six times as wide as they are apart, and say nothing.
    """

    mean: float
    half: float | None
    count: int


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean of ``values`` and its t-interval, which holds if they are independent draws of
    something near a normal distribution.

    Raises ValueError if there is no value, or one that is not finite.
    """
    if not values or not all(map(math.isfinite, values)):
        raise ValueError("a t-interval needs at least one value, and finite ones only")
    count = len(values)
    mean = math.fsum(values) / count
    if count < 3:
        return Interval(mean, None, count)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = t_quantile((1 + confidence) / 2, count - 1) * math.sqrt(variance / count)
    return Interval(mean, half, count)


def t_quantile(probability: float, degrees: int) -> float:
    """Where Student's t with so many degrees of freedom lies below with this probability.

    ``probability`` is from 0.5 to below 1; the result is exact to about 1e-12 of itself.
    """
    if not 0.5 <= probability < 1 or degrees < 1:
        raise ValueError(f"no quantile of t for {probability} and {degrees} degrees of freedom")
    inside = 2 * probability - 1
    low, high = 0.0, math.pi / 2  # of atan(t / √degrees)
    for _ in range(60):
        middle = (low + high) / 2
        if _within(middle, degrees) < inside:
            low = middle
        else:
            high = middle
    return math.tan((low + high) / 2) * math.sqrt(degrees)


def _within(angle: float, degrees: int) -> float:
    """The probability of |t| ≤ √degrees · tan(angle): Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    if degrees == 1:
        return 2 * angle / math.pi
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term
    for n in range(2 + odd, degrees - 1, 2):
        term *= cosine**2 * (n - 1) / n
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
