"""What the reductions and opaque functions of a step give, looked at while the step is made.

For explanations. A kernel's passes leave these values in their memory, where a :class:`Probe`
reads them: so an explanation has them bit for bit, whatever order they were added up in. Beside
the eager engine, which keeps nothing, :func:`gathered_eagerly` works them out.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy
import torch
from torch import Tensor

from gradstep.backends.cpu.binding import Tensors
from gradstep.backends.cpu.buckets import Bucket
from gradstep.backends.cpu.kernel import Kernel
from gradstep.backends.cpu.run import PassesRun
from gradstep.backends.eager_rounds import EagerRounds
from gradstep.backends.update import Update
from gradstep.program.kernel_spec import ITEM_BYTES, kept_storage
from gradstep.program.passes import passes
from gradstep.rule.contraction import contracted
from gradstep.rule.graph import Graph, Node


class Probe:
    """Sees the reductions and opaque functions of one weight's step while a kernel makes it.

    Attributes:
        found: after the step, for each node of ``graph.gathered`` its values for the weights
            at ``places``; None before.
        problem: what went wrong here, which the step itself does not hear of.
    """

    def __init__(self, graph: Graph, weight: Tensor, places: Sequence[tuple[int, ...]]) -> None:
        self.graph = graph
        self.weight = weight
        self.places = places
        self.found: list[list[float]] | None = None
        self.problem: Exception | None = None
        self._at: Tensors | None = None
        self._row = 0  # of the weight among the binding's
        # The kernel's own nodes have no numbers. Passes are made alike of graphs that are alike.
        self._program = passes(contracted(_numbered(graph)))

    def join(self, runs: Sequence[Any]) -> bool:
        """Stand by at whichever run updates the weight; False if none is of such a kernel."""
        for run in runs:
            owners = run.owners if isinstance(run, PassesRun) else ()
            rows = [row for row, owner in enumerate(owners) if owner is self.weight]
            if rows:
                binding, self._row = run.binding, rows[0]
                binding.probes.append(self)
                self._at = binding
                return True
        return False

    def leave(self) -> None:
        """Look no longer, also if the step never came."""
        binding, self._at = self._at, None
        if binding is not None:
            binding.probes = [each for each in binding.probes if each is not self]

    def look(
        self, binding: Tensors, bucket: Bucket, memory: Tensor, totals: list[list[float]]
    ) -> None:
        """Read what a bucket has left, if the weight was in it."""
        try:
            if self._row in bucket.tensors:
                self._look(binding, self._row, bucket, memory, totals)
        except Exception as error:
            self.problem = error

    def _look(
        self,
        binding: Tensors,
        row: int,
        bucket: Bucket,
        memory: Tensor,
        totals: list[list[float]],
    ) -> None:
        kernel, own = binding.kernel, bucket.tensors.index(row)
        weight = self.weight
        position = {id(owner): p for p, owner in enumerate(kernel.places.owners)}
        width = len(kernel.places.owners)
        found: dict[str, list[float]] = {}
        count = 0
        for stage, numbered in zip(kernel.stages, self._program, strict=True):
            for owner, named in zip(stage.each.sums, numbered.sums, strict=True):
                if owner.extent == "tensor":
                    found[str(named.name)] = [totals[own][count]] * len(self.places)
                    count += 1
                else:
                    start = bucket.places[own * width + position[id(owner)]]
                    found[str(named.name)] = _at_places(
                        _lying(memory[start:], owner, weight, kernel), self.places
                    )
            for (_, owner), (_, named) in zip(stage.each.keeps, numbered.keeps, strict=True):
                if owner.gathers:
                    start = bucket.places[own * width + position[id(owner)]]
                    found[str(named.name)] = _at_places(
                        _lying(memory[start:], owner, weight, kernel), self.places
                    )
        self.found = [found[str(p)] for p in range(len(self.graph.gathered))]


def gathered_eagerly(
    graph: Graph, update: Update, numbers: Mapping[str, Any], places: Sequence[tuple[int, ...]]
) -> Generator[float, float, list[list[float]]]:
    """The same where torch's own operations make the step, worked out beside it. Writes nothing.

    Waits at each sum over all parameters, as the steps themselves do, to be sent the total; its
    own share of it is nothing.

    Args:
        graph: the rule's, as traced.
        update: the weight, its gradient and states as they are before the step.
        numbers: lr and the numeric hyperparameters, by name.
        places: of the weights to look at.
    """
    settled = contracted(_numbered(graph))
    walk = passes(settled)
    step = EagerRounds(settled, walk, update, numbers, shared_out=False)
    known = step.given(settled)
    values: dict[str, Any] = {}
    for each in walk:
        for node in each.sums:
            if node.operation == "global_sum":
                known[id(node)] = numpy.float64((yield 0.0))
    for node in settled.nodes:
        if node.gathers:
            values[str(node.name)] = step.value(node, known)
    return [_at_places(values[str(p)], places) for p in range(len(graph.gathered))]


def _at_places(value: Any, places: Sequence[tuple[int, ...]]) -> list[float]:
    """The entries of a tensor that go with the weights; the number itself, if it is one."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return [float(value)] * len(places)
    ats = [tuple(min(i, n - 1) for i, n in zip(p, value.shape, strict=True)) for p in places]
    return [float(value[at].item()) for at in ats]


def _numbered(graph: Graph) -> Graph:
    """The same graph with its reductions and opaque functions named by their number.

    A kernel contracts its graph, which makes other nodes of the same names.
    """
    copies: dict[int, Node] = {}
    number = 0
    for node in graph.nodes:
        name = None
        if node.gathers:
            name = str(number)
            number += 1
        arguments = tuple(copies[id(a)] for a in node.arguments)
        copies[id(node)] = Node(
            node.operation, arguments, node.extent, node.boolean, node.value, name, node.line
        )

    def of(node: Node) -> Node:
        return copies.get(id(node), node)

    return replace(
        graph,
        gradient=of(graph.gradient),
        weight=of(graph.weight),
        direction=None if graph.direction is None else of(graph.direction),
        new_weight=of(graph.new_weight),
        states=tuple((n, of(before), of(after)) for n, before, after in graph.states),
        numbers=tuple((n, of(before), of(after)) for n, before, after in graph.numbers),
        order=tuple(of(node) for node in graph.order),
    )


def _lying(memory: Tensor, owner: Node, weight: Tensor, kernel: Kernel) -> Tensor:
    """What lies at the start of ``memory``, in the shape that goes with the weight."""
    storage = kept_storage(owner, kernel.working)
    shape = list(weight.shape)
    if owner.extent == "row" and kernel.rows_are_units:
        shape[1:] = [1] * (len(shape) - 1)
    elif owner.extent in ("row", "matrix"):
        shape[-1] = 1
    if owner.extent in ("column", "matrix"):
        shape[-2] = 1
    count = int(numpy.prod(shape))
    flat = memory[: ITEM_BYTES[storage] * count].view(getattr(torch, storage))
    if owner.extent == "element":
        return flat.as_strided(weight.shape, weight.stride())
    return flat.view(shape)
