"""A traced rule: nodes, each one operation, and the graph of one rule with its flags set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


@dataclass(eq=False)
class Node:
    """One operation of a rule, an input of it, or a number written in its text.

    Attributes:
        operation: a name from :data:`gradstep.rule.operations.OPERATIONS`, or ``"input"``
            (``value`` is its name) or ``"constant"`` (``value`` is the number).
            A reduction's ``value`` is the dimensions that it sums away, ``"u"`` for all but the
            first; an opaque function's the
            function. What a function makes of a tensor of another shape is a ``"part"`` of it, and
            ``value`` that tensor's place among its arguments.
        arguments: the nodes that it takes.
        extent: what it has a value for: ``"element"`` (a tensor of the weight's shape), ``"row"``
            and ``"column"`` (the last, or the one before the last dimension summed away),
            ``"matrix"`` (both), ``"tensor"`` (one number that depends on a tensor's elements),
            ``"number"`` (one that does not), or ``"own"`` (a tensor of another shape, which only
            opaque functions take). Numbers of both kinds are worked out on the host in float64.
        boolean: True for the outcome of a comparison.
        name: the variable that the rule's text gives it, if any.
        line: the line in the rule's file, 0 where unknown.
        stage: of a chain, the number of the rule that made it, or whose state it is.
    """

    operation: str
    arguments: tuple[Node, ...] = ()
    extent: str = "number"
    boolean: bool = False
    value: Any = None
    name: str | None = None
    line: int = 0
    stage: int = 0

    @property
    def per_element(self) -> bool:
        """Whether it is worked out for many elements, in the weight's own precision."""
        return self.extent not in ("number", "tensor", "own")

    @property
    def gathers(self) -> bool:
        """Whether it is made of other elements than its own: a reduction or opaque function.

        Not a function that no tensor of the weight's shape goes into.
        """
        return self.operation in REDUCTIONS or (
            self.operation == "opaque" and self.extent == "element"
        )

    def constant(self) -> float:
        """The number of a ``"constant"`` node."""
        assert isinstance(self.value, float)
        return self.value


#: Extent -> the dimensions along which it has values of its own: b for all but the last two, r for
#: the one before the last, c for the last.
DIMENSIONS: dict[str, frozenset[str]] = {
    "number": frozenset(),
    "tensor": frozenset(),
    "matrix": frozenset("b"),
    "row": frozenset("br"),
    "column": frozenset("bc"),
    "element": frozenset("brc"),
}

#: Inputs that are numbers of a weight's shape and dtype: known before a step, other for each.
FACTS = ("size(w)", "size(w, -1)", "size(w, -2)", "size(w, unit)", "machine_epsilon")

#: What a reduction calls all dimensions but the first. A graph that has one has no other rows.
UNIT = "unit"

#: Operations that gather many elements into one: a sum, and the largest.
REDUCTIONS = ("sum", "max", "global_sum")


def along(node: Node) -> int | str | None:
    """The dimension that a reduction takes away, as a rule names it; None for several."""
    names: dict[str, int | str] = {"c": -1, "r": -2, "u": UNIT}
    return names.get(node.value)


def as_matrix(shape: Sequence[int], rows_are_units: bool) -> tuple[int, int, int]:
    """How many matrices a shape of two dimensions or more has, their rows and their columns."""
    if rows_are_units:
        return 1, shape[0], math.prod(shape[1:])
    return math.prod(shape[:-2]), shape[-2], shape[-1]


def joined(extents: Iterable[str]) -> str:
    """The extent of an operation on values of these extents."""
    found = set(extents)
    dimensions = frozenset[str]().union(*(DIMENSIONS[e] for e in found))
    if not dimensions:
        return "tensor" if "tensor" in found else "number"
    return next(e for e, d in DIMENSIONS.items() if d == dimensions)


@dataclass(frozen=True)
class Graph:
    """A rule with its flags set, as a graph from gradient, weight and states to their successors.

    Attributes:
        rule_name: the rule's name, for messages.
        gradient: the node of the incoming gradient.
        weight: the node of the weight before the step.
        direction: what the rule returned first; None where it set the weight outright.
        new_weight: the weight after the step.
        states: for each state tensor its name, its node before and its node after the step.
        numbers: the same for each state that is one number a parameter.
        shared: the names of those numbers that all parameters have together.
        alike: the numbers that shared states are made of, beside sums over all parameters: they
            must be the same in all groups.
        questions: what the rule asked with ``nonzero``, and what its states' existence depends on:
            (hyperparameter, answer) pairs. The graph holds as long as the answers do.
        stages: the names of a chain's rules, to which the nodes' ``stage`` counts, and ``"step"``
            for what moves the weight; empty for a single rule.
    """

    rule_name: str
    gradient: Node
    weight: Node
    direction: Node | None
    new_weight: Node
    states: tuple[tuple[str, Node, Node], ...]
    numbers: tuple[tuple[str, Node, Node], ...] = ()
    questions: tuple[tuple[str, bool], ...] = ()
    shared: tuple[str, ...] = ()
    alike: tuple[str, ...] = ()
    order: tuple[Node, ...] = field(default=(), repr=False)
    stages: tuple[str, ...] = ()

    def outputs(self) -> tuple[Node, ...]:
        """The new weight, then the new state tensors, in order."""
        return (self.new_weight, *(after for _, _, after in self.states))

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes, also those that only a state of one number needs."""
        return in_order([*self.outputs(), *(after for _, _, after in self.numbers)])

    @cached_property
    def gathered(self) -> list[Node]:
        """The reductions and opaque functions, each after those that it needs."""
        return [node for node in self.nodes if node.gathers]

    @cached_property
    def is_elementwise(self) -> bool:
        """Whether each element's step depends on nothing of the other elements or of the shape."""
        return not any(
            node.gathers
            or node.extent not in ("element", "number")
            or (node.operation == "input" and node.value in FACTS)
            for node in self.nodes
        )

    @cached_property
    def sums_over_all(self) -> bool:
        """Whether it sums over all parameters of the optimizer, or keeps a number for them all."""
        return bool(self.shared) or any(n.operation == "global_sum" for n in self.nodes)

    @cached_property
    def calls_opaque(self) -> bool:
        """Whether it calls functions that are not looked into."""
        return any(node.operation == "opaque" for node in self.nodes)

    @cached_property
    def rows_are_units(self) -> bool:
        """Whether a row is all that feeds one output: all dimensions but the first."""
        return any(node.value == "u" for node in self.nodes if node.operation in REDUCTIONS)

    @cached_property
    def needs_matrix(self) -> bool:
        """Whether it works along rows or columns, which a vector does not have."""
        return any(node.extent in ("row", "column", "matrix") for node in self.order)


def in_order(roots: Iterable[Node], known: Set[int] = frozenset()) -> tuple[Node, ...]:
    """All nodes below ``roots``, each after its arguments and once.

    Nothing below those whose ids are ``known``.
    """

    def below(node: Node) -> Iterator[Node]:
        return iter(() if id(node) in known else node.arguments)

    seen: set[int] = set()
    ordered: list[Node] = []
    pending: list[tuple[Node, Iterator[Node]]] = []
    for root in roots:
        if id(root) in seen:
            continue
        seen.add(id(root))
        pending.append((root, below(root)))
        while pending:
            node, rest = pending[-1]
            for argument in rest:
                if id(argument) not in seen:
                    seen.add(id(argument))
                    pending.append((argument, below(argument)))
                    break
            else:
                ordered.append(node)
                pending.pop()
    return tuple(ordered)
