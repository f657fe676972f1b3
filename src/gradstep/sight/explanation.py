"""One weight's step, explained: the rule's formula line by line, with the numbers put in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch

from gradstep.rule.formula import Line, formula
from gradstep.rule.graph import Graph, Node
from gradstep.rule.latex import latex_name, latex_number, text
from gradstep.rule.notation import write
from gradstep.sight.arithmetic import Arithmetic, Evaluation
from gradstep.sight.digits import FEWEST, Equation, digits_text, equation
from gradstep.sight.element import Element
from gradstep.sight.ink import Ink
from gradstep.sight.language import say
from gradstep.sight.page import Row, Section, sections
from gradstep.sight.surroundings import over_what
from gradstep.sight.text import section_rows


@dataclass(frozen=True)
class ExplainedLine:
    """One line of the formula with its numbers.

    Attributes:
        name: what gets the value: a variable of the rule, a state, or ``w``.
        formula: the text right of the arrow, in symbols.
        equation: the same in numbers, and the result.
        because: for a choice, why this side of it: "this is not the first step"; for a sum, over
            what: "sum of the 26 elements of row 3".
        per_element: False for a number that is worked out once for the whole tensor.
        value: the result as the machine has it.
        stored: the result as it is stored, where the storage type is narrower and changes it.
        stage: of a chain, the name of the rule that the line is of; else empty.
        latex: ``formula`` as LaTeX.
        format: what the state is stored as, if that is not what the weight is; else empty.
    """

    name: str
    formula: str
    equation: Equation
    because: str
    per_element: bool
    value: float
    stored: float | None = None
    stage: str = ""
    latex: str = ""
    format: str = ""

    def row(self, dtype: torch.dtype) -> Row:
        """The line as it is to be printed.

        Args:
            dtype: of the weight.
        """
        found = self.equation
        parts = [found.numbers, found.paper]
        parts = [p for i, p in enumerate(parts) if p and p not in parts[:i]]
        latex = [found.latex] if found.numbers and len(parts) > 1 else []
        latex.append(_latex_of(found.paper))
        if found.kept is not None:
            parts[-1] += say("rounded to", number=found.kept)
            latex[-1] += rf" \approx {latex_number(found.kept)}"
        if self.stored is not None:
            kept = _unlike(self.stored, self.value)
            kind = self.format or str(dtype).removeprefix("torch.")
            parts[-1] += say("stored as", format=kind, number=kept)
            latex[-1] += text(f", stored as {kind}: ") + latex_number(kept)
        return Row(
            name=self.name,
            formula=self.formula,
            latex_name=latex_name(self.name),
            latex_formula=self.latex,
            parts=tuple(parts),
            latex_parts=tuple(latex),
            because=self.because,
        )


@dataclass(frozen=True)
class Explanation:
    """What the next step does to one weight.

    Attributes:
        element: what the step starts from.
        lines: the rule's formula, in the order in which it is worked out.
        weight: the weight that the step writes, bit for bit what the fused engine writes.
        states: name -> the state that it writes; those of one number a parameter in float64.
    """

    element: Element
    lines: tuple[ExplainedLine, ...]
    weight: float
    states: Mapping[str, float]

    def text(self, ink: Ink | None = None, indent: str = "") -> str:
        """The lines, as text of at most about 100 columns."""
        rows = (row for each in self.sections() for row in section_rows(each, ink or Ink()))
        return "\n".join(indent + row for row in rows)

    def sections(self) -> tuple[Section, ...]:
        """The lines as they are to be printed: those of a chain under its rules' names."""
        return sections((line.stage, line.row(self.element.dtype)) for line in self.lines)

    def __str__(self) -> str:
        return self.text()


def explain_element(element: Element) -> Explanation:
    """Explain the next step of one weight.

    Raises:
        ValueError: a dtype that no kernel has.
    """
    graph = element.graph
    evaluation = Arithmetic(graph, element.dtype, element.formats(), element.keeps).evaluate(
        element.weight, element.gradient, element.states, element.numbers(), element.outcomes
    )
    evaluation = replace(evaluation, states={**evaluation.states, **element.became})
    whole = formula(graph)
    lines = tuple(
        _explained(line, graph, evaluation, whole.names, element)
        for line in whole.lines
        if line.node.extent != "own"  # a tensor of another shape has no entry for one weight
    )
    states = {**evaluation.states, **evaluation.numbers}
    return Explanation(element, lines, evaluation.weight, states)


