"""The arithmetic of a kernel for one element, to the last bit, without the kernel.

Every operation is rounded once, in float32 or float64, as :mod:`gradstep.backends.llvm.element` has
it. A fused multiply-add is worked out exactly, with fractions, before it is rounded. What a rule
takes from other elements, by reductions and opaque functions, is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy
import torch

from gradstep.program.format import Format
from gradstep.program.scalars import scalar_function
from gradstep.rule.contraction import contracted
from gradstep.rule.graph import Graph, Node, in_order
from gradstep.rule.operations import expanded

#: What a node of the graph may be worth: a rounded number, a truth value, or, for a product that a
#: fused multiply-add takes in before it is rounded, an exact fraction.
Value = Any


@dataclass(frozen=True)
class Evaluation:
    """One element's step.

    Attributes:
        values: id of each node of the traced graph -> its value.
        weight: the weight that the step writes, rounded to its storage type.
        states: name -> the state that the step writes, likewise.
        numbers: name -> the new value of a state that is one number a parameter, in float64.
    """

    values: Mapping[int, Value]
    weight: float
    states: Mapping[str, float]
    numbers: Mapping[str, float]


class Arithmetic:
    """What the fused kernel of a graph does to one element.

    Args:
        graph: from :func:`gradstep.rule.trace.trace`, not contracted.
        dtype: how weight, gradient and states are stored: float32, float64, bfloat16 or float16.
        formats: of the states that are stored otherwise, by name.
        keeps: what a new weight comes back as, where it is not rounded to ``dtype``.

    Raises:
        ValueError: another dtype.
    """

    def __init__(
        self,
        graph: Graph,
        dtype: torch.dtype,
        formats: Mapping[str, Format] | None = None,
        keeps: Callable[[float], float] | None = None,
    ) -> None:
        if dtype not in _WORKING:
            known = ", ".join(str(d).removeprefix("torch.") for d in _WORKING)
            raise ValueError(f"cannot work out a step in {dtype}; choose one of {known}")
        self.graph = graph
        self.dtype = dtype
        self._formats = formats or {}
        self._keeps = keeps or (lambda value: stored(value, dtype))
        self._operations = _Operations(_WORKING[dtype])
        self._contracted, self._twins = _contracted_with_twins(graph)
        self._own = graph.nodes
        self._work = self._contracted.nodes
        self._outcomes: dict[int, int] = {}
        for position, node in enumerate(graph.gathered):
            self._outcomes[id(node)] = self._outcomes[id(self._twins[id(node)])] = position
        nodes = {id(n): n for n in (*self._work, *self._own) if n.extent in ("number", "tensor")}
        self._number_nodes = list(nodes.values())
        given = self._given_numbers()
        self._number_names = [str(node.value) for node in given if node.operation == "input"]
        self._number_names = list(dict.fromkeys(self._number_names))
        self._numbers = scalar_function(given, self._number_names)

    def _given_numbers(self) -> list[Node]:
        """The number nodes, with the outcomes of reductions as inputs."""
        known: dict[int, Node] = {}
        for node in self._number_nodes:
            if id(node) in self._outcomes:
                known[id(node)] = Node("input", value=f"outcome {self._outcomes[id(node)]}")
            elif node.arguments:
                arguments = tuple(known[id(a)] for a in node.arguments)
                known[id(node)] = replace_node(node, arguments, node.name)
            else:
                known[id(node)] = node
        return list(known.values())

    def evaluate(
        self,
        weight: float,
        gradient: float,
        states: Mapping[str, float],
        numbers: Mapping[str, float],
        outcomes: Sequence[float] = (),
    ) -> Evaluation:
        """Work out one element's step.

        Args:
            weight, gradient: the stored numbers before the step.
            states: name -> stored number, for the graph's states of either kind.
            numbers: ``step``, ``first``, ``lr``, every numeric hyperparameter, and the facts of
                the parameter that the rule asks for, by name.
            outcomes: what the reductions and opaque functions gave, in the order of
                :meth:`gradstep.rule.graph.Graph.gathered`.
        """
        settled, operations = self._contracted, self._operations
        given = {**numbers, **{name: states[name] for name, _, _ in self.graph.numbers}}
        given.update((f"outcome {i}", outcome) for i, outcome in enumerate(outcomes))
        found = self._numbers(*(float(given[name]) for name in self._number_names))
        known = {
            id(node): bool(value) if node.boolean else float(value)
            for node, value in zip(self._number_nodes, found, strict=True)
        }
        inputs = {id(settled.weight): weight, id(settled.gradient): gradient}
        held = [state for state in settled.states if state[1].extent != "own"]
        inputs.update({id(before): states[name] for name, before, _ in held})
        with numpy.errstate(all="ignore"):
            rounded: dict[int, Any] = {
                key: value if isinstance(value, bool) else operations.real(value)
                for key, value in known.items()
            }
            for node in self._work:
                if not node.per_element:
                    continue
                if node.operation == "input":
                    rounded[id(node)] = operations.real(inputs[id(node)])
                elif id(node) in self._outcomes:
                    rounded[id(node)] = operations.real(outcomes[self._outcomes[id(node)]])
                else:
                    rounded[id(node)] = operations.apply(
                        node, [rounded[id(a)] for a in node.arguments]
                    )
            values = self._values({**rounded, **known}, rounded)
        return Evaluation(
            values=values,
            weight=self._keeps(float(rounded[id(settled.new_weight)])),
            states={n: self._state(n, rounded[id(after)]) for n, _, after in held},
            numbers={name: known[id(node)] for name, _, node in self.graph.numbers},
        )

    def _state(self, name: str, value: Any) -> float:
        format = self._formats.get(name)
        return stored(value, self.dtype) if format is None else format.rounded(value, self.dtype)

    def _values(
        self, contracted_values: Mapping[int, Value], rounded: Mapping[int, Value]
    ) -> dict[int, Value]:
        """The values by the nodes of the graph that is not contracted."""
        values: dict[int, Value] = {}
        for node in self._own:
            if node.extent == "own":  # of which an element has no one number
                continue
            twin = self._twins.get(id(node), node)
            if id(twin) in contracted_values:
                values[id(node)] = contracted_values[id(twin)]
                continue
            # A fused multiply-add takes this product in before it is rounded. Its factors are
            # rounded.
            left, right = (float(rounded[id(self._twins[id(a)])]) for a in node.arguments)
            finite = math.isfinite(left) and math.isfinite(right)
            values[id(node)] = Fraction(left) * Fraction(right) if finite else left * right
        return values


def stored(value: Any, dtype: torch.dtype) -> float:
    """A number of the kernel's precision, rounded to a storage type."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return float(torch.tensor(float(value), dtype=wide, device="cpu").to(dtype).item())


