"""Run the passes of a rule that reduces or calls opaque functions, over the tensors of a group.

The tensors go through all passes a wave at a time: as many as have :data:`WAVE` elements together,
or one. So what is kept between passes stays small, and small tensors are still in the cache when
the next pass reads them. Tensors that an opaque function is to take together have one shape.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy
import torch
from torch import Tensor

from gradstep.engine import compiler, threads, together
from gradstep.engine.fit import STORAGE, local_update
from gradstep.engine.fused import PARALLEL, STEP
from gradstep.engine.host import HostNodes, HostRows
from gradstep.engine.kernel import ITEM_BYTES
from gradstep.engine.pass_kernel import Places, kept_storage, write_pass
from gradstep.engine.passes import Pass, passes
from gradstep.engine.table import Table
from gradstep.engine.tiles import Geometry, flat, of_matrices
from gradstep.engine.update import Update, is_dense
from gradstep.rule.graph import FACTS, Graph, Node
from gradstep.rule.opaque import Opaque
from gradstep.rule.reductions import facts_of
from gradstep.rule.settle import settle

#: Elements a wave, unless one tensor has more.
WAVE = 1 << 22

_increment_version = torch.autograd.graph.increment_version
_ARGUMENTS = 11


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
        self.working = "float64" if storage == "float64" else "float32"
        self.places = Places()
        self.by_matrices = settled.needs_matrix()
        program = passes(settled)
        #: The reductions of a whole tensor to one number, which go back to the host.
        self.totals = [n for p in program for n in p.sums if n.extent == "tensor"]
        self.sums_over_all = sum(n.operation == "global_sum" for n in self.totals)
        own = [name for name, _, _ in graph.numbers]
        totals = [f"total {i}" for i in range(len(self.totals))]
        self.inputs = (*own, "step", "first", *number_names, *FACTS, *totals)
        half_instructions = "+f16c" in compiler.cpu()[1].split(",")
        as_host = HostNodes(self.totals)
        self.stages = []
        for each in program:
            text = write_pass(each, settled, storage, self.places, half_instructions)
            wanted = each.wanted()
            code = compiler.functions(text.code, {"run": (_ARGUMENTS, False)}) if wanted else {}
            run = code.get("run")
            calls = [(node, self._numbers_of(node, as_host)) for node in each.calls]
            row = self._host_rows([as_host(n) for n in text.numbers])
            self.stages.append(Stage(each, run, row, calls))
        after = [as_host(node) for _, _, node in settled.numbers]
        self.after = self._host_rows([*after, STEP])
        #: States of a shape of their own: name, before and after.
        self.own_states = [state for state in settled.states if state[1].extent == "own"]
        #: Opaque function's node -> what it makes of such tensors.
        self.parts: dict[int, list[Node]] = {}
        for node in settled.nodes():
            if node.operation == "part":
                self.parts.setdefault(id(node.arguments[0]), []).append(node)

    def _numbers_of(self, call: Node, as_host: HostNodes) -> HostRows:
        numbers = [a for a in call.arguments if a.extent in ("number", "tensor")]
        return self._host_rows([as_host(a) for a in numbers])

    def _host_rows(self, outputs: Sequence[Node]) -> HostRows:
        return HostRows(outputs, self.inputs, len(self.totals))

    def geometry(self, weight: Tensor, domain: str) -> Geometry:
        """How a tensor, or what is kept of it, is cut."""
        if not self.by_matrices:
            return flat(weight.numel())
        rows, columns = weight.shape[-2:]
        return of_matrices(weight.numel() // max(1, rows * columns), rows, columns, domain)


@dataclass
class Wave:
    """Tensors that go through the passes together.

    Attributes:
        tensors: their places in the table.
        tiles: for each pass the tiles' numbers, how many, and how many elements.
        places: a row of offsets into the arena for each tensor.
        bytes: the arena's length.
        totals: for each whole reduction, and each tensor: where its partial outcomes lie.
        joins: for each pass what is to be put together: place, count and length of partial sums.
        batches: opaque function's node -> where each tensor's share lies.
        alike: the tensors by shape and layout, as ranges of neighbours: each range is a batch.
    """

    tensors: list[int]
    tiles: list[tuple[array[int], int, int]] = field(default_factory=list)
    places: array[int] = field(default_factory=lambda: array("q"))
    bytes: int = 0
    totals: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    joins: list[list[tuple[str, int, int, int]]] = field(default_factory=list)
    batches: dict[int, list[int]] = field(default_factory=dict)
    alike: list[range] = field(default_factory=list)


class StagedPart(Table):
    """The tensors of a group that the passes of one kernel update."""

    def __init__(self, kernel: StagedKernel, updates: Sequence[Update]) -> None:
        super().__init__(updates)
        self.kernel = kernel
        # An opaque function gets its tensor in the gradient's layout, as torch's own code would:
        # the last bits of a matrix product depend on it.
        gradients = [local_update(u).gradient for u in updates]
        self.strides = [
            g.stride() if is_dense(g) else w.stride()
            for g, w in zip(gradients, self.weights, strict=True)
        ]
        self.facts = [tuple(facts_of(weight).values()) for weight in self.weights]
        #: Shown each wave after its passes, with its arena and the totals of each tensor.
        self.watch: Callable[[Wave, Tensor, list[list[float]]], None] | None = None
        self.waves = [self._wave(tensors) for tensors in self._divided()]

    def _divided(self) -> list[list[int]]:
        """The tensors in waves, empty ones left out."""
        groups: dict[Any, list[int]] = {}
        has_calls = any(stage.calls for stage in self.kernel.stages)
        for i, weight in enumerate(self.weights):
            if weight.numel():
                key = (weight.shape, weight.stride(), self.strides[i]) if has_calls else None
                groups.setdefault(key, []).append(i)
        waves: list[list[int]] = []
        if self.kernel.sums_over_all:  # all wait for each other
            return [[i for tensors in groups.values() for i in tensors]] if groups else []
        for tensors in groups.values():
            held = WAVE + 1
            for i in tensors:
                held += self.weights[i].numel()
                if held > WAVE:
                    waves.append([])
                    held = self.weights[i].numel()
                waves[-1].append(i)
        return waves

    def _wave(self, tensors: list[int]) -> Wave:
        kernel, wave = self.kernel, Wave(tensors)
        weights = [self.weights[i] for i in tensors]
        offsets: dict[tuple[int, int], int] = {}
        position = {id(owner): p for p, owner in enumerate(kernel.places.owners)}

        def place(owner: Node, sizes: list[int]) -> None:
            wave.bytes = -(-wave.bytes // 64) * 64
            for row, size in enumerate(sizes):
                offsets[position[id(owner)], row] = wave.bytes
                wave.bytes += size

        for stage in kernel.stages:
            each = stage.each
            cuts = [kernel.geometry(weight, each.domain) for weight in weights]
            numbers = array("q")
            for row, (tensor, cut) in enumerate(zip(tensors, cuts, strict=True)):
                numbers.extend(cut.tiles(tensor, row))
            elements = sum(c.flat or c.outer * c.middle * c.inner for c in cuts)
            wave.tiles.append((numbers, sum(c.count() for c in cuts), elements))
            for node, owner in each.keeps:
                item = ITEM_BYTES[kept_storage(owner, kernel.working)]
                place(owner, [item * _length(w, node.extent) for w in weights])
                if owner.operation == "opaque":
                    own = [offsets[position[id(owner)], row] for row in range(len(weights))]
                    wave.batches[id(owner)] = own
            joins: list[tuple[str, int, int, int]] = []
            for node in each.sums:
                if node.extent == "tensor":
                    place(node, [8 * cut.count() for cut in cuts])
                else:
                    parts = [
                        cut.middle_tiles()
                        if each.domain == "element" and node.extent == "column"
                        else cut.inner_tiles()
                        for cut in cuts
                    ]
                    lengths = [_length(w, node.extent) for w in weights]
                    place(node, [8 * p * n for p, n in zip(parts, lengths, strict=True)])
                starts = [offsets[position[id(node)], row] for row in range(len(weights))]
                if node.extent == "tensor":
                    counts = [cut.count() for cut in cuts]
                    wave.totals[id(node)] = list(zip(starts, counts, strict=True))
                else:
                    for start, count, length in zip(starts, parts, lengths, strict=True):
                        if count > 1:
                            joins.append((node.operation, start, count, length))
            wave.joins.append(joins)
        keys = [
            (w.shape, w.stride(), self.strides[i]) for w, i in zip(weights, tensors, strict=True)
        ]
        for row, key in enumerate(keys):
            if row and key == keys[row - 1]:
                wave.alike[-1] = range(wave.alike[-1].start, row + 1)
            else:
                wave.alike.append(range(row, row + 1))
        for row in range(len(tensors)):
            wave.places.extend(offsets.get((p, row), 0) for p in range(len(kernel.places.owners)))
        return wave

    def launch(
        self,
        flat: list[Any],
        pointers: array[int],
        values: Sequence[float],
        firsts: Sequence[bool] | None = None,
    ) -> StagedLaunch:
        """Do all that may fail, and return what makes the step.

        Args:
            flat, pointers: from :meth:`fits` or :meth:`located`.
            values: the numbers, in the order of ``number_names``.
            firsts: for each weight whether its states are new; None for none.
        """
        n = len(self.weights)
        self.relay(flat, pointers)
        numbers = array("d")
        if self.number_states is not None:
            numbers = self.number_states.read(pointers.buffer_info()[0] + 16 * n)
        width = len(numbers) // n
        rows = []
        for i in range(n):
            given = self._given(numbers[width * i : width * (i + 1)])
            first = float(firsts is not None and firsts[i])
            rows.append((*given, first, *values, *self.facts[i]))
        return StagedLaunch(self, flat, pointers, rows)


def _length(weight: Tensor, extent: str) -> int:
    """How many values there are of an extent."""
    if extent == "element":
        return weight.numel()
    rows, columns = weight.shape[-2:]
    matrices = weight.numel() // max(1, rows * columns)
    return matrices * {"row": rows, "column": columns, "matrix": 1}[extent]


class StagedLaunch:
    """One step of a :class:`StagedPart`, with everything checked."""

    __slots__ = ("_flat", "_part", "_pointers", "_rows")

    def __init__(
        self,
        part: StagedPart,
        flat: list[Any],
        pointers: array[int],
        rows: list[tuple[float, ...]],
    ) -> None:
        self._part = part
        self._flat = flat
        self._pointers = pointers
        self._rows = rows

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
            rows = [row if len(row) == whole else (*row, *empty) for row in self._rows]
            after = array("d", chain.from_iterable(kernel.after(rows)))
            at = self._pointers.buffer_info()[0] + 16 * len(part.weights)
            part.number_states.write(at, after.buffer_info()[0], len(after) // len(self._rows))
        _increment_version(part.owners)

    def _close(self, done: list[int]) -> None:
        """A function has raised: bring those to an end that had gone through all passes."""
        part = self._part
        start, width = 2 * len(part.weights), part.row_width
        for i in done:
            row = self._flat[start + width * i : start + width * (i + 1)]
            numbers = row[width - part.number_count :]
            (made,) = part.kernel.after([self._rows[i]])
            for number, after in zip(numbers, made, strict=False):
                number.fill_(after)
        if done:
            _increment_version([part.owners[i] for i in done])

    def _run_wave(self, wave: Wave) -> Generator[float, float, list[float]]:
        """Make the step of a wave, and return the sums over all parameters."""
        over_all: list[float] = []
        kernel = self._part.kernel
        arena = torch.empty(wave.bytes + 64, dtype=torch.uint8)
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
                    values = []
                    for start, count in wave.totals[id(node)]:
                        parts = view[start : start + 8 * count].view(numpy.float64)
                        values.append(_joined(node.operation, parts))
                    if node.operation == "global_sum":
                        total = yield together.exact_sum(values)
                        over_all.append(total)
                        values = [total] * len(values)
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
        start, width = 2 * len(part.weights), part.row_width
        return {
            id(before): [
                self._flat[start + width * i + part.state_names.index(name)] for i in wave.tensors
            ]
            for name, before, _ in part.kernel.own_states
        }

    def _known(self, wave: Wave, totals: list[list[float]]) -> list[tuple[float, ...]]:
        """The tensors' numbers, as far as they are there yet."""
        return [(*self._rows[i], *own) for i, own in zip(wave.tensors, totals, strict=True)]

    def _run_stage(
        self, wave: Wave, number: int, memory: Tensor, totals: list[list[float]]
    ) -> None:
        part, stage = self._part, self._part.kernel.stages[number]
        rows = stage.row(self._known(wave, totals))
        numbers = array("d", chain.from_iterable(rows))
        tiles, count, elements = wave.tiles[number]
        counter = array("q", [0])
        arguments = (
            self._pointers.buffer_info()[0],
            len(part.weights),
            part.row_width,
            memory.data_ptr(),
            wave.places.buffer_info()[0],
            len(wave.places) // len(wave.tensors),
            tiles.buffer_info()[0],
            count,
            numbers.buffer_info()[0],
            stage.row.width,
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
            # A function leaves alone what it does not return.
            tensors[0].unsqueeze(0)
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
        weight = self._part.weights[first]
        size, count = weight.numel(), len(alike)
        storage = kept_storage(node, self._part.kernel.working)
        start, item = wave.batches[id(node)][alike.start], ITEM_BYTES[storage]
        whole = memory[start : start + item * size * count].view(getattr(torch, storage))
        batch = whole.as_strided((count, *weight.shape), (size, *weight.stride()))
        strides = self._part.strides[first]
        given = batch
        if strides != weight.stride():
            given = torch.empty_strided(batch.shape, (size, *strides), dtype=batch.dtype)
            given.copy_(batch)
        return batch, given


def _joined(operation: str, parts: Any) -> float:
    """Partial outcomes in one: the exact sum, rounded once, or the largest."""
    if operation == "max":
        return float(parts.max()) if len(parts) else math.nan
    return together.exact_sum(parts.tolist())


def staged_kernel(
    graph: Graph, dtype: torch.dtype, number_names: Sequence[str], kernels: dict[Any, Any]
) -> StagedKernel:
    """The kernel for weights of a dtype, from ``kernels`` if it is there."""
    key = (id(graph), STORAGE[dtype][0])
    if key not in kernels:
        kernels[key] = StagedKernel(graph, STORAGE[dtype][0], number_names)
    return kernels[key]
