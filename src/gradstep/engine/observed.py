"""What the reductions and opaque functions of a step give, read off the kernel's own passes.

For explanations. The passes that make a step make these values too, so that an explanation has
them bit for bit, whatever order they were added up in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy
import torch
from torch import Tensor

from gradstep.engine.fit import STORAGE
from gradstep.engine.kernel import ITEM_BYTES
from gradstep.engine.pass_kernel import kept_storage
from gradstep.engine.staged import StagedKernel, StagedPart, Wave
from gradstep.engine.update import Update
from gradstep.rule.graph import Graph, Node


def observe(
    graph: Graph, update: Update, number_names: Sequence[str], values: Sequence[float]
) -> list[Tensor]:
    """Make one weight's step and return what its reductions and opaque functions gave.

    Args:
        graph: the rule's, as traced, and not elementwise.
        update: copies, laid out as the kernel wants them: weight and states are written.
        number_names, values: lr and the numeric hyperparameters.

    Returns:
        for each node of ``graph.gathered()`` a tensor: one number, or of the weight's shape with
        one element in each dimension that was summed away. Sums are float64.
    """
    kernel = StagedKernel(
        _numbered(graph), STORAGE[update.weight.dtype][0], [str(n) for n in number_names]
    )
    part = StagedPart(kernel, [update])
    found: dict[str, Tensor] = {}

    def watch(wave: Wave, memory: Tensor, totals: list[list[float]]) -> None:
        for node, total in zip(kernel.totals, totals[0], strict=True):
            found[str(node.name)] = torch.tensor(total, dtype=torch.float64)
        for place, owner in enumerate(kernel.places.owners):
            if owner.gathers and owner.extent != "tensor":
                start = wave.places[place]
                found[str(owner.name)] = _kept(memory[start:], owner, update.weight, kernel.working)

    part.watch = watch
    part.launch(*part.located(), values, [update.first])()
    return [found[str(position)] for position in range(len(graph.gathered()))]


def _numbered(graph: Graph) -> Graph:
    """The same graph with its reductions and opaque functions named by their number.

    A kernel settles its graph, which makes other nodes of the same names.
    """
    copies: dict[int, Node] = {}
    number = 0
    for node in graph.nodes():
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


def _kept(memory: Tensor, owner: Node, weight: Tensor, working: str) -> Tensor:
    """A copy of what lies at the start of ``memory``, in the shape that goes with the weight."""
    storage = kept_storage(owner, working)
    shape = list(weight.shape)
    if owner.extent in ("row", "matrix"):
        shape[-1] = 1
    if owner.extent in ("column", "matrix"):
        shape[-2] = 1
    count = int(numpy.prod(shape))
    flat = memory[: ITEM_BYTES[storage] * count].view(getattr(torch, storage))
    if owner.extent == "element":
        return flat.as_strided(weight.shape, weight.stride()).clone()
    return flat.view(shape).clone()
