"""One weight's step as it happened: the explanation, held against what was written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy
import torch

from gradstep.optimizer.optimizer import Optimizer, planner_of
from gradstep.rule.graph import Node
from gradstep.rule.latex import latex_number
from gradstep.sight.digits import Equation, equation, shortest_text
from gradstep.sight.element import Element
from gradstep.sight.explanation import Explanation, explain_element
from gradstep.sight.page import Closing, Given, Page


@dataclass(frozen=True)
class Account:
    """One weight's step.

    Attributes:
        parameter: the parameter's name.
        optimizer: the optimizer's class, or its rule.
        engine: which engine made the step.
        element: what the step started from.
        written: the weight after the step, read from the tensor.
        untouched: why the step left it as it was, if the rule never came to it; else empty.
    """

    parameter: str
    optimizer: str
    engine: str
    element: Element
    written: float
    untouched: str = ""

    @cached_property
    def explanation(self) -> Explanation:
        """The rule's formula with the numbers put in. Worked out when it is first asked for.

        Raises:
            ValueError: a dtype that no kernel has.
        """
        return explain_element(self.element)

    @property
    def weight(self) -> str:
        """Which weight: ``fc1.weight[3, 7]``."""
        place = self.element.place
        return f"{self.parameter}[{', '.join(map(str, place))}]" if place else self.parameter

    @property
    def note(self) -> str:
        """Why there is nothing to explain, after the weight's name; else empty."""
        return f"{self.weight}: {self.untouched}" if self.untouched else ""

    @property
    def title(self) -> str:
        """Which weight, and which step of what."""
        counted = "step" in self.element.rule.inputs
        step = f"step {self.element.step:.0f}" if counted else "a step"
        return f"{self.weight}: {step} of {self.optimizer}"

    @property
    def agrees(self) -> bool:
        """Whether the explanation's last number is what the step wrote, bit for bit."""
        return same_bits(self.explanation.weight, self.written, self.element.dtype)

    def page(self) -> Page | None:
        """What is to be shown; None where there is nothing to explain."""
        if self.untouched:
            return None
        element, found = self.element, self.explanation
        real = _real(element.dtype)
        given = [
            Given("weight", "w", shortest_text(real(element.weight))),
            Given("gradient", "g", shortest_text(real(element.gradient))),
        ]
        numbers = {name for name, _, _ in element.graph.numbers}
        for name, value in element.states.items():
            kind = numpy.float64 if name in numbers else real
            kind = numpy.float32 if name in element.rule.formats else kind
            given.append(Given("state", name, shortest_text(kind(value))))
        moved = _difference(element.weight, found.weight, real)
        parts = [part for part in (moved.numbers, moved.paper) if part]
        latex = [moved.latex, latex_number(moved.paper)]
        if moved.kept is not None:
            parts[-1] += f", rounded to {moved.kept}"
            latex[-1] += rf" \approx {latex_number(moved.kept)}"
        closing = Closing(
            moved=tuple(parts),
            latex_moved=tuple(latex),
            after=shortest_text(real(found.weight)),
            verdict=self._verdict(),
            agrees=self.agrees,
        )
        return Page(self.title, found.sections(), tuple(given), closing)

    def _verdict(self) -> str:
        if self.agrees:
            return "what step() wrote, bit for bit"
        real = _real(self.element.dtype)
        said = f"step() wrote {shortest_text(real(self.written))}"
        if self.engine in ("eager", "compile"):
            return f"{said}: the {self.engine} engine rounds in other places"
        return f"{said}, which is not what the rule says"


def same_bits(a: float, b: float, dtype: torch.dtype) -> bool:
    """Whether two numbers of a storage type are the same; every nan counts as the same."""
    if a != a or b != b:
        return a != a and b != b
    return bool(numpy.signbit(a) == numpy.signbit(b)) and a == b


def class_name(optimizer: Optimizer) -> str:
    """What to call an optimizer: by its class, or by its rule where that says nothing."""
    kind = type(optimizer)
    return planner_of(optimizer).rule.name if kind is Optimizer else kind.__name__


def _real(dtype: torch.dtype) -> Any:
    return numpy.float64 if dtype == torch.float64 else numpy.float32


def _difference(before: float, after: float, real: Any) -> Equation:
    """``after − before`` in numbers."""
    new, old = Node("input", (), "element"), Node("input", (), "element")
    node = Node("sub", (new, old), "element")
    with numpy.errstate(all="ignore"):
        values = {id(new): real(after), id(old): real(before)}
        values[id(node)] = values[id(new)] - values[id(old)]
    return equation(node, lambda n: n is not node, values, real=real)
