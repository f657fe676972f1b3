"""The numbers that one weight's next step starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradstep.backends.update import chance_key, is_matrix
from gradstep.optimizer.planning import Planner
from gradstep.optimizer.states import common_number, places_in_group
from gradstep.optimizer.weight_spec import state_specs, weight_number
from gradstep.program.format import Format
from gradstep.program.formats import seed_of, weight_format
from gradstep.program.weight_formats import WeightFormat
from gradstep.rule.definition import Rule
from gradstep.rule.graph import Graph
from gradstep.rule.hyperparameter import is_number
from gradstep.rule.reductions import facts_of
from gradstep.rule.trace import trace


@dataclass(frozen=True)
class Element:
    """One weight before a step.

    Attributes:
        rule: the rule that will update it.
        dtype: how weight and gradient are stored, and states that have no format of their own.
        weight, gradient: the stored numbers.
        states: name -> stored number, or what it will start as: of a state with one number a row,
            column or parameter, the one that goes with this weight.
        step: the number of the step to come, 1 for the first.
        first: whether the states are new.
        settings: ``lr`` and every hyperparameter, by the rule's names; ``grad_scale``, where the
            gradient is to be divided by it; and ``loss``, where the rule asks for it.
        graph: the rule, traced with these settings.
        shape, place: of the parameter, and the weight's place in it.
        facts: the numbers that a rule may ask of the parameter's shape and dtype, by name.
        outcomes: for a rule that looks beyond one weight, what its reductions and functions give
            at this place, in the order of :meth:`gradstep.rule.graph.Graph.gathered`.
        everything: how many parameters, and weights in them, a sum over all parameters is over.
        keeps: of a weight that is not rounded to its dtype: what a new one comes back as.
        became: states that are stored in blocks: what they came back as after the step, which hangs
            on the others of the block.
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
    everything: tuple[int, int] = (0, 0)
    keeps: Callable[[float], float] | None = None
    became: Mapping[str, float] = field(default_factory=dict)

    def formats(self) -> dict[str, Format]:
        """The states that are stored otherwise than the weight, by name."""
        weight = torch.empty(self.shape, dtype=self.dtype, device="meta")
        found = ((n, spec.format_for(weight)) for n, spec in state_specs(self.rule).items())
        return {name: format for name, format in found if format is not None}

    def numbers(self) -> dict[str, float]:
        """``step``, ``first``, ``lr``, the numeric hyperparameters and the facts."""
        numeric = {n: v for n, v in self.settings.items() if is_number(v)}
        return {**numeric, **self.facts, "step": self.step, "first": float(self.first)}


def group_of(planner: Planner, parameter: Tensor) -> dict[str, Any]:
    """The group that holds a parameter.

    Raises:
        ValueError: none does.
    """
    for group in planner.contents.groups:
        if any(p is parameter for p in group["params"]):
            return group
    raise ValueError("the optimizer does not hold this parameter")


