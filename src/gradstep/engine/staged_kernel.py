"""The passes of a rule that reduces or calls opaque functions, compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradstep.engine.fit import STORAGE
from gradstep.engine.fused import STEP
from gradstep.engine.host import HostNodes, HostRows
from gradstep.engine.llvm import compiler
from gradstep.engine.llvm.pass_kernel import write_pass
from gradstep.engine.outline import PassOutline, Places, pass_outline, working_type
from gradstep.engine.passes import Pass, passes
from gradstep.engine.tiles import Geometry, flat, of_matrices
from gradstep.rule.graph import FACTS, Graph, Node
from gradstep.rule.settle import settle

_ARGUMENTS = 11


def compiled_pass(outline: PassOutline) -> Any:
    """A pass's machine code: a function of eleven integers."""
    signatures = {"run": (_ARGUMENTS, False)}
    return compiler.functions(outline.text(), lambda: write_pass(outline), signatures)["run"]


@dataclass
class Stage:
    """One pass, ready to run.

    Attributes:
        each: what it does.
        run: the machine code.
        row: works out the numbers that it reads.
        calls: the opaque functions after it, each with what works out its numbers.
    """

    each: Pass
    run: Any
    row: HostRows
    calls: list[tuple[Node, HostRows]]


class StagedKernel:
    """The machine code of a graph's passes for one storage type, and what works out its numbers."""

    def __init__(self, graph: Graph, storage: str, number_names: Sequence[str]) -> None:
        settled = settle(graph)
        self.storage = storage
        self.working = working_type(storage)
        self.places = Places()
        self.by_matrices = settled.needs_matrix
        program = passes(settled)
        #: The reductions of a whole tensor to one number, which go back to the host.
        self.totals = [n for p in program for n in p.sums if n.extent == "tensor"]
        self.sums_over_all = sum(n.operation == "global_sum" for n in self.totals)
        own = [name for name, _, _ in graph.numbers]
        totals = [f"total {i}" for i in range(len(self.totals))]
        self.inputs = (*own, "step", "first", *number_names, *FACTS, *totals)
        half_instructions = compiler.has_half_instructions()
        as_host = HostNodes(self.totals)
        self.stages = []
        for each in program:
            outline = pass_outline(each, settled, storage, self.places, half_instructions)
            run = compiled_pass(outline) if each.wanted() else None
            calls = [(node, self._numbers_of(node, as_host)) for node in each.calls]
            row = self._host_rows([as_host(n) for n in outline.numbers])
            self.stages.append(Stage(each, run, row, calls))
        after = [as_host(node) for _, _, node in settled.numbers]
        self.after = self._host_rows([*after, STEP])
        #: States of a shape of their own: name, before and after.
        self.own_states = [state for state in settled.states if state[1].extent == "own"]
        #: Opaque function's node -> what it makes of such tensors.
        self.parts: dict[int, list[Node]] = {}
        for node in settled.nodes:
            if node.operation == "part":
                self.parts.setdefault(id(node.arguments[0]), []).append(node)

    def _numbers_of(self, call: Node, as_host: HostNodes) -> HostRows:
        numbers = [a for a in call.arguments if a.extent in ("number", "tensor")]
        return self._host_rows([as_host(a) for a in numbers])

    def _host_rows(self, outputs: Sequence[Node]) -> HostRows:
        differing = [f"total {i}" for i, n in enumerate(self.totals) if n.operation != "global_sum"]
        return HostRows(outputs, self.inputs, len(self.totals), {*FACTS, *differing})

    def geometry(self, weight: Tensor, domain: str) -> Geometry:
        """How a tensor, or what is kept of it, is cut."""
        if not self.by_matrices:
            return flat(weight.numel())
        rows, columns = weight.shape[-2:]
        return of_matrices(weight.numel() // max(1, rows * columns), rows, columns, domain)


def staged_kernel(
    graph: Graph, dtype: torch.dtype, number_names: Sequence[str], kernels: dict[Any, Any]
) -> StagedKernel:
    """The kernel for weights of a dtype, from ``kernels`` if it is there."""
    key = (id(graph), STORAGE[dtype][0])
    if key not in kernels:
        kernels[key] = StagedKernel(graph, STORAGE[dtype][0], number_names)
    return kernels[key]
