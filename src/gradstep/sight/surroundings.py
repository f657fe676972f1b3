"""What one weight's step takes from the rest of its tensor: sums, and matrix functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from gradstep.backends.update import Update
from gradstep.optimizer.planning import Planner
from gradstep.optimizer.states import Beginnings, shared_states, unlike_weight
from gradstep.optimizer.weight_spec import state_specs
from gradstep.program.formats import seed_of, weight_format
from gradstep.rule.graph import Graph, Node
from gradstep.sight.language import say


def live_update(
    planner: Planner,
    group: Mapping[str, Any],
    parameter: Tensor,
    graph: Graph,
    settings: Mapping[str, Any],
) -> Update:
    """The step of a parameter itself, for looking only. States that are not there yet are begun.

    The optimizer does not get those.
    """
    rule, state = planner.rule, planner.contents.state
    assert parameter.grad is not None
    entry: dict[str, Any] = dict(state.get(parameter, {}))

    name_of = planner.namer(parameter)
    shared = shared_states(rule, state.values(), settings, planner.shared)
    beginnings = Beginnings(rule, group, settings, shared)
    first = beginnings.begin(parameter, entry, parameter.grad, name_of)
    specs = [state_specs(rule)[name] for name, _, _ in graph.states]
    kept = weight_format(rule, parameter.dtype)
    tensors = [name for each in specs for name in each.names_for(parameter)]
    tensors += [] if kept is None else kept.beside
    return Update(
        parameter.detach(),
        parameter.grad,
        {name: entry[name] for name in tensors},
        {name: entry[name] for name in beginnings.numbers},
        first,
        name_of,
        *unlike_weight(specs, parameter, settings),
        weight_format=kept,
        seed=seed_of(rule),
    )


def over_what(
    node: Node,
    shape: Sequence[int],
    place: Sequence[int],
    everything: tuple[int, int] = (0, 0),
    rows_are_units: bool = False,
) -> str:
    """What a reduction gathers, or where an opaque function's outcome is looked at, in words.

    Args:
        node: one that gathers.
        shape, place: of the parameter, and of the weight in it.
        everything: how many parameters have a gradient, and how many weights these have together.
        rows_are_units: of the graph.
    """
    row = "row"
    if rows_are_units and len(shape) > 1:
        row, shape, place = "unit", (shape[0], math.prod(shape[1:])), (place[0], 0)
    if node.operation == "global_sum":
        parameters, weights = everything
        elements, counted = _counted(weights, "element"), _counted(parameters, "parameter")
        return say("sum over everything", elements=elements, parameters=counted)
    if node.operation == "opaque":
        return say("entry", place=list(place), name=node.value.name)
    lengths = {"b": math.prod(shape[:-2]), "r": math.prod(shape[-2:-1]), "c": math.prod(shape[-1:])}
    lengths["u"] = lengths["c"]
    count = math.prod(lengths[dimension] for dimension in node.value)
    extent = node.arguments[0].extent
    things = _counted(count, row if extent == "row" else extent)
    # Of a row there is a number of its own here, unlike what stands in it.
    kind = "sum of" if extent == "element" else "sum over"
    noun = say("largest of" if node.operation == "max" else kind)
    if node.extent == "tensor":
        return say("gathered whole" if count > 1 else "gathered one", noun=noun, things=things)
    part = ""
    if node.extent in ("row", "column"):
        number = place[-2] if node.extent == "row" else place[-1]
        part = say(f"of {row if node.extent == 'row' else node.extent}", number=number)
    matrix = say("of matrix", place=list(place[:-2])) if len(shape) > 2 else ""
    return say("gathered part", noun=noun, things=things, part=part, matrix=matrix)


def _counted(count: int, thing: str) -> str:
    return say(f"one {thing}" if count == 1 else f"several {thing}", count=count)
