"""Hyperparameters: which values they may take, and the check of one."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from gradstep.rule.schedule import Schedule


@dataclass(frozen=True)
class Interval:
    """The values that a hyperparameter may take: from ``low``, included, to ``high``.

    ``high`` itself belongs to it where ``closed``.
    """

    low: float = -math.inf
    high: float = math.inf
    closed: bool = False

    def __contains__(self, value: float) -> bool:
        if self.closed or self.high == math.inf:
            return self.low <= value <= self.high
        return self.low <= value < self.high

    def __str__(self) -> str:
        ends = [f"at least {self.low:g}"] if self.low > -math.inf else []
        if self.low == sys.float_info.min:
            ends = ["above 0"]
        if self.high < math.inf:
            ends.append(f"{'at most' if self.closed else 'below'} {self.high:g}")
        return " and ".join(ends) or "a number"


#: Annotations for hyperparameters: ``beta1: Decay = 0.9``.
Decay = Annotated[float, Interval(0, 1)]
NonNegative = Annotated[float, Interval(0)]
Positive = Annotated[float, Interval(sys.float_info.min)]
Share = Annotated[float, Interval(0, 1, closed=True)]


def is_number(value: Any) -> bool:
    """True for what is dynamic: int, float, a tensor or a schedule, but no bool."""
    return isinstance(value, int | float | Tensor | Schedule) and not isinstance(value, bool)


#: How torch.optim begins its messages about these; kept, since people search for them.
_SPOKEN = {"lr": "learning rate", "eps": "epsilon value"}


def check_number(name: str, value: Any, interval: Interval, spoken: str | None = None) -> None:
    """Raise unless ``value`` is a number, a one-element tensor included, within the interval.

    Raises:
        TypeError: not a number.
        ValueError: a tensor of several elements, nan, or outside of the interval; of a schedule,
            its first number.
    """
    if isinstance(value, Schedule):
        value = value(0)
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"Tensor {name} must be 1-element; got shape {tuple(value.shape)}")
        if value.device.type == "meta":
            return
        value = value.item()
    spoken = spoken or _SPOKEN.get(name, f"{name} value")
    if not is_number(value) and not hasattr(value, "__float__"):
        raise TypeError(
            f"Invalid {spoken}: {value!r} is a {type(value).__name__}; {name} takes a number"
        )
    if isinstance(value, bool) or float(value) not in interval:
        raise ValueError(f"Invalid {spoken}: {value}; {name} must be {interval}")