def _explained(
    line: Line, graph: Graph, evaluation: Evaluation, names: Mapping[int, str], element: Element
) -> ExplainedLine:
    values = dict(evaluation.values)
    node = line.node
    value = values[id(node)]
    real: Any = numpy.float64
    if line.per_element and element.dtype != torch.float64:
        real = numpy.float32
    reasons: list[str] = []
    chosen = node
    if not line.copies:
        chosen = _with_choices_made(node, values, names, reasons)
        values[id(chosen)] = value
        reasons += _over_what(chosen, names, element)
    if node.boolean:
        shown = Equation("", "true" if value else "false")
    elif line.copies or (chosen is not node and id(chosen) in names) or chosen.gathers:
        shown = Equation("", digits_text(value, FEWEST))
    else:
        old = _before(line.name, graph, values)
        shown = equation(
            chosen, lambda n: id(n) in names or n.gathers, values, unlike=old, real=real
        )
    kept = None
    if line.name == "w" and node is graph.new_weight:
        kept = evaluation.weight
    elif any(line.name == name and node is after for name, _, after in graph.states):
        kept = evaluation.states[line.name]
    number = float(value)
    changed = kept is not None and kept != number and not (kept != kept and number != number)
    return ExplainedLine(
        name=line.name,
        formula=line.text,
        equation=shown,
        because=say("between reasons").join(reasons),
        per_element=line.per_element,
        value=number,
        stored=kept if changed else None,
        stage=line.stage,
        latex=line.latex,
        format=_format(line.name, element),
    )


def _format(name: str, element: Element) -> str:
    """What a line's number is stored as, where that is not the weight's dtype."""
    if name != "w":
        return element.rule.formats.get(name, "")
    return "kahan" if element.rule.low_precision == "kahan" and element.keeps else ""


def _before(name: str, graph: Graph, values: Mapping[int, Any]) -> Any:
    """What the weight or state of that name was before the step, if the rule read it."""
    if name == "w":
        return values.get(id(graph.weight))
    states = (*graph.states, *graph.numbers)
    return next((values.get(id(old)) for n, old, _ in states if n == name), None)


def _with_choices_made(
    root: Node, values: Mapping[int, Any], names: Mapping[int, str], reasons: list[str]
) -> Node:
    """The expression without ``where``, and with ``lerp`` as what it means.

    Named nodes below the root stay as they are: each has a line of its own.
    """
    known: dict[int, Node] = {}

    def visit(current: Node) -> Node:
        if id(current) in known:
            return known[id(current)]
        result = current
        own_line = current is not root and id(current) in names
        if current.arguments and not own_line and not current.gathers:
            if current.operation == "where":
                condition, a, b = current.arguments
                holds = bool(values[id(condition)])
                reasons.append(_reason(condition, holds, names))
                result = visit(a if holds else b)
            else:
                arguments = tuple(map(visit, current.arguments))
                if current.operation == "lerp":
                    start, end, weight = arguments
                    way = Node("sub", (end, start), current.extent)
                    part = Node("mul", (weight, way), current.extent)
                    result = Node("add", (start, part), current.extent)
                elif any(a is not b for a, b in zip(arguments, current.arguments, strict=True)):
                    result = Node(current.operation, arguments, current.extent, value=current.value)
        known[id(current)] = result
        return result

    return visit(root)


def _over_what(root: Node, names: Mapping[int, str], element: Element) -> list[str]:
    """What each sum of a line is taken over, and where an opaque function was looked at; once."""
    found: list[str] = []
    pending = [root]
    while pending:
        node = pending.pop()
        if node is not root and id(node) in names:
            continue
        if node.gathers:
            found.append(
                over_what(
                    node,
                    element.shape,
                    element.place,
                    element.everything,
                    element.graph.rows_are_units,
                )
            )
        else:
            pending += reversed(node.arguments)
    return list(dict.fromkeys(found))


def _reason(condition: Node, holds: bool, names: Mapping[int, str]) -> str:
    if condition.operation == "input" and condition.value == "first":
        return say("first step" if holds else "not first step")
    said = write(condition, lambda n: None if n is condition else names.get(id(n)))
    return said if holds else say("does not hold", condition=said)


def _latex_of(result: str) -> str:
    return text(result) if result in ("true", "false") else latex_number(result)


def _unlike(stored: float, value: float) -> str:
    """The stored number with so many digits that it does not look like the other."""
    texts = [(digits_text(stored, d), digits_text(value, d)) for d in range(FEWEST, 18)]
    return next((a for a, b in texts if a != b), texts[-1][0])
