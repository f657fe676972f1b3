"""Steps that wait for each other: rules that sum over all parameters of an optimizer.

Each part of the step (one a kernel, or one a weight for the eager engine) works on its own until it
needs such a sum. It then hands in its share and waits; when all have done so, all go on with the
total. Shares are exact sums of float64 and are added up exactly, in the parts' order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable
from typing import Any

import numpy
import torch

#: Hands in a share of each sum, and is sent the total.
Rounds = Generator[float, float, None]


def run(runs: Iterable[Callable[[], Any]]) -> None:
    """Make a step: call each run; those that have ``rounds`` go through them together."""
    # Here and not in the rounds: those stop in the middle, and what they set would stay set.
    with torch.no_grad(), numpy.errstate(all="ignore"):
        waiting: list[Rounds] = []
        for each in runs:
            rounds = getattr(each, "rounds", None)
            if rounds is None:
                each()
            else:
                waiting.append(rounds())
        shares = _go_on(waiting, None)
        while waiting:
            shares = _go_on(waiting, exact_sum(shares))


def _go_on(waiting: list[Rounds], total: float | None) -> list[float]:
    """Send all the total; drop those that are through; return what the others hand in."""
    shares: list[float] = []
    for each in list(waiting):
        try:
            shares.append(next(each) if total is None else each.send(total))
        except StopIteration:
            waiting.remove(each)
    return shares


def exact_sum(values: list[float]) -> float:
    """The sum, rounded once; inf or nan where one of them is, or where it is beyond all numbers."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):
        return float(sum(values))
