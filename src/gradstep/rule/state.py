"""States: what a rule keeps between steps, and how each starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class State:
    """How a state starts.

    Attributes:
        start: ``"zeros"``, ``"full"``, ``"weight"`` or ``"gradient"`` for a tensor of the weight's
            shape; ``"number"`` for one number a weight tensor.
        value: for ``"full"`` and ``"number"``: the constant, or the name of the hyperparameter
            (or ``"lr"``) that gives it.
        when: the hyperparameter that must be true or other than 0 for the state to exist; None
            for always.
    """

    start: str = "zeros"
    value: float | str = 0.0
    when: str | None = None

    def exists(self, values: Mapping[str, Any]) -> bool:
        """Whether the state exists with these hyperparameters."""
        return self.when is None or bool(values[self.when] != 0)

    def words(self) -> str:
        """How it starts, in words."""
        start = {
            "zeros": "0",
            "full": str(self.value),
            "weight": "a copy of the weight",
            "gradient": "a copy of the first gradient",
            "number": f"{self.value}, one number a parameter",
        }[self.start]
        return start if self.when is None else f"{start}; kept only with {self.when}"


def zeros(when: str | None = None) -> Any:
    """A state that starts as zeros: the default, named to give the condition ``when``."""
    return State("zeros", 0.0, when)


def full(value: float | str, when: str | None = None) -> Any:
    """A state that starts with a constant, or with the value of the hyperparameter of that name."""
    return State("full", value, when)


def number(value: float | str, when: str | None = None) -> Any:
    """A state that is one number for the whole parameter, worked out on the host in float64.

    Starts with a constant, or with the value of the hyperparameter of that name, or of ``"lr"``.
    """
    return State("number", value, when)


def copy_of_weight(when: str | None = None) -> Any:
    """A state that starts as a copy of the weight."""
    return State("weight", 0.0, when)


def copy_of_gradient(when: str | None = None) -> Any:
    """A state that starts as a copy of the first gradient."""
    return State("gradient", 0.0, when)
