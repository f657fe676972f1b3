"""Hyperparameters: which values they may take, and the check of one."""

from __future__ import annotations

import difflib
import math
import sys
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from gradstep.rule.schedule import Schedule

#: torch's schedulers end within some 1e-15 of the number that they go to.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Interval:
    """The values that a hyperparameter may take: from ``low``, included, to ``high``.

    ``high`` itself belongs to it where ``closed``, and nan where ``nan``.
    """

    low: float = -math.inf
    high: float = math.inf
    closed: bool = False
    nan: bool = False

    def __contains__(self, value: float) -> bool:
        if value != value:
            return self.nan
        if self.closed or self.high == math.inf:
            return self.low <= value <= self.high
        return self.low <= value < self.high

    def widened(self) -> Interval:
        """With room for what arithmetic rounds away at the ends that belong to it."""
        return Interval(self.low - _ROUNDING, self.high + _ROUNDING * self.closed, self.closed)

    def __str__(self) -> str:
        ends = [f"at least {self.low:g}"] if self.low > -math.inf else []
        if self.low == sys.float_info.min:
            ends = ["above 0"]
        if self.high < math.inf:
            ends.append(f"{'at most' if self.closed else 'below'} {self.high:g}")
        return " and ".join(ends) or "a number"


@dataclass(frozen=True)
class Choice:
    """The values that a flag may take, as its ``Literal`` annotation lists them."""

    values: tuple[Any, ...]

    def check(self, name: str, value: Any) -> None:
        """Raise unless it is one of them.

        Raises:
            ValueError: names the nearest.
        """
        if value in self.values:
            return
        listed = ", ".join(map(repr, self.values))
        near = difflib.get_close_matches(str(value), [str(v) for v in self.values], 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Invalid {name} value: {value!r}; choose one of {listed}.{hint}")

    def __str__(self) -> str:
        return "one of " + ", ".join(map(repr, self.values))


#: Annotations for hyperparameters: ``beta1: Decay = 0.9``.
Decay = Annotated[float, Interval(0, 1)]
NonNegative = Annotated[float, Interval(0)]
Positive = Annotated[float, Interval(sys.float_info.min)]
Share = Annotated[float, Interval(0, 1, closed=True)]


#: As a tuple: torch 2.7's compiler stops at a union of types made with ``|``.
_NUMBERS = (int, float, Tensor, Schedule)


def is_number(value: Any) -> bool:
    """True for what is dynamic: int, float, a tensor or a schedule, but no bool."""
    return isinstance(value, _NUMBERS) and not isinstance(value, bool)


def is_truth_value(value: Any) -> bool:
    """True for what a flag may be: a bool, or what Python takes for one in torch's options.

    None and numbers, as torch takes them; no text, of which "False" would be true.
    """
    return value is None or hasattr(value, "__float__")


def is_sequence(value: Any) -> bool:
    """True for what holds several numbers in an order: a tuple, a list, a tensor or array."""
    return isinstance(value, tuple | list) or getattr(value, "ndim", 0) == 1


def like_default(value: Any, default: Any) -> Any:
    """A number given for a flag as a bool, and a bool given for a number as a float."""
    if isinstance(default, bool):
        return bool(value) if is_truth_value(value) else value
    return float(value) if isinstance(value, bool) and is_number(default) else value


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
    if not hasattr(value, "__float__"):
        raise TypeError(
            f"Invalid {spoken}: {value!r} is a {type(value).__name__}; {name} takes a number"
        )
    if float(value) not in interval:
        raise ValueError(f"Invalid {spoken}: {value}; {name} must be {interval}")
