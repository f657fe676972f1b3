"""The numbers that one weight's next step starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradstep.optimizer import Optimizer
from gradstep.rule.definition import Rule
from gradstep.rule.hyperparameter import is_number


@dataclass(frozen=True)
class Element:
    """One weight before a step.

    Attributes:
        rule: the rule that will update it.
        dtype: how weight, gradient and states are stored.
        weight, gradient: the stored numbers.
        states: name -> stored number, or what it will start as; also those states that are one
            number for the whole parameter.
        step: the number of the step to come, 1 for the first.
        first: whether the states are new.
        settings: ``lr`` and every hyperparameter, by the rule's names.
        maximize: whether the gradient's sign is turned first.
    """

    rule: Rule
    dtype: torch.dtype
    weight: float
    gradient: float
    states: Mapping[str, float]
    step: float
    first: bool
    settings: Mapping[str, Any]
    maximize: bool = False

    def numbers(self) -> dict[str, float]:
        """``step``, ``first``, ``lr`` and the numeric hyperparameters."""
        numeric = {n: v for n, v in self.settings.items() if is_number(v)}
        return {**numeric, "step": self.step, "first": float(self.first)}


def element_of(optimizer: Optimizer, parameter: Tensor, index: Sequence[int]) -> Element:
    """Read what the next step of one weight starts from. Changes nothing.

    Args:
        optimizer: holds the parameter.
        parameter: real and dense, with a gradient.
        index: the place of the weight in it: one number a dimension.

    Raises:
        ValueError: the parameter is not in the optimizer, or has no gradient.
        TypeError: a complex parameter.
    """
    group = next(
        (g for g in optimizer.param_groups if any(p is parameter for p in g["params"])), None
    )
    if group is None:
        raise ValueError("the optimizer does not hold this parameter")
    if parameter.grad is None:
        raise ValueError("the parameter has no gradient: call backward() first")
    if parameter.is_complex():
        raise TypeError("a complex weight is two real ones; look at view_as_real(parameter)")
    rule, place = optimizer.rule, tuple(index)
    settings = {n: _plain(optimizer.hyperparameter(group, n)) for n in rule.hyperparameters}
    settings["lr"] = _plain(group["lr"])
    held = optimizer.state.get(parameter, {})
    gradient = float(parameter.grad[place].item())
    weight = float(parameter[place].item())
    states: dict[str, float] = {}
    first = True
    for name, state in rule.states.items():
        if not state.exists(settings):
            continue
        value = settings[state.value] if isinstance(state.value, str) else state.value
        if state.start == "number":
            kept = held.get(name)
            states[name] = float(torch.tensor(value) if kept is None else kept)
        elif held.get(name) is not None:
            first = False
            states[name] = float(held[name][place].item())
        elif state.start in ("weight", "gradient"):
            states[name] = weight if state.start == "weight" else gradient
        else:
            states[name] = float(torch.tensor(float(value), dtype=parameter.dtype).item())
    return Element(
        rule=rule,
        dtype=parameter.dtype,
        weight=weight,
        gradient=gradient,
        states=states,
        step=float(held.get("step", 0.0)) + 1.0,
        first=first,
        settings=settings,
        maximize=bool(group.get("maximize", False)),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.detach().item()
    return float(value) if is_number(value) else value
