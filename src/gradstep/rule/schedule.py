"""A number that follows the count of steps, in the place of a hyperparameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """A number for each step. Made by the functions of ``gradstep.schedule``, or of any function.

    Attributes:
        function: takes the count of steps made before (0 at the first) and ``arguments``.
        arguments: of the shape, by name.
    """

    function: Callable[..., float]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, step: int) -> float:
        """The number for the step before which ``step`` others were made.

        Raises:
            TypeError: the function gives something other than a number; says for which step.
        """
        value = self.function(step, **self.arguments)
        try:
            return float(value)
        except (TypeError, ValueError):
            raise TypeError(f"{self} gives {value!r} for step {step}, not a number") from None

    def __repr__(self) -> str:
        name = getattr(self.function, "__name__", repr(self.function)).lstrip("_")
        return f"{name}({', '.join(f'{n}={v!r}' for n, v in self.arguments.items())})"


def is_schedule(value: Any) -> bool:
    """Whether it stands for a number at each step: a schedule, or any other function."""
    return callable(value) and not isinstance(value, Tensor | type)


def as_schedule(value: Any) -> Any:
    """A function as a schedule, also within a pair such as betas; all else as it is."""
    if isinstance(value, tuple) and any(map(is_schedule, value)):
        return tuple(map(as_schedule, value))
    return Schedule(value) if is_schedule(value) and not isinstance(value, Schedule) else value


def at_start(value: Any) -> Any:
    """What stands in a group before the first step: a schedule's first number."""
    if isinstance(value, tuple):
        return tuple(map(at_start, value)) if any(map(is_schedule, value)) else value
    return value(0) if isinstance(value, Schedule) else value
