"""One generated kernel over all dense CPU tensors of one group and storage type: one pass."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from gradstep.engine import compiler, threads
from gradstep.engine.fit import STORAGE, alike_in_parts, as_stored, is_sharded, local, local_update
from gradstep.engine.guard import make_guard
from gradstep.engine.host import host_function
from gradstep.engine.kernel import write_kernel
from gradstep.engine.number_states import NumberStates
from gradstep.engine.update import Update
from gradstep.rule.graph import Graph, Node
from gradstep.rule.settle import settle

#: Elements a chunk. Below this a tensor is one piece of work.
CHUNK = 1 << 17

#: Elements a step from which more than one thread is worth its while. Handing work to another
#: thread takes 30 to 60 µs here, which is what one thread needs for about 200,000 elements of Adam.
PARALLEL = 1 << 18

# Bound once: in a cold cache every look-up on the way costs as much as the work.
_data_ptr = Tensor.data_ptr
_increment_version = torch.autograd.graph.increment_version


#: The count of the step that is being made, as a number of the row.
STEP = Node("input", value="step")


class FusedKernel:
    """The machine code of one graph and storage type, and what works out its numbers."""

    def __init__(self, graph: Graph, storage: str, number_names: Sequence[str]) -> None:
        settled = settle(graph)
        half_instructions = "+f16c" in compiler.cpu()[1].split(",")
        text = write_kernel(settled, storage, half_instructions)
        self.update = compiler.functions(text.code, {"update": (8, False)})["update"]
        own = [name for name, _, _ in graph.numbers]
        after = [node for _, _, node in graph.numbers]
        # A row is what the kernel reads, then the new number states, then the step count.
        self.row = host_function(
            [*text.numbers, *after, STEP], (*own, "step", "first", *number_names)
        )
        self.read_by_kernel = len(text.numbers)


class FusedPart:
    """The tensors of a group that one kernel updates.

    Made from updates that were checked; :meth:`launch` runs for them and, after a look at type,
    dtype, device, sizes and strides of every tensor, for those that take their places later.
    """

    def __init__(self, kernel: FusedKernel, updates: Sequence[Update]) -> None:
        self.owners = [u.weight for u in updates]
        self._sharded = is_sharded(self.owners[0])
        updates = [local_update(u) for u in updates]
        first = updates[0]
        stored_numbers = STORAGE[first.weight.dtype][1]
        self.kernel = kernel
        self._names = [u.name for u in updates]
        self.weights = [u.weight for u in updates]
        self._relaid = [i for i, u in enumerate(updates) if not as_stored(u.gradient, u.weight)]
        names = (*first.states, *first.numbers)
        self.row_width = len(names)
        self._row_of = itemgetter(*names) if names else None
        self.counts = "step" in first.numbers
        self._number_count = len(first.numbers)
        self.number_states: NumberStates | None = None
        if first.numbers:
            dtype = str(next(iter(first.numbers.values())).dtype).removeprefix("torch.")
            self.number_states = NumberStates(len(updates), len(names), len(first.numbers), dtype)
        self._empty = {i for i, u in enumerate(updates) if not u.weight.numel()}
        flat = self._flat(
            self.weights,
            [u.gradient for u in updates],
            [{**u.states, **u.numbers} for u in updates],
        )
        pointers = self._locate(flat)
        self._addresses = self._written(pointers)
        self._checked = (flat, pointers)
        self._guard = make_guard(flat)
        self._row_for: Sequence[float] | None = None
        self._row = array("d")
        self.chunks = array("q")
        self.elements = 0
        for position, update in enumerate(updates):
            stored = update.weight.numel() * stored_numbers
            for start in range(0, stored, CHUNK):
                self.chunks.extend((position, start, min(CHUNK, stored - start)))
            self.elements += stored
        self.chunk_count = len(self.chunks) // 3
        self.chunks_at = self.chunks.buffer_info()[0]

    def located(self) -> tuple[list[Any], array[int]]:
        """All tensors of the checked updates in the kernel's order, and where they lie; once."""
        checked, self._checked = self._checked, ([], array("q"))  # gradients are not kept alive
        return checked

    def _flat(
        self,
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        entries: Sequence[Mapping[str, Any]],
    ) -> list[Any]:
        flat: list[Any] = [*weights, *gradients]
        if self._row_of is not None:
            rows = map(self._row_of, entries)
            flat += rows if self.row_width == 1 else chain.from_iterable(rows)
        return flat

    def fits(
        self, gradients: Sequence[Tensor], entries: Sequence[Mapping[str, Any]]
    ) -> tuple[list[Any], array[int]] | None:
        """The same for tensors that took their places, if each is as it was when checked.

        What is written must also lie where it lay: two weights that have come to share memory
        must not be taken for strangers.

        Args:
            gradients: one a weight, in the order of the updates.
            entries: one mapping a weight, which holds its states and its ``"step"``, by name.
        """
        try:
            flat = self._flat(self.owners, gradients, entries)
        except (KeyError, TypeError):
            return None
        if self._sharded:
            n = len(gradients)
            for i in range(n):
                row = flat[2 * n + i * self.row_width : 2 * n + (i + 1) * self.row_width]
                states = row[: len(row) - self._number_count]
                if not alike_in_parts([flat[i], flat[n + i], *states]):
                    return None
            flat = [local(t) for t in flat]
        if not self._guard(*flat):
            return None
        pointers = self._locate(flat)
        return (flat, pointers) if self._written(pointers) == self._addresses else None

    def launch(
        self,
        flat: list[Any],
        pointers: array[int],
        values: Sequence[float],
        firsts: Sequence[bool] | None = None,
    ) -> FusedLaunch:
        """Do all that may fail, and return what makes the step.

        Args:
            flat, pointers: from :meth:`fits` or :meth:`located`.
            values: the numbers, in the order of ``number_names``.
            firsts: for each weight whether its states are new; None for none.
        """
        n = len(self.weights)
        for i in self._relaid:
            with torch.no_grad():
                flat[n + i] = torch.empty_like(self.weights[i]).copy_(flat[n + i])
            pointers[n + i] = flat[n + i].data_ptr()
        make_row, states = self.kernel.row, self.number_states
        if states is None and firsts is None:
            # Only hyperparameters shape the row; where one changes they are a new tuple.
            if self._row_for is not values:
                self._row = array("d", make_row(1.0, False, *values))
                self._row_for = values
            return FusedLaunch(self, flat, pointers, self._row, 0)
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
        return FusedLaunch(self, flat, pointers, rows, row_distance)

    def _locate(self, flat: list[Any]) -> array[int]:
        # By way of a list: array() takes twice as long to draw from a map.
        pointers = list(map(_data_ptr, flat))
        if not all(pointers):
            self._check_memory(pointers)
        pointers.append(0)  # the kernel's counter of chunks
        return array("q", pointers)

    def _written(self, pointers: array[int]) -> array[int]:
        n = len(self.weights)
        return pointers[:n] + pointers[2 * n : -1]

    def _given(self, numbers: array[float]) -> Sequence[float]:
        """Number states and the count of this step, for the row's function."""
        if not self.counts:
            return (*numbers, 1.0)
        numbers[-1] += 1.0
        return numbers

    def _check_memory(self, pointers: Sequence[int]) -> None:
        n = len(self.weights)
        for place, pointer in enumerate(pointers):
            owner = place % n if place < 2 * n else (place - 2 * n) // self.row_width
            if pointer == 0 and owner not in self._empty:
                what = "weight" if place < n else "gradient" if place < 2 * n else "state"
                raise ValueError(
                    f"the {what} of {self._names[owner]()} has no memory: its storage was resized "
                    "to nothing. Bring it back before the step."
                )


class FusedLaunch:
    """One step of a :class:`FusedPart`, with everything checked and worked out.

    Holds on to all memory that the kernel reads and writes.
    """

    __slots__ = ("_arguments", "_kept", "_part")

    def __init__(
        self,
        part: FusedPart,
        flat: list[Any],
        pointers: array[int],
        rows: array[float],
        row_distance: int,
    ) -> None:
        self._part = part
        self._kept = (flat, pointers, rows)
        at, count = pointers.buffer_info()
        self._arguments = (
            at,
            len(part.weights),
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
        _increment_version(part.owners)

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
    if storage not in kernels:
        kernels[storage] = FusedKernel(graph, storage, number_names)
    return kernels[storage]
