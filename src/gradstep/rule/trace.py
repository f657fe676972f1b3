"""Trace a rule: run its function once on symbols and keep what it does as a graph."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from types import FrameType
from typing import Any, NoReturn

from torch import Tensor

from gradstep.rule.definition import Rule
from gradstep.rule.graph import DIMENSIONS, UNIT, Graph, Node, in_order, joined
from gradstep.rule.hyperparameter import is_number
from gradstep.rule.operations import OPERATIONS
from gradstep.rule.state import State
from gradstep.rule.symbol import RuleError, Symbol, calling_frame, refuse
from gradstep.rule.value import NewWeight


class Trace:
    """Makes the nodes of one trace, equal ones once, and keeps the questions that were asked.

    Given the trace before, it refuses the first node that is another one than there.
    """

    def __init__(self, values: Mapping[str, Any], before: Trace | None = None) -> None:
        self.values = values
        self.made: list[tuple[Any, ...]] = []
        self._before = before
        self._places: dict[int, int] = {}
        self.questions: dict[str, bool] = {}
        self.stage = 0
        #: What rows are, once anything was reduced along a dimension: -1 or ``"unit"``.
        self.rows: int | str | None = None
        self.absent: dict[str, str] = {}  # states that the weight has not, and why
        self._known: dict[tuple[Any, ...], Symbol] = {}

    def close(self) -> None:
        """Let go of the nodes, which know this object: together they would be a cycle."""
        self._known.clear()
        self._places.clear()

    def input(self, name: str, extent: str = "number") -> Symbol:
        """The node of an input, by name."""
        return self._make("input", (), extent, False, name)

    def constant(self, value: float) -> Symbol:
        """The node of a number in the rule's text."""
        return self._make("constant", (), "number", False, float(value))

    def fact(self, name: str) -> Symbol:
        """The node of a number that a tensor's shape or dtype gives."""
        return self.input(name)

    def reduce(self, operation: str, x: Any, dim: int | str | None) -> Any:
        """The node of a reduction: along one of the last two dimensions, of units, or of all."""
        node = self._node(x)
        if node.extent in ("number", "tensor"):
            refuse(f"takes the {operation} of one number.", "It takes a tensor.")
        self._refuse_own([node])
        if node.boolean:
            refuse(
                f"takes the {operation} of the outcome of a comparison.",
                "Write where(condition, 1, 0).",
            )
        if dim not in (None, -1, -2, UNIT):
            refuse(
                f"reduces along dimension {dim}.",
                'It can be -1, -2, "unit", or left out for all.',
            )
        if dim == UNIT and node.extent != "element":
            refuse("reduces units that are gone already.", "Leave the dimension out.")
        if dim is not None and self.rows not in (None, UNIT if dim == UNIT else -1):
            refuse(
                "reduces units, and along single dimensions.",
                "Take one of both: a kernel sees a tensor as units or as matrices.",
            )
        if dim is not None:
            self.rows = UNIT if dim == UNIT else -1
        gone = DIMENSIONS[node.extent] if dim is None else frozenset("r" if dim == -2 else "c")
        if not gone <= DIMENSIONS[node.extent]:
            refuse(
                f"reduces along dimension {dim}, which is gone already.", "Leave the dimension out."
            )
        kept = DIMENSIONS[node.extent] - gone
        extent = next(e for e, d in DIMENSIONS.items() if d == kept and (d or e == "tensor"))
        value = "u" if dim == UNIT else "".join(sorted(gone))
        return self._make(operation, (node,), extent, False, value)

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """The node of a function that is not looked into, or those of all that it returns."""
        nodes = tuple(map(self._node, arguments))
        tensors = [node for node in nodes if node.per_element or node.extent == "own"]
        if not tensors or tensors[0] is not nodes[0] or nodes[0].extent not in ("element", "own"):
            refuse(f"calls {function.name} with a {nodes[0].kind()}.", "It takes a tensor first.")
        if any(node.per_element for node in nodes[1:]):
            refuse(
                f"calls {function.name} with a second tensor of the weight's shape.",
                "It takes one at most. Let a state be shaped(lambda shape: shape), or call twice.",
            )
        if tuple(tensors) != nodes[: len(tensors)]:
            refuse(f"calls {function.name} with numbers before a tensor.", "Put the tensors first.")
        if function.returns[-1] >= len(tensors):
            refuse(
                f"calls {function.name} with {len(tensors)} tensor(s).",
                f"What it returns takes the place of argument {function.returns[-1] + 1} too.",
            )
        self._name_variables()
        call = self._make("opaque", nodes, nodes[0].extent, False, function)
        made = [
            call if nodes[place].per_element else self._make("part", (call,), "own", False, place)
            for place in function.returns
        ]
        return made[0] if len(made) == 1 else tuple(made)

    def _refuse_own(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            if node.extent == "own":
                what = f"the state {node.value}" if node.operation == "input" else "a tensor"
                refuse(
                    f"calculates with {what}, which has a shape of its own.",
                    "Only functions with @gradstep.opaque above them take it.",
                )

    def record(self, operation: str, *arguments: Any) -> Any:
        """The node of an operation on nodes and plain numbers."""
        nodes = tuple(self._node(a) for a in arguments)
        self._refuse_own(nodes)
        self._name_variables()
        if operation == "pow" and nodes[0].per_element and nodes[1].operation == "constant":
            # Whole powers as products: exact where pow() is not, and it vectorises.
            if nodes[1].value == 2.0:
                operation, nodes = "mul", (nodes[0], nodes[0])
            elif nodes[1].value == 0.5:
                operation, nodes = "sqrt", nodes[:1]
        takes_booleans = operation in ("and", "or", "not")
        for position, node in enumerate(nodes):
            wanted = takes_booleans or (operation == "where" and position == 0)
            if node.boolean and not wanted:
                refuse(
                    "calculates with the outcome of a comparison.", "Write where(condition, 1, 0)."
                )
            if wanted and node.per_element and not node.boolean:
                refuse("takes a number for a truth value.", "Write a comparison such as x != 0.")
        return self._make(
            operation,
            nodes,
            joined(n.extent for n in nodes),
            OPERATIONS[operation].boolean,
            None,
        )

    def ask(self, symbol: Symbol) -> bool:
        """Answer ``nonzero(hyperparameter)`` with the present value, and remember the question."""
        if symbol.operation != "input" or symbol.value not in self.values:
            refuse(
                "asks nonzero() of something other than a hyperparameter.",
                "Only a hyperparameter's being 0 may choose a kernel; write where(…) for the rest.",
            )
        name = str(symbol.value)
        self.questions[name] = bool(self.values[name] != 0)
        return self.questions[name]

    def _node(self, value: Any) -> Symbol:
        if isinstance(value, Symbol):
            if value.recorder is not self:
                refuse(
                    "uses a value of an earlier trace.", "A rule may not keep values between calls."
                )
            return value
        if value is None:
            self._refuse_none()
        if isinstance(value, Tensor):
            if value.numel() != 1:
                refuse(
                    "uses a tensor that is no argument of the rule.",
                    "Make it a state, or a number with .item().",
                )
            value = value.item()
        if not isinstance(value, int | float):
            refuse(
                f"calculates with a {type(value).__name__}.", "A rule has tensors and numbers only."
            )
        return self.constant(value)

    def _refuse_none(self) -> NoReturn:
        """Say which state is not there, and why."""
        frame = calling_frame()
        held = {} if frame is None else frame.f_locals
        names = [name for name in self.absent if name in held and held[name] is None]
        name = names[0] if names else "state"
        why = self.absent.get(name, "a state that does not exist with these flags")
        refuse(f"calculates with None: {why}.", f"Ask first: if {name} is not None:")

    def _make(
        self,
        operation: str,
        nodes: tuple[Node, ...],
        extent: str,
        boolean: bool,
        value: Any,
    ) -> Symbol:
        # repr() tells 0.0 from -0.0 and makes nan equal to itself.
        key = (
            operation,
            *map(id, nodes),
            extent,
            id(value) if operation == "opaque" else repr(value),
        )
        symbol = self._known.get(key)
        if symbol is None:
            frame = calling_frame()
            line = frame.f_lineno if frame is not None else 0
            symbol = Symbol(operation, nodes, extent, boolean, value, None, line, self.stage)
            symbol.recorder = self
            self._known[key] = symbol
            self._remember(symbol, nodes, key[-1])
        return symbol

    def _remember(self, symbol: Symbol, nodes: tuple[Node, ...], value: Any) -> None:
        """Keep what was made, and compare it with what was made there the time before."""
        made = (symbol.operation, *(self._places[id(n)] for n in nodes), symbol.extent, value)
        self._places[id(symbol)] = len(self.made)
        self.made.append(made)
        if self._before is None:
            return
        at = len(self.made) - 1
        before = self._before.made[at] if at < len(self._before.made) else ("nothing",)
        if made != before:
            what = f"another operation than at the last call, {symbol.operation}, not {before[0]}"
            if symbol.operation == before[0] == "constant":
                what = f"a number that was {before[-1]} at the last call and is {value}"
            refuse(
                f"uses {what}. A rule is looked at once, and a kernel would repeat that for ever.",
                "For random numbers take the input noise (a keyword argument of that name), for a "
                "count of steps the input step, and for anything else a hyperparameter.",
            )

    def _name_variables(self) -> None:
        frame = calling_frame()
        if frame is not None:
            name_nodes(frame)


def name_nodes(frame: FrameType) -> None:
    """Give each node that a variable of ``frame`` holds that variable's name, if it has none."""
    for variable, value in frame.f_locals.items():
        if isinstance(value, Symbol) and value.name is None and value.operation != "constant":
            value.name = variable


def trace(
    rule: Rule,
    values: Mapping[str, Any],
    maximize: bool = False,
    matrix: bool = True,
    scaled: bool = False,
) -> Graph:
    """The graph of a rule, with flags as they are in ``values`` and numbers left open.

    Args:
        rule: the rule.
        values: every hyperparameter's present value, by name. Flags are taken as they are;
            numbers only answer the rule's ``nonzero`` questions.
        maximize: the first stage turns the gradient's sign.
        matrix: whether the weight has two dimensions or more. Only some rules ask.
        scaled: the gradient is ``grad_scale`` times what it should be, and is divided by it first.

    Raises:
        RuleError: the function cannot be traced, or returns something else than it declares.
    """
    recorder = Trace(values)
    try:
        return _trace(rule, recorder, maximize, matrix, scaled)
    finally:
        recorder.close()


def refuse_what_changes(rule: Rule, values: Mapping[str, Any], matrix: bool = True) -> None:
    """Trace a rule twice: what draws random numbers, counts or reads a clock differs.

    Raises:
        RuleError: a number or an operation was another one the second time; quotes the line.
    """
    if all(str(f.__module__).startswith("gradstep.") for f in rule.functions()):
        return
    first = Trace(values)
    again = Trace(values, first)
    try:
        for recorder in (first, again):
            _trace(rule, recorder, False, matrix, False)
    finally:
        first.close()
        again.close()


def _trace(rule: Rule, recorder: Trace, maximize: bool, matrix: bool, scaled: bool) -> Graph:
    values = recorder.values
    gradient = recorder.input("g", "element")
    weight = recorder.input("w", "element")
    active = {n: s for n, s in rule.states.items() if s.exists(values, matrix)}
    recorder.absent = {n: _why_absent(n, s) for n, s in rule.states.items() if n not in active}
    states = {n: recorder.input(n, s.extent()) for n, s in active.items()}
    for position, (_, names) in enumerate(rule.stages):
        for name in names.values():
            if name in states:
                states[name].stage = position
    for state in rule.states.values():
        if state.when is not None:  # a state that comes or goes makes another kernel too
            recorder.questions[state.when] = bool(values[state.when] != 0)
    made = {"w", "is_matrix", "gradient", "noise", "next_w"}  # the last by Rule.run, from others
    inputs: dict[str, Any] = {n: recorder.input(n) for n in rule.inputs if n not in made}
    inputs |= {"lr": recorder.input("lr"), "w": weight, "is_matrix": matrix}
    for name, default in rule.hyperparameters.items():
        number = is_number(default)
        inputs[name] = recorder.input(name) if number else values[name]

    functions = {id(f.__code__) for f in rule.functions()}

    def on_return(frame: FrameType, event: str, argument: Any) -> None:
        # The last variables have no later operation to be found by.
        if event == "return" and id(frame.f_code) in functions:
            name_nodes(frame)

    before = sys.getprofile()
    sys.setprofile(on_return)
    try:
        given = gradient * (1 / recorder.input("grad_scale")) if scaled else gradient
        direction, new_states = rule.run(-given if maximize else given, states, inputs)
    finally:
        if before is None or callable(before):
            sys.setprofile(before)
        else:  # a profiler of C's, which is no function
            before.enable()

    apart = [n for n, s in active.items() if s.extent() in ("row", "column")]
    if recorder.rows == UNIT and apart:
        raise RuleError(
            f"rule {rule.name} reduces units, and its state {apart[0]} has one number a "
            f"{active[apart[0]].shape}. Make that a tensor state, of one number an element."
        )
    if isinstance(direction, NewWeight):
        new_weight = _tensor(rule, "new weight", direction.weight)
        direction = None
    else:
        direction = _tensor(rule, "direction", direction)
        new_weight = weight - inputs["lr"] * direction
        new_weight.name, new_weight.stage = "w", len(rule.stage_names())
    tensors = [n for n, s in active.items() if s.start != "number"]
    after = tuple(
        (n, states[n], _tensor(rule, n, new_states[n], active[n].extent())) for n in tensors
    )
    numbers = tuple(
        (n, states[n], _number(rule, n, recorder, new_states[n]))
        for n in states
        if n not in tensors
    )
    shared = tuple(n for n in states if active[n].shared)
    alike: dict[str, None] = {}
    for name, _, node in numbers:
        if name in shared:
            alike |= dict.fromkeys(_given_to(rule, name, node, shared))
    return Graph(
        rule_name=rule.name,
        gradient=gradient,
        weight=weight,
        direction=direction,
        new_weight=new_weight,
        states=after,
        numbers=numbers,
        questions=tuple(recorder.questions.items()),
        shared=shared,
        alike=tuple(alike),
        order=in_order([new_weight, *(a for _, _, a in after)]),
        stages=(*rule.stage_names(), "step") if rule.stages else (),
    )


def _why_absent(name: str, state: State) -> str:
    if state.when is not None:
        return f"the state {name}, which is kept only with {state.when}"
    if state.shape in ("row", "column"):
        return (
            f"the state {name}, one number a {state.shape}, which weights with fewer than two "
            "dimensions have not"
        )
    return (
        f"the state {name}, which only {'matrices' if state.only == 'matrix' else 'vectors'} have"
    )


def _tensor(rule: Rule, name: str, value: Any, extent: str = "element") -> Any:
    if isinstance(value, Symbol) and value.extent == extent and not value.boolean:
        return value
    if isinstance(value, Symbol) and "own" in (value.extent, extent):
        what = "a tensor of another shape" if value.extent == "own" else f"a {value.kind()}"
        wanted = "comes from an opaque function" if extent == "own" else "has the weight's shape"
        raise RuleError(f"rule {rule.name} returned {what} for its {name}, which {wanted}.")
    if isinstance(value, Symbol) and value.per_element and not value.boolean:
        raise RuleError(
            f"rule {rule.name} returned one value {_PER[value.extent]} for its {name}, which has "
            f"one {_PER[extent]}."
        )
    if isinstance(value, Symbol):
        found = "the outcome of a comparison" if value.boolean else "a number"
    else:
        found = f"{value!r}"
    raise RuleError(
        f"rule {rule.name} returned {found} for its {name}, which must be a tensor of the weight's "
        "shape. For a constant, write where(g == g, constant, constant) or 0 * g + constant."
    )


_PER = {
    "element": "for each element",
    "row": "for each row",
    "column": "for each column",
    "matrix": "for each matrix",
}


def _number(rule: Rule, name: str, recorder: Trace, value: Any) -> Any:
    if isinstance(value, Symbol) and not value.per_element and not value.boolean:
        return value
    if is_number(value):
        return recorder.constant(float(value))
    raise RuleError(
        f"rule {rule.name} returned {value!r} for its state {name}, which is one number for the "
        "whole parameter. Make it a tensor state, or return a number."
    )


def _given_to(rule: Rule, state: str, after: Node, shared: Collection[str]) -> list[str]:
    """The numbers that a shared state is made of, beside sums over all parameters."""
    found: list[str] = []
    seen: set[int] = set()
    pending = [after]
    while pending:
        node = pending.pop()
        if id(node) in seen or node.operation == "global_sum":
            continue
        seen.add(id(node))
        pending += node.arguments
        name = str(node.value)
        own = node.gathers or (node.operation == "input" and name not in shared)
        if own and not (name in ("lr", "loss") or name in rule.hyperparameters):
            what = f"a {node.operation} of one parameter" if node.gathers else name
            raise RuleError(
                f"rule {rule.name} makes its shared state {state} from {what}, which each "
                "parameter has for itself. Take it into global_sum(…), or let the state be "
                "number(…), one for each."
            )
        if own:
            found.append(name)
    return found
