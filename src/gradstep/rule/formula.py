"""A traced rule as formulas that a person can read: one line a named intermediate.

    exp_avg ← lerp(exp_avg, g, 1 − beta1)
    …
    w ← w − lr·direction

The names are those of the rule's own text. The lines are meant one after the other, as in a
program: ``←`` gives the name on its left a new value, and every later line means that one. Where
no order of the lines can do that, the new value gets a prime: ``exp_avg′``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gradstep.rule.graph import Graph, Node
from gradstep.rule.latex import latex_name, write_latex
from gradstep.rule.notation import greek_name, input_name, write

#: An expression of more operations than this that has no name and is used twice gets one.
_LONG = 12

#: Operations and columns in a formula of one line, at most.
_LONGEST_LINE, _WIDEST_LINE = 40, 92


@dataclass(frozen=True)
class Line:
    """One line of a formula.

    Attributes:
        name: what stands left of the arrow: a variable of the rule, a state, or ``w``.
        node: the graph's node whose value the name gets.
        text: what stands right of the arrow.
        per_element: False for a number that is worked out once a step for a whole tensor.
        copies: whether the line only gives a value another name, as ``previous ← g``.
        stage: of a chain, the name of the rule that the line is of; else empty.
        latex: what stands right of the arrow, as LaTeX.
    """

    name: str
    node: Node
    text: str
    per_element: bool
    copies: bool = False
    stage: str = ""
    latex: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.name} ← {self.text}"


@dataclass(frozen=True)
class Formula:
    """All lines of a rule with its flags set, in an order in which they can be worked out.

    Attributes:
        lines: numbers come before what is done for each weight, and ``w`` last, wherever nothing
            needs another order.
        names: node's id -> the name by which lines call its value.
    """

    lines: tuple[Line, ...]
    names: dict[int, str]

    def __str__(self) -> str:
        return "\n".join(map(str, self.lines))


def formula(graph: Graph, greek: bool = False) -> Formula:
    """The formula of a graph as it was traced (not settled).

    Args:
        graph: from :func:`gradstep.rule.trace.trace`.
        greek: write ``beta1`` as β₁, ``eps`` as ε, and so on.
    """
    assignments, names = _arrange(graph)
    spoken = {key: greek_name(name) if greek else name for key, name in names.items()}

    def line(made: _Assignment) -> Line:
        def named(called: Mapping[int, str]) -> Callable[[Node], str | None]:
            return lambda n: None if n is made.node and not made.copies else called.get(id(n))

        return Line(
            greek_name(made.name) if greek else made.name,
            made.node,
            write(made.node, named(spoken)),
            made.node.per_element,
            made.copies,
            graph.stages[_stage(graph, made)] if graph.stages else "",
            write_latex(made.node, named(in_latex)),
        )

    in_latex = {key: latex_name(name) for key, name in names.items()}
    lines = tuple(map(line, assignments))
    return Formula(lines, spoken)


def short_formula(graph: Graph, greek: bool = False) -> str:
    """What happens to the weight, in one line of about 90 columns.

    New states are called by their names. Intermediates are put in where the line has room.
    """
    names = formula(graph, greek).names
    target, direction = graph.new_weight, graph.direction
    states = {id(after) for _, _, after in graph.states}
    if id(target) in states or not _calculated(target):
        return f"w ← {write(target, lambda n: names.get(id(n)))}"

    def kept(node: Node) -> bool:
        """Called by its name, unlike an intermediate."""
        return node.operation == "input" or not node.per_element or id(node) in states

    lengths: dict[int, int] = {}
    for node in graph.order:
        own = 1 + sum(lengths[id(a)] for a in node.arguments)
        lengths[id(node)] = 1 if kept(node) and id(node) in names else own

    def line(put_in: set[int]) -> str:
        def name_of(node: Node) -> str | None:
            return None if id(node) in put_in else names.get(id(node))

        return f"w ← {write(target, name_of, associative=True)}"

    everything = {id(node) for node in graph.order if not kept(node)}
    ways = [everything & {id(target), id(direction)}, {id(target)}]
    if lengths[id(target)] <= _LONGEST_LINE:
        ways.insert(0, everything)
    lines = [line(way) for way in ways]
    return next((text for text in lines if len(text) <= _WIDEST_LINE), lines[-1])


@dataclass(frozen=True)
class _Assignment:
    name: str
    node: Node
    copies: bool = False


def _arrange(graph: Graph) -> tuple[list[_Assignment], dict[int, str]]:
    """Which nodes get a line, under what name, and in what order."""
    names = _names(graph)
    while True:
        assignments = _assignments(graph, names)
        ordered, stuck = _in_readable_order(graph, assignments, names)
        if stuck is None:
            return ordered, names
        # Some line needs the old value after the new one has taken its name.
        own = stuck.node.name
        names[id(stuck.node)] = (
            own if own is not None and own not in names.values() else names[id(stuck.node)] + "′"
        )


def _names(graph: Graph) -> dict[int, str]:
    names = {id(node): node.name for node in graph.nodes if node.name is not None}
    for node in graph.nodes:
        if node.operation == "input":
            names[id(node)] = input_name(node)
        elif node.operation == "constant":
            names.pop(id(node), None)
    direction = graph.direction
    if direction is not None and _calculated(direction):
        names.setdefault(id(direction), "direction")
    taken: set[int] = set()
    for name, node in _targets(graph):
        if _calculated(node) and id(node) not in taken:
            names[id(node)] = name
            taken.add(id(node))
    _name_long_expressions(graph, names)
    return names


def _targets(graph: Graph) -> list[tuple[str, Node]]:
    """States and weight, each with its value after the step."""
    states = (*graph.states, *graph.numbers)
    return [*((name, after) for name, _, after in states), ("w", graph.new_weight)]


def _calculated(node: Node) -> bool:
    return node.operation not in ("input", "constant")


def _name_long_expressions(graph: Graph, names: dict[int, str]) -> None:
    uses = Counter(id(a) for node in graph.nodes for a in node.arguments)
    size: dict[int, int] = {}
    made = 0
    for node in graph.nodes:
        size[id(node)] = 1 + sum(1 if id(a) in names else size[id(a)] for a in node.arguments)
        if id(node) not in names and uses[id(node)] > 1 and size[id(node)] > _LONG:
            made += 1
            names[id(node)] = f"t{made}"


def _assignments(graph: Graph, names: dict[int, str]) -> list[_Assignment]:
    """A line for each named node; and one for each state, and the weight, of another name."""
    found = [
        _Assignment(names[id(node)], node)
        for node in graph.nodes
        if _calculated(node) and id(node) in names
    ]
    before = {name: node for name, node, _ in (*graph.states, *graph.numbers)}
    for name, node in _targets(graph):
        if names.get(id(node)) != name and before.get(name, graph.weight) is not node:
            found.append(_Assignment(name, node, copies=True))
    return found


def _in_readable_order(
    graph: Graph, assignments: Sequence[_Assignment], names: dict[int, str]
) -> tuple[list[_Assignment], _Assignment | None]:
    """The assignments in order; or, if there is none, one whose name stands in the way."""
    position = {id(node): i for i, node in enumerate(graph.nodes)}
    makers = {id(a.node): i for i, a in enumerate(assignments) if not a.copies}
    reads = [_reads(a, names) for a in assignments]
    waits: list[set[int]] = [{makers[r] for r in own if r in makers} for own in reads]
    # A name is taken over only when nobody needs the value that had it before.
    by_name: dict[str, list[int]] = {}
    for i in sorted(
        range(len(assignments)),
        key=lambda i: (assignments[i].copies, position[id(assignments[i].node)]),
    ):
        by_name.setdefault(assignments[i].name, []).append(i)
    inputs = {names[id(n)]: n for n in graph.nodes if n.operation == "input"}
    takes_over: set[int] = set()
    for name, holders in by_name.items():
        earlier: Node | None = inputs.get(name)
        for i in holders:
            if earlier is not None:
                takes_over.add(i)
                waits[i] |= {j for j, own in enumerate(reads) if id(earlier) in own and j != i}
                if id(earlier) in makers:
                    waits[i].add(makers[id(earlier)])
            earlier = assignments[i].node

    ordered: list[int] = []

    def rank(i: int) -> tuple[bool, int, bool, int, str]:
        """A chain's rules in order, and the weight last. Within a rule numbers together, elements
        together, each as in the rule's text."""
        assignment = assignments[i]
        stage, line = _stage(graph, assignment), assignment.node.line
        last = assignments[ordered[-1]] if ordered else None
        goes_on = last is not None and _stage(graph, last) == stage and last.node.per_element
        turns = assignment.node.per_element is not goes_on
        return assignment.name == "w", stage, turns, line, assignment.name

    while len(ordered) < len(assignments):
        done = set(ordered)
        ready = [i for i in range(len(assignments)) if i not in done and waits[i] <= done]
        if not ready:
            return [], next(
                assignments[i]
                for i in range(len(assignments))
                if i not in done and i in takes_over and not assignments[i].copies
            )
        ordered.append(min(ready, key=rank))
    return [assignments[i] for i in ordered], None


def _stage(graph: Graph, assignment: _Assignment) -> int:
    """Which rule of a chain a line is of: a copy belongs to the state that gets it."""
    if assignment.copies:
        before = {name: node for name, node, _ in (*graph.states, *graph.numbers)}
        return before.get(assignment.name, graph.new_weight).stage
    return assignment.node.stage


def _reads(assignment: _Assignment, names: dict[int, str]) -> set[int]:
    """The named values that a line mentions."""
    if assignment.copies:
        return {id(assignment.node)}
    found: set[int] = set()
    pending = list(assignment.node.arguments)
    while pending:
        node = pending.pop()
        if id(node) in names:
            found.add(id(node))
        else:
            pending.extend(node.arguments)
    return found
