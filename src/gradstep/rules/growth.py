"""The limit on how fast directions may grow from step to step."""

from __future__ import annotations

from typing import Any

from gradstep.rule import maximum, norm, where


def limited(direction: Any, before: Any, gamma: Any) -> tuple[Any, Any]:
    """A direction, made shorter where its norm has grown by more than a factor, and its norm.

    Args:
        direction: the direction.
        before: the norm that this returned at the last step; after one of 0 it may grow freely.
        gamma: the factor, at least 1.
    """
    length = norm(direction)
    limit = maximum(1, where(before > 0, length / (before + 1e-8), 0) / gamma)
    return direction / limit, length / limit
