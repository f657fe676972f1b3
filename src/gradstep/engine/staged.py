"""Run the passes of a rule that reduces or calls opaque functions, over the tensors of a group."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Generator, Sequence
from itertools import chain
from typing import Any

import numpy
import torch
from torch import Tensor

from gradstep.engine import threads, together
from gradstep.engine.fit import local
from gradstep.engine.fused import PARALLEL
from gradstep.engine.host import HostRows
from gradstep.engine.outline import ITEM_BYTES, kept_storage
from gradstep.engine.staged_kernel import StagedKernel
from gradstep.engine.table import Row, Table, taken_strides
from gradstep.engine.update import Update
from gradstep.engine.waves import Wave, divided, lay_out
from gradstep.rule.graph import Node
from gradstep.rule.opaque import Opaque
from gradstep.rule.reductions import facts_of

_increment_version = torch.autograd.graph.increment_version


class StagedPart(Table):
    """The tensors of a group that the passes of one kernel update.

    Attributes:
        strides: of the tensors that opaque functions get, one tuple a weight.
        facts: what a rule may ask of each weight, as numbers.
        waves: the weights that go through the passes together.
    """

    def __init__(
        self, kernel: StagedKernel, of: Sequence[Update] | Sequence[Row], weights: Sequence[Tensor]
    ) -> None:
        super().__init__(of)
        self.kernel = kernel
        weights = list(map(local, weights))
        if isinstance(of[0], Row):
            self.strides = [row.strides for row in of]  # type: ignore[union-attr]
        else:
            gradients = [local(update.gradient) for update in of]  # type: ignore[union-attr]
            self.strides = list(map(taken_strides, gradients, weights))
        by_shape: dict[Any, tuple[float, ...]] = {}
        self.facts = []
        for weight in weights:
            key = (weight.shape, weight.dtype)
            if key not in by_shape:
                by_shape[key] = tuple(facts_of(weight).values())
            self.facts.append(by_shape[key])
        #: Shown each wave after its passes, with its arena and the totals of each tensor.
        self.watch: Callable[[Wave, Tensor, list[list[float]]], None] | None = None
        known = (kernel, weights, self.strides)
        self.waves = [lay_out(*known, tensors) for tensors in divided(*known)]

    def launch(
        self,
        owners: Sequence[Tensor],
        flat: list[Any],
        pointers: array[int],
        values: Sequence[float],
        firsts: Sequence[bool] | None = None,
    ) -> StagedLaunch:
        """Do all that may fail, and return what makes the step.

        Args:
            owners: the parameters.
            flat, pointers: from :meth:`fits` or :meth:`located`.
            values: the numbers, in the order of ``number_names``.
            firsts: for each weight whether its states are new; None for none.
        """
        n = self.count
        self.relay(flat, pointers)
        numbers = array("d")
        if self.number_states is not None:
            numbers = self.number_states.read(pointers.buffer_info()[0] + 16 * n)
        width = len(numbers) // n
        start = numbers[:width]
        alike = (firsts is None or len(set(firsts)) == 1) and numbers == start * n
        if alike:
            head = (*self._given(start), float(firsts is not None and firsts[0]), *values)
            rows = [head + facts for facts in self.facts]
        else:
            rows = []
            for i in range(n):
                given = self._given(numbers[width * i : width * (i + 1)])
                first = float(firsts is not None and firsts[i])
                rows.append((*given, first, *values, *self.facts[i]))
        return StagedLaunch(self, owners, flat, pointers, rows, alike)


class StagedLaunch:
    """One step of a :class:`StagedPart`, with everything checked.

    ``alike`` says that all tensors have the same step count and the same states of one number.
    """

    __slots__ = ("_alike", "_flat", "_part", "_pointers", "_rows", "owners")

    def __init__(
        self,
        part: StagedPart,
        owners: Sequence[Tensor],
        flat: list[Any],
        pointers: array[int],
        rows: list[tuple[float, ...]],
        alike: bool,
    ) -> None:
        self._part = part
        self.owners = owners
        self._flat = flat
        self._pointers = pointers
        self._rows = rows
        self._alike = alike

    @property
    def rounds(self) -> Callable[[], together.Rounds] | None:
        """What makes the step together with others, where the rule sums over all parameters."""
        # Not an attribute: a launch that held a method of its own would be a cycle.
        return self._make if self._part.kernel.sums_over_all else None

    def __call__(self) -> None:
        """Make the step: weights, states and step counts."""
        if self._part.kernel.sums_over_all:
            together.run([self])
        else:
            self._alone()

    def _alone(self) -> None:
        with torch.no_grad():
            for _ in self._make():
                raise AssertionError("a rule without sums over all parameters asked for one")

    def _make(self) -> together.Rounds:
        part, kernel = self._part, self._part.kernel
        over_all: list[float] = []
        if kernel.sums_over_all and not part.waves:
            for _ in range(kernel.sums_over_all):
                over_all.append((yield 0.0))
        done: list[int] = []
        try:
            for wave in part.waves:
                over_all = yield from self._run_wave(wave)
                done += wave.tensors
        except Exception:
            self._close(done)
            raise
        if part.number_states is not None:
            # A tensor without elements has no totals but those over all parameters.
            sums = iter(over_all)
            empty = [next(sums) if n.operation == "global_sum" else 0.0 for n in kernel.totals]
            whole = len(kernel.inputs)
            common = self._alike and kernel.after.is_common
            rows = self._rows[:1] if common else self._rows
            rows = [row if len(row) == whole else (*row, *empty) for row in rows]
            after = array("d", chain.from_iterable(kernel.after(rows)))
            at = self._pointers.buffer_info()[0] + 16 * part.count
            distance = 0 if common else kernel.after.width
            part.number_states.write(at, after.buffer_info()[0], distance)
        _increment_version(self.owners)

    def _close(self, done: list[int]) -> None:
        """A function has raised: bring those to an end that had gone through all passes."""
        part = self._part
        start, width = 2 * part.count, part.row_width
        for i in done:
            row = self._flat[start + width * i : start + width * (i + 1)]
            numbers = row[width - part.number_count :]
            (made,) = part.kernel.after([self._rows[i]])
            for number, after in zip(numbers, made, strict=False):
                number.fill_(after)
        if done:
            _increment_version([self.owners[i] for i in done])

    def _run_wave(self, wave: Wave) -> Generator[float, float, list[float]]:
        """Make the step of a wave, and return the sums over all parameters."""
        over_all: list[float] = []
        kernel = self._part.kernel
        arena = torch.empty(wave.bytes + 64, dtype=torch.uint8, device="cpu")
        shift = -arena.data_ptr() % 64
        memory = arena[shift : shift + wave.bytes]
        view = memory.numpy()
        totals: list[list[float]] = [[] for _ in wave.tensors]
        own = self._own_states(wave)
        for number, stage in enumerate(kernel.stages):
            if stage.run is not None:
                self._run_stage(wave, number, memory, totals)
            for operation, start, count, length in wave.joins[number]:
                parts = view[start : start + 8 * count * length].view(numpy.float64)
                parts = parts.reshape(count, length)
                parts[0] = parts.max(axis=0) if operation == "max" else parts.sum(axis=0)
            for node in stage.each.sums:
                if node.extent == "tensor":
                    places = wave.totals[id(node)]
                    if node.operation == "global_sum":  # the tensors' parts lie side by side
                        end = places[-1][0] + 8 * places[-1][1]
                        parts = view[places[0][0] : end].view(numpy.float64)
                        total = yield together.exact_sum(parts.tolist())
                        over_all.append(total)
                        values = [total] * len(places)
                    else:
                        values = []
                        for start, count in places:
                            parts = view[start : start + 8 * count].view(numpy.float64)
                            values.append(_joined(node.operation, parts))
                    for found, value in zip(totals, values, strict=True):
                        found.append(value)
            for node, work_out in stage.calls:
                self._call(wave, node, work_out, memory, totals, own)
        for _, before, after in kernel.own_states:
            if after is not before:
                for state, made in zip(own[id(before)], own[id(after)], strict=True):
                    state.copy_(made)
        for tensor, found in zip(wave.tensors, totals, strict=True):
            self._rows[tensor] = (*self._rows[tensor], *found)
        if self._part.watch is not None:
            self._part.watch(wave, memory, totals)
        return over_all

    def _own_states(self, wave: Wave) -> dict[int, list[Tensor]]:
        """The states of a shape of their own, by their nodes; functions add what they make."""
        part = self._part
        start, width = 2 * part.count, part.row_width
        return {
            id(before): [
                self._flat[start + width * i + part.state_names.index(name)] for i in wave.tensors
            ]
            for name, before, _ in part.kernel.own_states
        }

    def _known(
        self, wave: Wave, totals: list[list[float]], count: int | None = None
    ) -> list[tuple[float, ...]]:
        """The numbers of the first so many tensors, or of all, as far as they are there yet."""
        tensors = wave.tensors[:count]
        return [(*self._rows[i], *own) for i, own in zip(tensors, totals, strict=False)]

    def _run_stage(
        self, wave: Wave, number: int, memory: Tensor, totals: list[list[float]]
    ) -> None:
        part, stage = self._part, self._part.kernel.stages[number]
        common = self._alike and stage.row.is_common
        rows = stage.row(self._known(wave, totals, 1 if common else None))
        numbers = array("d", chain.from_iterable(rows))
        tiles, count, elements = wave.tiles[number]
        counter = array("q", [0])
        arguments = (
            self._pointers.buffer_info()[0],
            part.count,
            part.row_width,
            memory.data_ptr(),
            wave.places.buffer_info()[0],
            len(wave.places) // len(wave.tensors),
            tiles.buffer_info()[0],
            count,
            numbers.buffer_info()[0],
            0 if common else stage.row.width,
            counter.buffer_info()[0],
        )
        if elements < PARALLEL:
            stage.run(*arguments)
        else:
            hands = min(torch.get_num_threads(), count)
            threads.run(lambda: stage.run(*arguments), hands)

    def _call(
        self,
        wave: Wave,
        node: Node,
        work_out: HostRows,
        memory: Tensor,
        totals: list[list[float]],
        own: dict[int, list[Tensor]],
    ) -> None:
        rows = work_out(self._known(wave, totals))
        parts = self._part.kernel.parts.get(id(node), [])
        own.update({id(made): [] for made in parts})
        for alike in wave.alike:
            span = slice(alike.start, alike.stop)
            taken = [own[id(a)][span] for a in node.arguments if a.extent == "own"]
            results = self._call_batch(wave, node, memory, alike, rows[span], taken)
            for made in parts:
                own[id(made)] += results[made.value]

    def _call_batch(
        self,
        wave: Wave,
        node: Node,
        memory: Tensor,
        alike: range,
        rows: Sequence[tuple[float, ...]],
        own: Sequence[list[Tensor]],
    ) -> dict[int, list[Tensor]]:
        """Call a function on a batch; returns what it made of tensors of their own shape.

        Of each a list with one for each of the batch, by the argument's place.
        """
        function: Opaque = node.value
        given = [
            # A function leaves alone what it does not return. What another has made may lie in any
            # order, on which the last bits of a matrix product depend.
            tensors[0].unsqueeze(0).contiguous()
            if len(tensors) == 1 and place not in function.returns
            else torch.stack(tensors)
            for place, tensors in enumerate(own, start=int(node.extent == "element"))
        ]
        batch = None
        if node.extent == "element":
            batch, whole = self._batch(wave, node, memory, alike)
            given = [whole, *given]
        if all(row == rows[0] for row in rows):
            results = function.on_batch(*given, *rows[0])
        else:
            each = [
                function.on_batch(*(t[i : i + 1] for t in given), *row)
                for i, row in enumerate(rows)
            ]
            results = [torch.cat(made) for made in zip(*each, strict=True)]
        if batch is not None and function.returns[0] == 0:
            batch.copy_(results[0])
        return dict(zip(function.returns, map(list, results), strict=True))

    def _batch(self, wave: Wave, node: Node, memory: Tensor, alike: range) -> tuple[Tensor, Tensor]:
        """Where the tensors of a batch lie, and what the function gets."""
        first = wave.tensors[alike.start]
        weight = self._flat[first]
        size, count = weight.numel(), len(alike)
        storage = kept_storage(node, self._part.kernel.working)
        start, item = wave.batches[id(node)][alike.start], ITEM_BYTES[storage]
        whole = memory[start : start + item * size * count].view(getattr(torch, storage))
        batch = whole.as_strided((count, *weight.shape), (size, *weight.stride()))
        strides = self._part.strides[first]
        given = batch
        if strides != weight.stride():
            given = batch.new_empty_strided(batch.shape, (size, *strides))
            given.copy_(batch)
        return batch, given


def _joined(operation: str, parts: Any) -> float:
    """Partial outcomes in one: the exact sum, rounded once, or the largest."""
    if operation == "max":
        return float(parts.max()) if len(parts) else math.nan
    return together.exact_sum(parts.tolist())
