"""What one weight's step takes from the rest of its tensor: sums, and matrix functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gradstep.engine.update import Update, is_matrix
from gradstep.optimizer import Optimizer
from gradstep.rule.graph import Graph, Node
from gradstep.rule.hyperparameter import is_number
from gradstep.states import begin_states, number_states


def outcomes_at(
    place: Sequence[int],
    optimizer: Optimizer,
    group: Mapping[str, Any],
    parameter: Tensor,
    graph: Graph,
    settings: Mapping[str, Any],
) -> tuple[float, ...]:
    """What the reductions and opaque functions of the next step give at a place of a parameter.

    The step is made on copies, by the kernel. The parameter, its gradient and its states stay as
    they are.

    Raises:
        ValueError: the rule works along rows and columns, and the parameter has none; or it looks
            at all parameters at once.
    """
    from gradstep.engine.observed import observe  # takes the compiler with it

    rule = optimizer.rule
    if any(node.operation == "global_sum" for node in graph.gathered()):
        raise ValueError(
            f"{rule.name} looks at all parameters at once, which only the step itself can show. "
            "Arm it with gradstep.explain(optimizer, name, index), then call optimizer.step()."
        )
    if graph.needs_matrix() and not is_matrix(parameter):
        raise ValueError(
            f"{rule.name} works along rows and columns, and the parameter has {parameter.dim()} "
            "dimension(s). Give it to another rule."
        )
    numbers = {n: float(v) for n, v in settings.items() if is_number(v)}
    update = _copies(optimizer, group, parameter, graph, settings)
    outcomes = []
    for outcome in observe(graph, update, list(numbers), list(numbers.values())):
        at = tuple(min(i, n - 1) for i, n in zip(place, outcome.shape, strict=False))
        outcomes.append(float(outcome[at].item()))
    return tuple(outcomes)


def _copies(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    parameter: Tensor,
    graph: Graph,
    settings: Mapping[str, Any],
) -> Update:
    """A step of copies. States that are not there yet are begun."""
    live = live_update(optimizer, group, parameter, graph, settings)
    weight = parameter.detach().clone(
        memory_format=torch.contiguous_format if graph.needs_matrix() else torch.preserve_format
    )
    states = {}
    for name, held in live.states.items():
        like = weight.new_empty(live.shapes[name]) if name in live.shapes else weight
        states[name] = torch.empty_like(like).copy_(held)
    return replace(
        live,
        weight=weight,
        gradient=live.gradient.detach().clone(),  # in its own layout, which opaque functions see
        states=states,
        numbers={name: held.clone() for name, held in live.numbers.items()},
    )


def live_update(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    parameter: Tensor,
    graph: Graph,
    settings: Mapping[str, Any],
) -> Update:
    """The step of a parameter itself, for looking only. States that are not there yet are begun.

    The optimizer does not get those.
    """
    rule = optimizer.rule
    assert parameter.grad is not None
    entry: dict[str, Any] = dict(optimizer.state.get(parameter, {}))

    def name_of() -> str:
        return optimizer.name_of(parameter)

    first = begin_states(rule, parameter, entry, group, settings, parameter.grad, name_of)
    shapes = {
        name: state.shape_for(tuple(parameter.shape))
        for name, state in rule.states.items()
        if state.shape != "weight" and any(name == own for own, _, _ in graph.states)
    }
    return Update(
        parameter.detach(),
        parameter.grad,
        {name: entry[name] for name, _, _ in graph.states},
        {name: entry[name] for name in number_states(rule, settings)},
        first,
        name_of,
        shapes,
    )


def over_what(
    node: Node,
    shape: Sequence[int],
    place: Sequence[int],
    everything: tuple[int, int] = (0, 0),
) -> str:
    """What a reduction gathers, or where an opaque function's outcome is looked at, in words.

    Args:
        node: one that gathers.
        shape, place: of the parameter, and of the weight in it.
        everything: how many parameters have a gradient, and how many weights these have together.
    """
    if node.operation == "global_sum":
        parameters, weights = everything
        return f"sum over all {_counted(weights, 'element')} of {_counted(parameters, 'parameter')}"
    if node.operation == "opaque":
        return f"entry {list(place)} of {node.value.name}"
    noun = "largest" if node.operation == "max" else "sum"
    lengths = {"b": math.prod(shape[:-2]), "r": math.prod(shape[-2:-1]), "c": math.prod(shape[-1:])}
    count = math.prod(lengths[dimension] for dimension in node.value)
    extent = node.arguments[0].extent
    things = _counted(count, extent)
    # Of a row there is a number of its own here, unlike what stands in it.
    noun += " of" if noun == "largest" or extent == "element" else " over"
    if node.extent == "tensor":
        return f"{noun} all {things}" if count > 1 else f"{noun} {things}"
    of = {"row": f" of row {place[-2]}", "column": f" of column {place[-1]}", "matrix": ""}
    matrix = f" of matrix {list(place[:-2])}" if len(shape) > 2 else ""
    return f"{noun} the {things}{of[node.extent]}{matrix}"


def _counted(count: int, thing: str) -> str:
    if count == 1:
        return f"1 {thing}"
    return f"{count} " + ("matrices" if thing == "matrix" else f"{thing}s")
