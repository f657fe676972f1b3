"""One generated kernel over all dense CPU tensors of one group and storage type: one pass."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from gradstep.engine import threads
from gradstep.engine.fit import STORAGE, local
from gradstep.engine.host import host_function
from gradstep.engine.llvm import compiler
from gradstep.engine.llvm.kernel import write_kernel
from gradstep.engine.outline import kernel_outline
from gradstep.engine.table import Row, Table
from gradstep.engine.update import Update
from gradstep.rule.graph import Graph, Node
from gradstep.rule.settle import settle

#: Elements a chunk. Below this a tensor is one piece of work.
CHUNK = 1 << 17

#: Elements a step from which more than one thread is worth its while. Handing work to another
#: thread takes 30 to 60 µs here, which is what one thread needs for about 200,000 elements of Adam.
PARALLEL = 1 << 18

# Bound once: in a cold cache every look-up on the way costs as much as the work.
_increment_version = torch.autograd.graph.increment_version


#: The count of the step that is being made, as a number of the row.
STEP = Node("input", value="step")


class FusedKernel:
    """The machine code of one graph and storage type, and what works out its numbers."""

    def __init__(self, graph: Graph, storage: str, number_names: Sequence[str]) -> None:
        settled = settle(graph)
        outline = kernel_outline(settled, storage, compiler.has_half_instructions())
        self.update = compiler.functions(
            outline.text(), lambda: write_kernel(outline), {"update": (8, False)}
        )["update"]
        own = [name for name, _, _ in graph.numbers]
        after = [node for _, _, node in graph.numbers]
        # A row is what the kernel reads, then the new number states, then the step count.
        self.row = host_function(
            [*outline.numbers, *after, STEP], (*own, "step", "first", *number_names)
        )
        self.read_by_kernel = len(outline.numbers)


class FusedPart(Table):
    """The tensors of a group that one kernel updates.

    Made from updates that were checked, or from their rows; :meth:`launch` runs for them and, after
    a look at type, dtype, device, sizes and strides of every tensor, for those that take their
    places later.
    """

    def __init__(
        self, kernel: FusedKernel, of: Sequence[Update] | Sequence[Row], weights: Sequence[Tensor]
    ) -> None:
        super().__init__(of)
        self.kernel = kernel
        stored_numbers = STORAGE[weights[0].dtype][1]
        self._row_for: Sequence[float] | None = None
        self._row = array("d")
        sizes = [stored_numbers * local(weight).numel() for weight in weights]
        self.elements = sum(sizes)
        self.chunks = array("q")
        if max(sizes) <= CHUNK:
            numbers = [(position, 0, size) for position, size in enumerate(sizes) if size]
            self.chunks.extend(chain.from_iterable(numbers))
        else:
            for position, size in enumerate(sizes):
                for start in range(0, size, CHUNK):
                    self.chunks.extend((position, start, min(CHUNK, size - start)))
        self.chunk_count = len(self.chunks) // 3
        self.chunks_at = self.chunks.buffer_info()[0]

    def launch(
        self,
        owners: Sequence[Tensor],
        flat: list[Any],
        pointers: array[int],
        values: Sequence[float],
        firsts: Sequence[bool] | None = None,
    ) -> FusedLaunch:
        """Do all that may fail, and return what makes the step.

        Args:
            owners: the parameters.
            flat, pointers: from :meth:`fits` or :meth:`located`.
            values: the numbers, in the order of ``number_names``.
            firsts: for each weight whether its states are new; None for none.
        """
        n = self.count
        if self._relaid:
            self.relay(flat, pointers)
        make_row, states = self.kernel.row, self.number_states
        if states is None and firsts is None:
            # Only hyperparameters shape the row; where one changes they are a new tuple.
            if self._row_for is not values:
                self._row = array("d", make_row(1.0, False, *values))
                self._row_for = values
            return FusedLaunch(self, owners, flat, pointers, self._row, 0)
        numbers = array("d")
        if states is not None:
            numbers = states.read(pointers.buffer_info()[0] + 16 * n)
        width = len(numbers) // n
        start, alike = numbers[:width], n == 1 or firsts is None or len(set(firsts)) == 1
        if alike and numbers == start * n:
            first = firsts is not None and firsts[0]
            rows, row_distance = array("d", make_row(*self._given(start), first, *values)), 0
        else:
            made: dict[tuple[Any, ...], tuple[float, ...]] = {}
            rows = array("d")
            for i in range(n):
                key = (
                    *self._given(numbers[width * i : width * (i + 1)]),
                    bool(firsts and firsts[i]),
                )
                if key not in made:
                    made[key] = make_row(*key, *values)
                rows.extend(made[key])
            row_distance = len(rows) // n
        return FusedLaunch(self, owners, flat, pointers, rows, row_distance)


class FusedLaunch:
    """One step of a :class:`FusedPart`, with everything checked and worked out.

    Holds on to all memory that the kernel reads and writes.
    """

    __slots__ = ("_arguments", "_kept", "_owners", "_part")

    def __init__(
        self,
        part: FusedPart,
        owners: Sequence[Tensor],
        flat: list[Any],
        pointers: array[int],
        rows: array[float],
        row_distance: int,
    ) -> None:
        self._part = part
        self._owners = owners
        self._kept = (flat, pointers, rows)
        at, count = pointers.buffer_info()
        self._arguments = (
            at,
            part.count,
            part.row_width,
            part.chunks_at,
            part.chunk_count,
            rows.buffer_info()[0],
            row_distance,
            at + 8 * (count - 1),
        )

    def __call__(self) -> None:
        """Make the step: weights, states and step counts."""
        part = self._part
        self.run_kernel()
        if part.number_states is not None:
            pointers_at, n, _, _, _, rows_at, row_distance, _ = self._arguments
            part.number_states.write(
                pointers_at + 16 * n, rows_at + 8 * part.kernel.read_by_kernel, row_distance
            )
        # Tell autograd that the weights were written, as torch's own operations do.
        _increment_version(self._owners)

    def run_kernel(self) -> None:
        """The pass over memory alone."""
        part, update, arguments = self._part, self._part.kernel.update, self._arguments
        self._kept[1][-1] = 0
        if part.elements < PARALLEL:
            update(*arguments)
        else:
            count = min(torch.get_num_threads(), part.chunk_count)
            threads.run(lambda: update(*arguments), count)


def fused_kernel(
    graph: Graph,
    dtype: torch.dtype,
    number_names: Sequence[str],
    kernels: dict[Any, FusedKernel],
) -> FusedKernel:
    """The kernel for weights of a dtype, from ``kernels`` if it is there."""
    storage = STORAGE[dtype][0]
    if (id(graph), storage) not in kernels:
        kernels[id(graph), storage] = FusedKernel(graph, storage, number_names)
    return kernels[id(graph), storage]
