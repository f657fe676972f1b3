"""Steps that wait for each other: sums over all parameters, matrices that others own.

Each part of the step (one a kernel, or one a weight for the eager engine) works on its own until it
needs something of that kind. It then hands in its share of a sum, or calls of functions, and waits.
Calls are answered together as soon as all parts wait; sums when nobody waits for a call any more:
all go on with the total. Shares are exact sums of float64 and are added up exactly, in the parts'
order.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterable
from itertools import islice
from typing import Any

import numpy
import torch

from gradstep.backends import sharing

#: Hands in a share of each sum, and is sent the total; or a list of calls, and is sent what each
#: has made, in a list.
Rounds = Generator[Any, Any, None]


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
        handed_in = _go_on([(part, None) for part in waiting])
        while handed_in:
            calls = [call for _, what in handed_in if isinstance(what, list) for call in what]
            if not calls:
                total = exact_sum([share for _, share in handed_in])
                handed_in = _go_on([(part, total) for part, _ in handed_in])
                continue
            made, before, handed_in = iter(sharing.answer(calls)), handed_in, []
            for part, what in before:
                asks = isinstance(what, list)
                told = list(islice(made, len(what))) if asks else None
                handed_in += _go_on([(part, told)]) if asks else [(part, what)]


def _go_on(told: Iterable[tuple[Rounds, Any]]) -> list[tuple[Rounds, Any]]:
    """Send each what it waits for; return what those hand in that are not through."""
    handed_in: list[tuple[Rounds, Any]] = []
    for each, value in told:
        with contextlib.suppress(StopIteration):
            handed_in.append((each, each.send(value)))
    return handed_in


def exact_sum(values: list[float]) -> float:
    """The sum, rounded once; inf or nan where one of them is, or where it is beyond all numbers."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):
        return float(sum(values))