def element_of(
    planner: Planner, parameter: Tensor, index: Sequence[int], graph: Graph | None = None
) -> Element:
    """Read what the next step of one weight starts from. Changes nothing.

    What the rule takes from other weights is not known before the step: :func:`gradstep.explain`
    adds it.

    Args:
        planner: of the optimizer that holds the parameter.
        parameter: real, with a gradient, which may be sparse.
        index: the place of the weight in it: one number a dimension.
        graph: of another weight of the parameter, read for the same step; None to trace the rule.

    Raises:
        ValueError: the parameter is not in the optimizer, or has no gradient.
        TypeError: a complex parameter.
    """
    group = group_of(planner, parameter)
    if parameter.grad is None:
        raise ValueError("the parameter has no gradient: call backward() first")
    if parameter.is_complex():
        raise TypeError("a complex weight is two real ones; look at view_as_real(parameter)")
    rule, place = planner.rule, tuple(index)
    settings = {n: _plain(value) for n, value in planner.reader.numbers(group).items()}
    maximize = bool(group.get("maximize", False))
    if "loss" in rule.inputs:  # known within a step only
        settings["loss"] = (-1.0 if maximize else 1.0) * planner.loss
    held = planner.contents.state.get(parameter, {})
    weight = weight_number(rule, parameter, held, place)
    place = tuple(range(n)[i] for i, n in zip(place, parameter.shape, strict=True))
    gradient = gradient_at(parameter.grad, place)
    existing = {n: s for n, s in rule.states.items() if s.exists(settings, is_matrix(parameter))}
    began = [n for n, s in existing.items() if not s.shared] + ["step"] * ("step" in rule.inputs)
    states: dict[str, float] = {}
    specs = state_specs(rule)
    for name, state in existing.items():
        if state.shape == "own":
            continue
        value = settings[state.value] if isinstance(state.value, str) else state.value
        if state.counted:
            value = float(places_in_group(group["params"])[id(parameter)])
        if state.shared:  # also of a parameter whose first gradient comes late
            kept = common_number(name, planner.contents.state.values())
            states[name] = float(value if kept is None else kept)
        elif state.start == "number":
            kept = held.get(name)
            states[name] = float(torch.tensor(value, device="cpu") if kept is None else kept)
        elif held.get(name) is not None:
            states[name] = specs[name].at(place, held, parameter.shape)
        else:
            begun = {"weight": weight, "gradient": gradient}.get(state.start)
            spec = specs[name]
            states[name] = spec.rounded(value if begun is None else begun, parameter)
    scale = planner.scale
    if scale is not None:
        settings["grad_scale"] = float(scale)
    if graph is None:
        graph = trace(rule, settings, maximize, is_matrix(parameter), scale is not None)
    step = float(held.get("step", 0.0)) + 1.0
    way = weight_format(rule, parameter.dtype)
    wide = way is not None and way.is_wide
    facts = facts_of(parameter, torch.finfo(torch.float32).eps if wide else None)
    return Element(
        rule=rule,
        dtype=torch.float32 if wide else parameter.dtype,
        weight=weight,
        gradient=gradient,
        states=states,
        step=step,
        first=bool(began) and all(held.get(n) is None for n in began),
        settings=settings,
        graph=graph,
        shape=tuple(parameter.shape),
        place=place,
        facts=facts,
        keeps=None if way is None else _keeps(rule, way, parameter, place, step),
    )


def _keeps(
    rule: Rule, kept: WeightFormat, parameter: Tensor, place: Sequence[int], step: float
) -> Callable[[float], float]:
    """What a number comes back as when it is the new weight at a place."""
    strides = torch.empty(parameter.shape, device="meta").stride()
    own = sum(i * stride for i, stride in zip(place, strides, strict=True))
    key = chance_key(seed_of(rule), step)

    def keeps(value: float) -> float:
        number = torch.tensor([value], dtype=torch.float32, device="cpu")
        parts = kept.encode_at(number, torch.tensor([own], device="cpu"), key)
        return float(kept.decode(parts, torch.float32).item())

    return keeps


def gradient_at(gradient: Tensor, place: Sequence[int]) -> float:
    """The gradient's number at a place; of a sparse one the sum of its entries, 0 for none."""
    if not gradient.is_sparse:
        return float(gradient[tuple(place)].item())
    entries = sparse_entries(gradient, place)
    return float(entries.sum().item()) if len(entries) else 0.0


def sparse_entries(gradient: Tensor, place: Sequence[int]) -> Tensor:
    """What a sparse gradient has for a place: one number for each time that it names its row."""
    named = gradient.sparse_dim()
    row = torch.tensor(tuple(place[:named]), device=gradient.device).unsqueeze(1)
    found = (gradient._indices() == row).all(0)
    rest: Any = (slice(None), *place[named:])
    return gradient._values()[found][rest]


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.detach().item()
    return float(value) if is_number(value) else value
