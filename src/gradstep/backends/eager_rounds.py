"""One weight's step of a rule that waits for other weights or processes, by torch's own operations.

The rule's function cannot stop in the middle to wait for a sum over all parameters, or for the
owner of a matrix, so its graph is worked out instead, operation by operation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from gradstep.backends import global_sums, sharing
from gradstep.backends.eligibility import alike_in_parts
from gradstep.backends.owners import Replica, goes_to_owner, holder_of, mesh_of
from gradstep.backends.unusual import naming
from gradstep.backends.update import (
    Update,
    decoded,
    encoded,
    kept_weight,
    number_eps,
    unaliased,
    wide_weight,
    working_dtype,
)
from gradstep.program.passes import Pass
from gradstep.program.shards import is_sharded, like_shards_of, local
from gradstep.rule.graph import REDUCTIONS, Graph, Node, along
from gradstep.rule.operations import OPERATIONS
from gradstep.rule.reductions import facts_of, reduce_tensor


class EagerRounds:
    """What makes the step of one weight; see :mod:`gradstep.backends.global_sums`.

    Args:
        settled: the rule's graph, contracted.
        passes: of that graph. Both are made once for all weights and steps: to make them anew took
            ten times as long as the step of a small weight.
        update: the weight, its gradient and states.
        numbers: lr and the numeric hyperparameters, by name.
        shared_out: whether functions of a plain weight are called by one process for all.
    """

    def __init__(
        self,
        settled: Graph,
        passes: Sequence[Pass],
        update: Update,
        numbers: Mapping[str, Any],
        shared_out: bool = True,
    ) -> None:
        mesh = mesh_of(update.weight) if shared_out or is_sharded(update.weight) else None
        #: What the weight is to the other processes, where it is plain and functions are shared.
        self._replica: Replica | None = None
        if mesh is not None and not is_sharded(update.weight):
            self._replica = Replica(mesh, tuple(update.weight.shape), update.weight.device)
        self._graph = settled
        self._update = update
        self._after = settled.numbers
        # In the order in which the passes of the other engine come to them.
        self._awaited: list[Node] = []
        for each in passes:
            self._awaited += [n for n in each.sums if n.operation == "global_sum"]
            self._awaited += [n for n in each.calls if mesh is not None and self._travels(n)]
        #: Whether a DTensor's part is worked with alone.
        self._in_parts = (
            is_sharded(update.weight)
            and alike_in_parts([update.weight, update.gradient, *self._split_states()])
            and not (update.formats or update.weight_format)
            and all(n.operation in ("opaque", "global_sum") for n in settled.gathered)
        )
        step = float(update.numbers["step"]) + 1.0 if "step" in update.numbers else 1.0
        given = {n: v for n, v in numbers.items() if isinstance(v, int | float | Tensor)}
        self._inputs: dict[str, Any] = {n: numpy.float64(float(v)) for n, v in given.items()}
        self._inputs |= facts_of(update.weight, number_eps(update))
        self._inputs |= {"step": numpy.float64(step), "first": float(update.first)}
        own = (name for name, _, _ in settled.numbers)
        self._inputs |= {n: numpy.float64(float(update.numbers[n])) for n in own}
        self._step = step
        #: What opaque functions returned, by the place of the argument that it replaces.
        self._made: dict[int, dict[int, Any]] = {}

    def __call__(self) -> None:
        """Make the step of this weight alone."""
        global_sums.run([self])

    def rounds(self) -> global_sums.Rounds:
        """Make the step; hands in a share of each sum over all parameters."""
        graph = self._graph
        # What a function of the user's raises is left as it is.
        with (
            contextlib.nullcontext()
            if graph.calls_opaque
            else naming(graph.rule_name, self._update)
        ):
            yield from self._rounds()

    def _rounds(self) -> global_sums.Rounds:
        graph, update = self._graph, self._update
        known = self.given(graph)
        for node in self._awaited:
            if node.operation == "opaque":
                yield from self._ask_owner(node, known)
                continue
            value = self._whole(self.value(node.arguments[0], known))
            share = value.sum(dtype=torch.float64)
            total = yield float(share.full_tensor() if hasattr(share, "full_tensor") else share)
            known[id(node)] = numpy.float64(total)
        weight, *states = [self.value(node, known) for node in graph.outputs()]
        names = [name for name, _, _ in graph.states]
        befores = {n: known[id(before)] for n, before, _ in graph.states if id(before) in known}
        apart = unaliased(dict(zip(["", *names], [weight, *states], strict=True)), befores)
        weight, *states = apart.values()
        numbers = {n: float(self.value(node, known)) for n, _, node in self._after}
        new, held = dict(zip(names, states, strict=True)), self._held()
        for name in names if self._in_parts else held:
            local(update.states[name]).copy_(new[name])
        if self._in_parts:
            local(update.weight).copy_(weight)
        elif update.weight.numel():
            new = {name: value for name, value in new.items() if name not in held}
            for name, value in encoded(new, update.states, update.formats).items():
                update.states[name].copy_(value)
            kept, beside = kept_weight(update, weight, self._step)
            update.weight.copy_(kept)
            for name, value in beside.items():
                update.states[name].copy_(value)
        for name, number in update.numbers.items():
            number.fill_(self._step if name == "step" else numbers[name])

    def _travels(self, node: Node) -> bool:
        """Whether a function is called by one process for all.

        Of plain weights each process has the states, and not only their owner.
        """
        return self._replica is None or goes_to_owner(node)

    def _held(self) -> set[str]:
        """The states of a shape of their own, of a weight that is split among processes.

        They are whole with their owner, and empty elsewhere.
        """
        if not is_sharded(self._update.weight):
            return set()
        return {name for name, before, _ in self._graph.states if before.extent == "own"}

    def _split_states(self) -> list[Tensor]:
        """The other states."""
        held = self._held()
        return [t for name, t in self._update.states.items() if name not in held]

    def given(self, graph: Graph) -> dict[int, Any]:
        """What the step starts from, by the nodes of a contracted graph."""
        update = self._update
        dtype = working_dtype(update.weight)
        known: dict[int, Any] = {id(graph.weight): wide_weight(update)}
        known[id(graph.gradient)] = update.gradient.to(dtype)
        held = {n: local(t) if n in self._held() else t for n, t in update.states.items()}
        states = decoded(held, update.formats, dtype, update.weight.shape)
        for name, before, _ in graph.states:
            known[id(before)] = states[name]
        return {n: local(v) for n, v in known.items()} if self._in_parts else known

    def _whole(self, value: Any) -> Any:
        """A value as the DTensor that it is a part of, where parts are worked with."""
        if not self._in_parts:
            return value
        weight = self._update.weight
        return like_shards_of(weight, value, tuple(weight.shape))

    def _ask_owner(self, node: Node, known: dict[int, Any]) -> global_sums.Rounds:
        """Have a function called by who owns the matrix, or holds its states."""
        values = [self.value(a, known) for a in node.arguments]
        own = [v for a, v in zip(node.arguments, values, strict=True) if a.extent == "own"]
        first = values[0] if node.extent == "element" else None
        like = self._replica or (self._update.weight if first is None else self._whole(first))
        numbers = tuple(map(float, values[len(own) + (first is not None) :]))
        if not node.value.is_due(numbers):
            known[id(node)] = kept(node, values, self._made)
            return
        owner = holder_of(self._update.weight) if own and self._replica is None else None
        part = None if first is None else local(first).to(node.value.travels_as(first))
        name = self._update.name
        (made,) = yield [sharing.Call(node.value, part, like, numbers, name, tuple(own), owner)]
        if first is not None and 0 in made:
            outcome = made[0].to(first.dtype)
            if is_sharded(first):
                outcome = like_shards_of(like, outcome, like.shape)
            made = {**made, 0: outcome}
        self._made[id(node)] = made
        known[id(node)] = made.get(0, first) if first is not None else None

    def value(self, node: Node, known: dict[int, Any]) -> Any:
        """A node's value, and those below it, which are added to ``known``."""
        if id(node) in known:
            return known[id(node)]
        if node.operation == "input":
            return self._inputs[str(node.value)]
        if node.operation == "constant":
            return node.constant()
        arguments = [self.value(a, known) for a in node.arguments]
        if node.operation == "part":
            return self._made[id(node.arguments[0])][node.value]
        if node.operation == "opaque":
            value = called(node, arguments, self._made)
        else:
            value = applied(node, arguments)
        known[id(node)] = value
        return value


def kept(node: Node, arguments: list[Any], made: dict[int, dict[int, Any]]) -> Any:
    """As :func:`called`, of a function that is not due: all stays as it is."""
    made[id(node)] = {place: arguments[place] for place in node.value.returns}
    return arguments[0]


def called(node: Node, arguments: list[Any], made: dict[int, dict[int, Any]]) -> Any:
    """Call an opaque function; returns what takes the place of its first argument.

    Args:
        node: the call.
        arguments: its values.
        made: all that functions returned, by their nodes' ids and the arguments' places; added to.
    """
    results = node.value(*arguments)
    results = results if isinstance(results, tuple) else (results,)
    made[id(node)] = dict(zip(node.value.returns, results, strict=True))
    return made[id(node)].get(0, arguments[0])


def applied(node: Node, arguments: list[Any]) -> Any:
    """The value of an operation or reduction, by torch's own operations."""
    if node.operation in REDUCTIONS:
        return reduce_tensor(node.operation, arguments[0], along(node))
    if node.operation == "fma":
        a, b, c = arguments
        return a * b + c
    operation = OPERATIONS[node.operation]
    if not any(isinstance(a, Tensor) for a in arguments):
        return operation.number(*arguments)
    return operation.tensor(*arguments)
