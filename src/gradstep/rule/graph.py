"""A traced rule: nodes, each one operation, and the graph of one rule with its flags set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(eq=False)
class Node:
    """One operation of a rule, an input of it, or a number written in its text.

    Attributes:
        operation: a name from :data:`gradstep.rule.operations.OPERATIONS`, or ``"input"``
            (``value`` is its name) or ``"constant"`` (``value`` is the number).
        arguments: the nodes that it takes.
        per_element: True for a tensor of the weight's shape; False for a number, which is worked
            out on the host in float64.
        boolean: True for the outcome of a comparison.
        name: the variable that the rule's text gives it, if any.
        line: the line in the rule's file, 0 where unknown.
    """

    operation: str
    arguments: tuple[Node, ...] = ()
    per_element: bool = False
    boolean: bool = False
    value: float | str | None = None
    name: str | None = None
    line: int = 0

    def constant(self) -> float:
        """The number of a ``"constant"`` node."""
        assert isinstance(self.value, float)
        return self.value


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
        questions: what the rule asked with ``nonzero``, and what its states' existence depends on:
            (hyperparameter, answer) pairs. The graph holds as long as the answers do.
    """

    rule_name: str
    gradient: Node
    weight: Node
    direction: Node | None
    new_weight: Node
    states: tuple[tuple[str, Node, Node], ...]
    numbers: tuple[tuple[str, Node, Node], ...] = ()
    questions: tuple[tuple[str, bool], ...] = ()
    order: tuple[Node, ...] = field(default=(), repr=False)

    def outputs(self) -> tuple[Node, ...]:
        """The new weight, then the new state tensors, in order."""
        return (self.new_weight, *(after for _, _, after in self.states))

    def holds_for(self, values: dict[str, object]) -> bool:
        """True while every question that the rule asked would be answered as it was."""
        return all(bool(values[name] != 0) == answer for name, answer in self.questions)


def in_order(roots: Iterable[Node]) -> tuple[Node, ...]:
    """All nodes below ``roots``, each after its arguments and once."""
    seen: set[int] = set()
    ordered: list[Node] = []
    pending: list[tuple[Node, Iterator[Node]]] = []
    for root in roots:
        if id(root) in seen:
            continue
        seen.add(id(root))
        pending.append((root, iter(root.arguments)))
        while pending:
            node, rest = pending[-1]
            for argument in rest:
                if id(argument) not in seen:
                    seen.add(id(argument))
                    pending.append((argument, iter(argument.arguments)))
                    break
            else:
                ordered.append(node)
                pending.pop()
    return tuple(ordered)