_WORKING: dict[torch.dtype, Any] = {
    torch.float32: numpy.float32,
    torch.float64: numpy.float64,
    torch.bfloat16: numpy.float32,
    torch.float16: numpy.float32,
}


def _contracted_with_twins(graph: Graph) -> tuple[Graph, dict[int, Node]]:
    """The contracted graph, and for each traced node its settled one.

    A product that a fused multiply-add takes in has none. Settled nodes keep the names of theirs:
    so each gets a name of its own first.
    """
    copies: dict[int, Node] = {}
    for number, node in enumerate(graph.nodes):
        arguments = tuple(copies[id(a)] for a in node.arguments)
        copies[id(node)] = (
            node
            if node.operation in ("input", "constant")
            else replace_node(node, arguments, str(number))
        )

    def copy(node: Node) -> Node:
        return copies.get(id(node), node)

    tagged = replace(
        graph,
        direction=None if graph.direction is None else copy(graph.direction),
        new_weight=copy(graph.new_weight),
        states=tuple((n, copy(before), copy(after)) for n, before, after in graph.states),
        numbers=tuple((n, before, copy(after)) for n, before, after in graph.numbers),
        order=in_order([copy(node) for node in graph.outputs()]),
    )
    settled = contracted(tagged)
    by_name = {node.name: node for node in settled.nodes if node.arguments and node.name}
    twins = {}
    for node in graph.nodes:
        twin = node if copy(node) is node else by_name.get(str(copy(node).name))
        if twin is not None:
            twins[id(node)] = twin
    return settled, twins


def replace_node(node: Node, arguments: tuple[Node, ...], name: str | None) -> Node:
    """The same operation on other nodes, under another name."""
    return Node(node.operation, arguments, node.extent, node.boolean, node.value, name, node.line)


