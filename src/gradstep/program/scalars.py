"""Arithmetic between numbers alone: done once a step, in float64, before any tensor is touched."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy

from gradstep.rule.graph import Graph, Node, in_order
from gradstep.rule.operations import OPERATIONS

_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "gt": ">",
    "ge": ">=", "eq": "==", "ne": "!=",
}  # fmt: skip


def row_scalars(graph: Graph, totals: Sequence[Node] = ()) -> tuple[Node, ...]:
    """The number nodes that reach a tensor: what the host works out, a row a tensor.

    ``totals`` are reductions that only the graph's number states need.
    """
    found: dict[int, Node] = {}
    for node in in_order([*graph.order, *totals]):
        if node.extent != "number":
            for argument in node.arguments:
                if argument.extent == "number" and argument.operation != "constant":
                    found[id(argument)] = argument
    return tuple(found.values())


class TotalsAsInputs:
    """Nodes with the reductions below them replaced by inputs: ``"total 0"``, ``"total 1"``, …"""

    def __init__(self, totals: Sequence[Node]) -> None:
        self._known = {id(node): Node("input", value=f"total {i}") for i, node in enumerate(totals)}

    def __call__(self, node: Node) -> Node:
        if id(node) not in self._known:
            if node.operation in ("input", "constant"):
                return node
            arguments = tuple(map(self, node.arguments))
            self._known[id(node)] = Node(
                node.operation, arguments, "number", node.boolean, node.value, node.name, node.line
            )
        return self._known[id(node)]


def scalar_function(
    outputs: Sequence[Node], inputs: Sequence[str]
) -> Callable[..., tuple[float, ...]]:
    """A function from the numbers named ``inputs``, as floats, to the ``outputs``.

    It is Python text made from the nodes: for Adam's four numbers a call takes about a
    microsecond, where a walk over the nodes takes five. A division by zero, the root of a negative
    number and an overflow give inf or nan, as they do on tensors.
    """
    # Names of its own for all, since a hyperparameter may be called anything.
    places = {name: f"input{position}" for position, name in enumerate(inputs)}
    condition = next(
        (n.arguments[0] for n in in_order(outputs) if _is_choice(n)), None
    )  # most often of the first step, whose numbers no other has to work out
    if condition is None:
        body = _body(outputs, places, "    ")
    else:
        yes, no = (
            _body(_settled(outputs, condition, answer), places, "        ")
            for answer in (True, False)
        )
        body = f"    if {places[str(condition.value)]}:\n{yes}    else:\n{no}"
    source = f"def numbers({', '.join(places.values())}):\n{body}"
    python = _compile(source, lambda function: function)
    ieee = _compile(source, lambda function: lambda *values: numpy.float64(function(*values)))

    def numbers(*values: float) -> tuple[float, ...]:
        try:
            return python(*values)
        except ArithmeticError:  # 1/0 or an overflow, which Python refuses and NumPy's numbers do
            with numpy.errstate(all="ignore"):
                return tuple(float(n) for n in ieee(*map(numpy.float64, values)))

    return numbers


def _is_choice(node: Node) -> bool:
    """Whether it is one of two numbers, by an input."""
    return node.operation == "where" and node.arguments[0].operation == "input"


def _settled(outputs: Sequence[Node], condition: Node, answer: bool) -> list[Node]:
    """The outputs with each choice by a condition made."""
    made: dict[int, Node] = {}
    for node in in_order(outputs):
        if node.operation == "where" and node.arguments[0] is condition:
            made[id(node)] = made[id(node.arguments[1 if answer else 2])]
        elif node.arguments:
            arguments = tuple(made[id(a)] for a in node.arguments)
            made[id(node)] = Node(
                node.operation, arguments, "number", node.boolean, node.value, node.name, node.line
            )
        else:
            made[id(node)] = node
    return [made[id(node)] for node in outputs]


def _body(outputs: Sequence[Node], places: Mapping[str, str], indent: str) -> str:
    """The text that works out the outputs and returns them.

    Args:
        outputs: of the function.
        places: its arguments, by the inputs' names.
        indent: before each line.
    """
    lines = []
    names: dict[int, str] = {}
    for position, node in enumerate(in_order(outputs)):
        if node.operation == "input":
            names[id(node)] = places[str(node.value)]
            continue
        if node.operation == "constant":
            value = node.constant()
            names[id(node)] = f"({value!r})" if math.isfinite(value) else f"float('{value}')"
            continue
        arguments = [names[id(a)] for a in node.arguments]
        if node.operation in _INFIX:
            text = f"{arguments[0]} {_INFIX[node.operation]} {arguments[1]}"
        elif node.operation == "neg":
            text = f"-{arguments[0]}"
        else:
            text = f"_{node.operation}({', '.join(arguments)})"
        names[id(node)] = f"n{position}"
        lines.append(f"{indent}n{position} = {text}\n")
    result = "".join(f"{names[id(node)]}, " for node in outputs)
    return f"{''.join(lines)}{indent}return ({result})\n"


class ScalarRows:
    """A function from the numbers of tensors to a row of ``outputs`` for each.

    Most tensors have most numbers in common: what does not hang on sums of a tensor's own is worked
    out once for all that are alike.

    Args:
        outputs: the nodes of a row.
        inputs: the names of the numbers that there are, in order.
        own: how many of the last of them are sums of a tensor's own, or over all.
        differing: the names of those that differ where step counts and states are alike.

    Attributes:
        width: how many numbers a row has.
        is_common: whether tensors whose step counts and states are alike have the same row.
    """

    def __init__(
        self, outputs: Sequence[Node], inputs: Sequence[str], own: int, differing: Collection[str]
    ) -> None:
        names = {str(n.value) for n in in_order(outputs) if n.operation == "input"}
        used = [place for place, name in enumerate(inputs) if name in names]
        self.width = len(outputs)
        self.is_common = names.isdisjoint(differing)
        self._used = used
        self._once = not used or used[-1] < len(inputs) - own
        self._function = scalar_function(outputs, [inputs[place] for place in used])

    def __call__(self, rows: Iterable[Sequence[float]]) -> list[tuple[float, ...]]:
        """The rows for tensors, each given by its numbers; those behind the last used may lack."""
        used, function = self._used, self._function
        if not self._once:
            return [function(*[row[place] for place in used]) for row in rows]
        made: dict[tuple[float, ...], tuple[float, ...]] = {}
        found = []
        for row in rows:
            key = tuple([row[place] for place in used])
            if key not in made:
                made[key] = function(*key)
            found.append(made[key])
        return found


def _compile(
    source: str, wrapped: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Callable[..., tuple[float, ...]]:
    """The function ``numbers`` of a text, with each operation of the language as ``_name``."""
    namespace: dict[str, Any] = {
        f"_{name}": wrapped(operation.number) for name, operation in OPERATIONS.items()
    }
    exec(source, namespace)
    made: Callable[..., tuple[float, ...]] = namespace.pop("numbers")  # or both would stay
    return made
