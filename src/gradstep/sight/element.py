"""The numbers that one weight's next step starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradstep.engine.update import is_matrix
from gradstep.optimizer import Optimizer
from gradstep.rule.definition import Rule
from gradstep.rule.graph import Graph
from gradstep.rule.hyperparameter import is_number
from gradstep.rule.reductions import facts_of
from gradstep.rule.trace import trace
from gradstep.sight.surroundings import outcomes_at


@dataclass(frozen=True)
class Element:
    """One weight before a step.

    Attributes:
        rule: the rule that will update it.
        dtype: how weight, gradient and states are stored.
        weight, gradient: the stored numbers.
        states: name -> stored number, or what it will start as: of a state with one number a row,
            column or parameter, the one that goes with this weight.
        step: the number of the step to come, 1 for the first.
        first: whether the states are new.
        settings: ``lr`` and every hyperparameter, by the rule's names; and ``grad_scale``, where
            the gradient is to be divided by it.
        graph: the rule, traced with these settings.
        shape, place: of the parameter, and the weight's place in it.
        facts: the numbers that a rule may ask of the parameter's shape and dtype, by name.
        outcomes: for a rule that looks beyond one weight, what its reductions and functions give
            at this place, in the order of :meth:`gradstep.rule.graph.Graph.gathered`.
    """

    rule: Rule
    dtype: torch.dtype
    weight: float
    gradient: float
    states: Mapping[str, float]
    step: float
    first: bool
    settings: Mapping[str, Any]
    graph: Graph
    shape: tuple[int, ...] = ()
    place: tuple[int, ...] = ()
    facts: Mapping[str, float] = field(default_factory=dict)
    outcomes: tuple[float, ...] = ()

    def numbers(self) -> dict[str, float]:
        """``step``, ``first``, ``lr``, the numeric hyperparameters and the facts."""
        numeric = {n: v for n, v in self.settings.items() if is_number(v)}
        return {**numeric, **self.facts, "step": self.step, "first": float(self.first)}


def element_of(optimizer: Optimizer, parameter: Tensor, index: Sequence[int]) -> Element:
    """Read what the next step of one weight starts from. Changes nothing.

    Args:
        optimizer: holds the parameter.
        parameter: real and dense, with a gradient.
        index: the place of the weight in it: one number a dimension.

    Raises:
        ValueError: the parameter is not in the optimizer, has no gradient, or has no rows and
            columns along which the rule works.
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
    place = tuple(range(n)[i] for i, n in zip(place, parameter.shape, strict=True))
    states: dict[str, float] = {}
    first = True
    for name, state in rule.states.items():
        if not state.exists(settings, is_matrix(parameter)):
            continue
        value = settings[state.value] if isinstance(state.value, str) else state.value
        if state.start == "number":
            kept = held.get(name)
            states[name] = float(torch.tensor(value) if kept is None else kept)
        elif held.get(name) is not None:
            first = False
            kept = held[name]
            own = tuple(min(i, n - 1) for i, n in zip(place, kept.shape, strict=True))
            states[name] = float(kept[own].item())
        elif state.start in ("weight", "gradient"):
            states[name] = weight if state.start == "weight" else gradient
        else:
            states[name] = float(torch.tensor(float(value), dtype=parameter.dtype).item())
    maximize = bool(group.get("maximize", False))
    scale = getattr(optimizer, "grad_scale", None)
    if scale is not None:
        settings["grad_scale"] = float(scale)
    graph = trace(rule, settings, maximize, is_matrix(parameter), scale is not None)
    outcomes: tuple[float, ...] = ()
    if graph.gathered():
        outcomes = outcomes_at(place, optimizer, group, parameter, graph, settings)
    return Element(
        rule=rule,
        dtype=parameter.dtype,
        weight=weight,
        gradient=gradient,
        states=states,
        step=float(held.get("step", 0.0)) + 1.0,
        first=first,
        settings=settings,
        graph=graph,
        shape=tuple(parameter.shape),
        place=place,
        facts=facts_of(parameter),
        outcomes=outcomes,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.detach().item()
    return float(value) if is_number(value) else value
