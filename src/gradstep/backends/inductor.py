"""Hand a rule's graph to torch.compile: one compiled function over all tensors of a group.

The numbers are worked out on the host and go in as 0-dim tensors, so that changing them compiles
nothing anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradstep.backends.base import Backend, Binding, Run, Values
from gradstep.backends.unusual import naming
from gradstep.backends.update import Update, decoded, encoded, working_dtype
from gradstep.program.block_formats import Packed
from gradstep.program.format import Format
from gradstep.program.program import Program
from gradstep.program.scalars import TotalsAsInputs, row_scalars, scalar_function
from gradstep.rule.graph import FACTS, REDUCTIONS, Graph, Node, along, in_order
from gradstep.rule.operations import OPERATIONS
from gradstep.rule.reductions import facts_of, reduce_tensor


def graph_function(
    graph: Graph, numbers: Sequence[Any], totals: Sequence[Node] = ()
) -> Callable[..., tuple[Tensor, ...]]:
    """A function of weight, gradient, states and numbers, in torch's operations.

    Returns:
        a function that returns the new weight, the new states, and the totals: reductions that
        the states of one number need.
    """
    order = in_order([*graph.order, *totals])
    inputs = [graph.weight, graph.gradient, *(before for _, before, _ in graph.states), *numbers]
    places = {id(node): i for i, node in enumerate(inputs)}
    work: list[tuple[int, Any, tuple[int, ...]]] = []
    constants: dict[int, float] = {}
    for node in order:
        if node.operation == "constant":
            places[id(node)] = len(inputs) + len(places)
            constants[places[id(node)]] = node.constant()
    for node in order:
        if node.extent != "number" and id(node) not in places:
            places[id(node)] = len(inputs) + len(places)
            arguments = tuple(places[id(a)] for a in node.arguments)
            work.append((places[id(node)], _operation(node), arguments))
    outputs = [places[id(node)] for node in (*graph.outputs(), *totals)]
    where = OPERATIONS["where"].tensor
    count = len(inputs)

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        known: dict[int, Any] = dict(enumerate(values[:count]))
        known.update(constants)
        for place, operation, arguments in work:
            given = [known[a] for a in arguments]
            if operation is where and given[0].dtype is not torch.bool:
                given[0] = given[0] != 0
            known[place] = operation(*given)
        return tuple(known[o] for o in outputs)

    return function


def _hands_on(graph: Graph) -> bool:
    """Whether a state becomes what another was before the step."""
    return any(
        after is before and name != other
        for name, _, after in graph.states
        for other, before, _ in graph.states
    )


def _operation(node: Node) -> Callable[..., Tensor]:
    if node.operation not in REDUCTIONS:
        return OPERATIONS[node.operation].tensor
    dims = along(node)
    return lambda x: reduce_tensor(node.operation, x, dims)


class Inductor(Backend):
    """torch.compile, over all weights of a group.

    Args:
        elsewhere: only plain tensors on other devices than the CPU.
    """

    name = "compile"
    at_once = False

    def __init__(self, elsewhere: bool = False) -> None:
        self._elsewhere = elsewhere

    def refusal(self, update: Update, program: Program) -> str | None:
        weight, gradient = update.weight, update.gradient
        if self._elsewhere and weight.device.type in ("cpu", "meta"):
            return f"it is on {weight.device}"
        if self._elsewhere and type(weight) not in (Tensor, torch.nn.Parameter):
            return f"it is a {type(weight).__name__}"
        if update.weight_format is not None:
            return f"it is kept as {update.weight_format.name}"
        for state, format in update.formats.items():
            if isinstance(format, Packed):  # torch.compile takes minutes to follow pairs of codes
                return f"its {state} is stored as {format.name}"
        if program.graph.calls_opaque:
            return "its rule calls a function that is not traced"
        if program.graph.sums_over_all:
            return "its rule sums over all parameters"
        if _hands_on(program.graph):  # torch.compile reads it when it was written over already
            return "its rule hands one state on to another as it was"
        if gradient.dtype != weight.dtype:
            return f"its gradient is {gradient.dtype}"
        return f"its gradient is {gradient.layout}" if gradient.is_sparse else None

    def bind(self, program: Program, updates: Sequence[Update]) -> Binding:
        # Lists of other lengths or shapes are other functions to torch.compile, which makes no more
        # than eight of one.
        known = program.kept.setdefault("compiled", {})
        about = tuple(
            [
                (u.weight.shape, u.weight.stride(), u.weight.dtype, *u.formats.items())
                for u in updates
            ]
        )
        if about not in known:
            if len(known) > 16:  # masks that will hardly come back
                known.clear()
            known[about] = Compiled(program, [u.formats for u in updates])
        return _Bound(known[about], updates)


class _Bound(Binding):
    """Weights, which it holds: it is not kept."""

    def __init__(self, compiled: Compiled, updates: Sequence[Update]) -> None:
        self._compiled = compiled
        self._updates = updates

    def prepare(self, values: Values) -> Run:
        return self._compiled.prepare(self._updates, values.numbers)


class Compiled:
    """A function of torch.compile that updates a list of weights."""

    def __init__(self, program: Program, formats: Sequence[Mapping[str, Format]]) -> None:
        graph = program.graph
        after = [node for _, _, node in graph.numbers]
        totals = [n for n in in_order(after) if n.operation in REDUCTIONS and n.extent == "tensor"]
        nodes = row_scalars(graph, totals)
        own = [before for _, before, _ in graph.numbers]
        names = ("step", "first", *(str(n.value) for n in own), *FACTS, *program.names)
        self._numbers = scalar_function(nodes, names)
        total_names = [f"total {i}" for i in range(len(totals))]
        self._after = scalar_function(
            list(map(TotalsAsInputs(totals), after)), (*names, *total_names)
        )
        self._rule_name = graph.rule_name
        self._own_names = [name for name, _, _ in graph.numbers]
        function = graph_function(graph, nodes, totals)
        own_states = [name for name, _, _ in graph.states]
        #: The tensors of each weight's states, in the order in which a step takes them.
        self._tensors = [
            [t for n in own_states for t in (own[n].names(n) if n in own else (n,))]
            for own in formats
        ]
        kinds = list(zip(formats, self._tensors, strict=True))

        def update_all(
            weights: list[Tensor],
            gradients: list[Tensor],
            states: list[list[Tensor]],
            rows: list[list[Tensor]],
        ) -> list[list[Tensor]]:
            found = []
            for weight, gradient, own, row, (stored_as, names) in zip(
                weights, gradients, states, rows, kinds, strict=True
            ):
                dtype = working_dtype(weight)
                stored = dict(zip(names, own, strict=True))
                given = decoded(stored, stored_as, dtype, weight.shape)
                new_weight, *rest = function(
                    weight.to(dtype), gradient.to(dtype), *[given[n] for n in own_states], *row
                )
                new = encoded(dict(zip(own_states, rest, strict=False)), stored, stored_as)
                for name, old in stored.items():
                    old.copy_(new[name])
                weight.copy_(new_weight)
                found.append(rest[len(own_states) :])
            return found

        self._update_all = torch.compile(update_all)

    def prepare(self, updates: Sequence[Update], values: Sequence[float]) -> Run:
        """Work out the numbers, and return what makes the step."""
        made: dict[tuple[Any, ...], list[Tensor]] = {}
        rows, keys = [], []
        for u in updates:
            step = float(u.numbers["step"]) + 1.0 if "step" in u.numbers else 1.0
            own = (float(u.numbers[n]) for n in self._own_names)
            key = (step, float(u.first), *own, *facts_of(u.weight).values())
            if key not in made:
                numbers = self._numbers(*key, *values)
                made[key] = [torch.tensor(n, dtype=torch.float64, device="cpu") for n in numbers]
            rows.append(made[key])
            keys.append(key)

        def make_step() -> None:
            with torch.no_grad():
                with naming(self._rule_name, *updates, by="torch.compile"):
                    totals = self._update_all(
                        [_real(u.weight) for u in updates],
                        [_real(u.gradient) for u in updates],
                        [
                            [_real(u.states[n]) for n in names]
                            for u, names in zip(updates, self._tensors, strict=True)
                        ],
                        rows,
                    )
                for u, key, own in zip(updates, keys, totals, strict=True):
                    after = self._after(*key, *values, *map(float, own))
                    new = dict(zip(self._own_names, after, strict=True))
                    for name, number in u.numbers.items():
                        number.fill_(key[0] if name == "step" else new[name])

        return make_step


def _real(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj())
    # A 0-dim float32 tensor would become float64 beside a number, which is 0-dim float64.
    return tensor.view(1) if tensor.dim() == 0 else tensor
