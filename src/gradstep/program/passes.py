"""Split a graph that looks beyond one element into passes over memory.

A rule without reductions is one pass. A reduction needs a pass over its tensor before anything that
depends on it can be worked out; an opaque function needs its whole input first. Values for each
element are never kept between passes but worked out anew, so that no temporary grows with the
model; values for each row, column or matrix are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gradstep.program.needs import EVER, Cases, any_of, needs
from gradstep.rule.graph import REDUCTIONS, Graph, Node, in_order

#: The extents that passes run over, in the order in which they are tried.
DOMAINS = ("matrix", "row", "column", "element")


@dataclass
class Pass:
    """One pass over the elements, or over what is kept for rows, columns or matrices.

    Attributes:
        domain: what it runs over.
        sums: the reductions that it makes.
        keeps: (value, owner of the place where it is kept): of an opaque function's input the
            function's node, otherwise the value itself.
        writes: (before, value): what goes back to the weight's or a state's memory.
        loads: what it reads: inputs, kept values, the outcomes of reductions and functions.
        work: the operations, in order.
        scalars: the host's numbers that it reads.
        calls: the opaque functions to be called after it.
        available: what earlier passes have left, by the nodes' ids.
        walk: how it goes through a tensor: ``"flat"``, each element by itself, or in ``"lines"``.
        due: in which steps anybody needs what it makes.
    """

    domain: str
    sums: list[Node] = field(default_factory=list)
    keeps: list[tuple[Node, Node]] = field(default_factory=list)
    writes: list[tuple[Node, Node]] = field(default_factory=list)
    loads: list[Node] = field(default_factory=list)
    work: list[Node] = field(default_factory=list)
    scalars: list[Node] = field(default_factory=list)
    calls: list[Node] = field(default_factory=list)
    available: frozenset[int] = frozenset()
    walk: str = "lines"
    due: Cases = EVER

    def wanted(self) -> list[Node]:
        """The values that are this pass's purpose."""
        values = [node for _, node in self.writes] + [node for node, _ in self.keeps]
        return values + [node.arguments[0] for node in self.sums]

    def find_needs(self) -> None:
        """Find out what the pass reads and works out."""
        self.loads, self.work, self.scalars = _needs(self.domain, self.wanted(), self.available)


def passes(graph: Graph) -> list[Pass]:
    """The passes of a contracted graph, in order. All but the last only read what is there."""
    after = [node for _, _, node in graph.numbers]
    nodes = in_order([*graph.outputs(), *after])
    found: list[Pass] = []
    available: set[int] = set()
    while True:
        made = _next(nodes, graph, available)
        if made is None:
            break
        found.append(made)
        available |= {id(node) for node in made.sums}
        available |= {id(owner) for _, owner in made.keeps}
        available |= {id(node) for node in made.calls}
    found.append(Pass("element", available=frozenset(available)))
    _place_writes(found, graph)
    if len(found) == 1 and graph.is_elementwise:
        found[0].walk = "flat"
    when = needs(graph)
    for each in found:
        each.find_needs()
        each.due = _due(each, when)
    return found


def _due(each: Pass, when: dict[int, Cases]) -> Cases:
    """When a pass is needed: always if it writes, calls a function or has others wait for it."""
    if each.writes or each.calls or any(n.operation == "global_sum" for n in each.sums):
        return EVER
    made = [*each.sums, *(owner for _, owner in each.keeps)]
    return any_of(when[id(node)] for node in made)


def _next(nodes: tuple[Node, ...], graph: Graph, available: set[int]) -> Pass | None:
    """The next pass that makes something which was not there before."""
    outside = {id(a) for node in nodes for a in node.arguments if node.extent != a.extent}
    outside |= {id(a) for node in nodes if node.operation in REDUCTIONS for a in node.arguments}
    for domain in DOMAINS:
        made = Pass(domain, available=frozenset(available))
        for node in nodes:
            if id(node) in available:
                continue
            if node.operation in REDUCTIONS:
                argument = node.arguments[0]
                if argument.extent == domain and _computable(argument, domain, available):
                    made.sums.append(node)
            elif node.operation == "opaque":
                if domain != "element" or not _callable(node, made, available):
                    continue
                made.calls.append(node)
                if node.extent == "element":
                    made.keeps.append((node.arguments[0], node))
            elif (
                domain != "element"
                and node.extent == domain
                and node.operation != "input"
                and id(node) in outside
                and _computable(node, domain, available)
            ):
                made.keeps.append((node, node))
        if made.sums or made.keeps or made.calls:
            return made
    return None


def _callable(call: Node, made: Pass, available: set[int]) -> bool:
    """Whether an opaque function can be called after a pass: all that it takes is there.

    Tensors of their own shape may come from a function that is called before it after that pass.
    """
    called = available | {id(node) for node in made.calls}
    return all(
        _computable(a, "element", called if a.extent == "own" else available)
        for a in call.arguments
    )


def _computable(node: Node, domain: str, available: set[int] | frozenset[int]) -> bool:
    """Whether a pass over the domain can work a value out now."""
    for each in in_order([node], available):
        if id(each) in available or each.operation in ("input", "constant"):
            continue
        if each.operation in (*REDUCTIONS, "opaque"):
            return False
        if each.per_element and each.extent != domain:
            return False
    return True


def _needs(
    domain: str, roots: list[Node], available: frozenset[int]
) -> tuple[list[Node], list[Node], list[Node]]:
    loads: list[Node] = []
    work: list[Node] = []
    numbers: dict[int, Node] = {}
    for node in in_order(roots, available):
        if not node.per_element:
            continue
        if id(node) in available or node.operation == "input":
            loads.append(node)
            continue
        work.append(node)
        for argument in node.arguments:
            if not argument.per_element and argument.operation != "constant":
                numbers[id(argument)] = argument
    return loads, work, list(numbers.values())


def _place_writes(found: list[Pass], graph: Graph) -> None:
    """Give each state to the first pass that can make it and after which none reads the old.

    But not before the last opaque function has been called: it may raise.
    """
    safe = 1 + max((i for i, each in enumerate(found) if each.calls), default=-1)
    found[-1].writes.append((graph.weight, graph.new_weight))
    for _, before, after in graph.states:
        if after is before or after.extent == "own":  # which opaque functions make
            continue
        for position, each in enumerate(found[safe:], safe):
            if each.domain != after.extent or not _computable(after, each.domain, each.available):
                continue
            if not any(before is n for p in found[position + 1 :] for n in _needs_of(p)):
                each.writes.append((before, after))
                break
        else:
            made = frozenset(id(n) for p in found for n in p.sums)
            made |= {id(owner) for p in found for _, owner in p.keeps}
            made |= {id(node) for p in found for node in p.calls}
            found.append(Pass(after.extent, writes=[(before, after)], available=made))


def _needs_of(each: Pass) -> list[Node]:
    return _needs(each.domain, each.wanted(), each.available)[0]
