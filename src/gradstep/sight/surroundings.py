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
