"""At which steps matrices are refreshed: all at the same ones, or each at steps of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

#: The place of a weight whose matrices are all refreshed at the steps of the others'.
TOGETHER = -1.0


def turn_of(place: Any) -> Any:
    """A weight's place among others for :func:`has_turn`; of a rule that keeps none, together."""
    return TOGETHER if place is None else place


def has_turn(steps: float, frequency: float, place: float, block: int = 0) -> bool:
    """Whether it is a matrix's turn, as it is once in so many steps.

    Args:
        steps: how many there have been; all have their turn at 0, whatever their places.
        frequency: how many steps a matrix is kept for.
        place: of its weight among others, see :func:`gradstep.place`; or :data:`TOGETHER`.
        block: of a weight in blocks, which one it is.
    """
    if place == TOGETHER or not steps:
        return steps % frequency == 0
    return (steps + place + block) % frequency == 0


def block_numbers() -> Iterator[int]:
    """Which block it is, for functions that get the blocks of a weight one after the other."""
    return itertools.count()
