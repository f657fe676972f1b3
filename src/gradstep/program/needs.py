"""What a step needs of a graph: what lies behind a choice by a number is left out by the other.

``where(first, a, b)`` takes ``a`` at the first step alone. Where nobody else wants the sums that
``a`` is made of, no other step has to read memory for them.
"""

from __future__ import annotations

from collections.abc import Iterable

from gradstep.rule.graph import FACTS, Graph, Node, in_order

#: What must hold all together: conditions, by their nodes' ids, each with the answer that it must
#: have.
Case = frozenset[tuple[int, bool]]

#: Cases in any of which a value is needed. That of no conditions is every step.
Cases = frozenset[Case]

EVER: Cases = frozenset([frozenset()])

#: From so many on nobody counts them: the value then is needed at every step.
_MANY = 8


def needs(graph: Graph) -> dict[int, Cases]:
    """When each node's value is needed, by its id.

    Only choices by numbers count that the host knows before the step, and that do not differ by
    shapes or by what is kept for each parameter: so they are soon asked of thousands.
    """
    found: dict[int, Cases] = {}
    own = {*FACTS, *(name for name, _, _ in graph.numbers)}

    def is_common(condition: Node) -> bool:
        inputs = (n.value for n in in_order([condition]) if n.operation == "input")
        return condition.extent == "number" and own.isdisjoint(inputs)

    def add(node: Node, cases: Cases) -> None:
        found[id(node)] = any_of([found.get(id(node), frozenset()), cases])

    for node in (*graph.outputs(), *(after for _, _, after in graph.numbers)):
        add(node, EVER)
    for node in reversed(graph.nodes):
        cases = found[id(node)]
        chosen = node.operation == "where" and is_common(node.arguments[0])
        for place, argument in enumerate(node.arguments):
            narrow = chosen and place > 0
            add(argument, _and(cases, id(node.arguments[0]), place == 1) if narrow else cases)
    return found


def any_of(found: Iterable[Cases]) -> Cases:
    """The cases of all, without those that another one covers."""
    cases = frozenset[Case]().union(*found)
    cases = frozenset(c for c in cases if not any(other < c for other in cases))
    return cases if len(cases) < _MANY else EVER


def _and(cases: Cases, condition: int, answer: bool) -> Cases:
    """The same cases where a condition has an answer besides."""
    return frozenset(
        case | {(condition, answer)} for case in cases if (condition, not answer) not in case
    )
