"""Programs: what a rule with its flags set comes to, for every backend."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradstep.program.passes import Pass, passes
from gradstep.rule.contraction import contracted
from gradstep.rule.definition import Rule
from gradstep.rule.graph import Graph, Node


@dataclass(eq=False)
class Program:
    """Passes over memory, calls of opaque functions between them, and scalars worked out before.

    Attributes:
        rule: the rule as written.
        graph: as traced: what the rule does with one weight.
        names: of the numbers that a step gives: lr and the numeric hyperparameters, in order.
        maximize: whether the graph turns the gradient's sign first.
        differentiable: whether autograd is to record the step.
        kept: what is made of it once, and what backends keep with it, by keys of their own.
        tried: the kinds of weights with which one optimizer has tried it out.
    """

    rule: Rule
    graph: Graph
    names: Sequence[str]
    maximize: bool = False
    differentiable: bool = False
    kept: dict[Any, Any] = field(default_factory=dict)
    tried: set[Hashable] = field(default_factory=set)

    def for_another(self) -> Program:
        """The same for another optimizer, which has tried out nothing yet."""
        other = copy.copy(self)
        other.tried = set()
        return other

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    @property
    def contracted(self) -> Graph:
        """The graph with its sums of products as one operation, as every backend rounds them."""
        made: Graph = self._once("contracted", lambda: contracted(self.graph))
        return made

    @property
    def passes(self) -> list[Pass]:
        """The passes, in order, each with the opaque functions that are called after it."""
        made: list[Pass] = self._once("passes", lambda: passes(self.contracted))
        return made

    @property
    def inputs(self) -> list[Node]:
        """The tensors that it reads: weight, gradient, states."""
        graph = self.contracted
        return [graph.weight, graph.gradient, *(before for _, before, _ in graph.states)]

    @property
    def totals(self) -> list[Node]:
        """The reductions of a whole tensor to one number, in the order in which they are made."""
        return [n for each in self.passes for n in each.sums if n.extent == "tensor"]

    @property
    def is_flat(self) -> bool:
        """Whether it is one pass in which each element is worked out by itself."""
        return self.graph.is_elementwise
