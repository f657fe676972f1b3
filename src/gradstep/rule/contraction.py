"""Contract a graph: which operations round together.

Every operation of a rule is one IEEE operation, with one exception, which torch's kernels make
too: a sum or difference with a product in it is one fused multiply-add, rounded once. Where both
operands are products, the right one is taken in (so ``beta * state + (1 - beta) * g`` rounds
``beta * state`` first, as ``state.mul_(beta).add_(g, alpha=1 - beta)`` does). ``lerp`` stays an
operation of its own, a fused multiply-add from the nearer end. Numbers are left as they are: they
are worked out on the host, in float64.

Kernels, explanations and every other reader of exact numbers start from a contracted graph.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from gradstep.rule.graph import Graph, Node, in_order


def contracted(graph: Graph) -> Graph:
    """The same graph with its scaled additions as ``fma`` nodes: ``fma(a, b, c) = a·b + c``."""
    nodes = graph.nodes
    uses = Counter(id(a) for node in nodes for a in node.arguments)
    uses.update(id(node) for node in graph.outputs())
    made: dict[int, Node] = {}

    def product(node: Node) -> bool:
        return node.operation == "mul" and node.per_element and uses[id(node)] == 1

    def negative(node: Node) -> Node:
        return Node("neg", (node,), node.extent, line=node.line)

    for node in nodes:
        arguments = tuple(made[id(a)] for a in node.arguments)
        new: Node
        if node.per_element and node.operation in ("add", "sub"):
            left, right = node.arguments
            minus = node.operation == "sub"
            if product(right):
                a, b = made[id(right)].arguments
                # The sign goes to a number where there is one, so that it is turned on the host.
                a, b = (b, a) if a.per_element and not b.per_element else (a, b)
                new = _like(node, "fma", (negative(a) if minus else a, b, arguments[0]))
            elif product(left):
                a, b = made[id(left)].arguments
                addend = negative(arguments[1]) if minus else arguments[1]
                new = _like(node, "fma", (a, b, addend))
            else:
                new = _like(node, node.operation, arguments)
        elif node.operation in ("input", "constant"):
            new = node
        else:
            new = _like(node, node.operation, arguments)
        made[id(node)] = new

    def of(node: Node) -> Node:
        return made[id(node)]

    states = tuple(
        (n, of(before) if id(before) in made else before, of(a)) for n, before, a in graph.states
    )
    numbers = tuple((n, before, of(after)) for n, before, after in graph.numbers)
    new_weight = of(graph.new_weight)
    return replace(
        graph,
        gradient=made.get(id(graph.gradient), graph.gradient),
        weight=made.get(id(graph.weight), graph.weight),
        direction=None if graph.direction is None else made.get(id(graph.direction)),
        new_weight=new_weight,
        states=states,
        numbers=numbers,
        order=in_order([new_weight, *(a for _, _, a in states)]),
    )


def _like(node: Node, operation: str, arguments: tuple[Node, ...]) -> Node:
    return Node(operation, arguments, node.extent, node.boolean, node.value, node.name, node.line)