class _Operations:
    """One method an operation, on NumPy scalars of one type."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.is_double = real is numpy.float64

    def apply(self, node: Node, arguments: list[Any]) -> Any:
        """The node's operation on its arguments' values."""
        if node.operation == "where" and not isinstance(arguments[0], bool | numpy.bool_):
            arguments = [arguments[0] != 0, *arguments[1:]]
        return self.operate(node.operation, *arguments)

    def operate(self, name: str, *values: Any) -> Any:
        """An operation on values."""
        value = expanded(name, self, *values)
        return getattr(self, f"_{name}")(*values) if value is None else value

    def constant(self, value: float) -> Any:
        """A number of the text, rounded."""
        return self.real(value)

    def _stored(self, a: Any) -> Any:
        return a  # a tensor is rounded where it is written, not before

    def _add(self, a: Any, b: Any) -> Any:
        return a + b

    def _sub(self, a: Any, b: Any) -> Any:
        return a - b

    def _mul(self, a: Any, b: Any) -> Any:
        return a * b

    def _div(self, a: Any, b: Any) -> Any:
        return a / b

    def _neg(self, a: Any) -> Any:
        return -a

    def _fma(self, a: Any, b: Any, c: Any) -> Any:
        x, y, z = float(a), float(b), float(c)
        if not (math.isfinite(x) and math.isfinite(y) and math.isfinite(z)):
            return self.real(numpy.float64(x) * y + z)
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        if exact == 0:
            return self.real(numpy.float64(x) * y + z)  # exact too, and has the sign of the zero
        return self.real(nearest(exact, self.real))

    def _sqrt(self, a: Any) -> Any:
        return numpy.sqrt(a)

    def _abs(self, a: Any) -> Any:
        return numpy.abs(a)

    def _exponent(self, a: Any) -> Any:
        return self.real(math.frexp(a)[1] - 1)

    def _significand(self, a: Any) -> Any:
        return self.real(2 * math.frexp(a)[0])

    def _power_of_two(self, n: Any) -> Any:
        # Of nan, which the result is multiplied with, the kernel's power is some number too.
        return self.real(1 if numpy.isnan(n) else math.ldexp(1.0, int(n)))

    def _sign(self, a: Any) -> Any:
        return self.real(1 if a > 0 else -1 if a < 0 else 0)

    def _maximum(self, a: Any, b: Any) -> Any:
        return a if numpy.isnan(a) or a > b else b

    def _minimum(self, a: Any, b: Any) -> Any:
        return a if numpy.isnan(a) or a < b else b

    def _lerp(self, start: Any, end: Any, weight: Any) -> Any:
        near = abs(weight) < self.real(0.5)
        shifted = weight if near else weight - self.real(1)
        return self._fma(shifted, end - start, start if near else end)

    def _where(self, condition: Any, a: Any, b: Any) -> Any:
        return a if condition else b

    def _lt(self, a: Any, b: Any) -> bool:
        return bool(a < b)

    def _le(self, a: Any, b: Any) -> bool:
        return bool(a <= b)

    def _gt(self, a: Any, b: Any) -> bool:
        return bool(a > b)

    def _ge(self, a: Any, b: Any) -> bool:
        return bool(a >= b)

    def _eq(self, a: Any, b: Any) -> bool:
        return bool(a == b)

    def _ne(self, a: Any, b: Any) -> bool:
        return bool(a != b)

    def _and(self, a: Any, b: Any) -> bool:
        return bool(a) and bool(b)

    def _or(self, a: Any, b: Any) -> bool:
        return bool(a) or bool(b)

    def _not(self, a: Any) -> bool:
        return not a


def nearest(exact: Fraction, real: Any) -> float:
    """The float32 or float64 (by its NumPy type) next to a fraction; of two, the even one."""
    if exact == 0:
        return 0.0
    info = numpy.finfo(real)
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if Fraction(2) ** exponent > size:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, int(info.minexp)) - int(info.nmant))
    rounded = round(size / unit) * unit  # round() of a fraction goes to the even one of two
    value = math.inf if rounded >= Fraction(2) ** int(info.maxexp) else float(rounded)
    return -value if exact < 0 else value
