"""Runs: what writes. A step of a binding's tensors, with everything checked and prepared."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Generator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

from gradstep.backends import global_sums
from gradstep.backends.cpu import team, threads
from gradstep.backends.cpu.buckets import Bucket
from gradstep.backends.cpu.kernel import Due
from gradstep.backends.owners import Replica, goes_to_owner
from gradstep.backends.sharing import Call
from gradstep.program.kernel_spec import ITEM_BYTES, kept_storage
from gradstep.program.scalars import ScalarRows
from gradstep.rule.graph import Node
from gradstep.rule.opaque import Opaque

if TYPE_CHECKING:
    from gradstep.backends.cpu.binding import Tensors

#: Elements a pass from which more than one thread is worth its while. Handing work to another
#: thread takes 30 to 60 µs here, which is what one thread needs for about 200,000 elements of Adam.
PARALLEL = 1 << 18
#: Elements of a parameter's own states from which a function gets it alone: to lay them beside
#: others' takes longer than one more call (50 µs).
_LARGE = 1 << 16

# Bound once: in a cold cache every look-up on the way costs as much as the work.
_increment_version = torch.autograd.graph.increment_version


def run_pass(kernel: Any, arguments: Sequence[int], elements: int, tiles: int) -> None:
    """Run a pass's machine code, in several threads where it is worth their while."""
    count = 1 if elements < PARALLEL or tiles < 2 else torch.get_num_threads()
    if count < 2:
        kernel(*arguments)
    elif (lend := team.lent()) is not None:
        # All of the team, or OpenMP would end some for torch to begin them anew.
        lend(kernel, arguments, count)
    else:
        threads.run(lambda: kernel(*arguments), min(count, tiles))


class FlatRun:
    """One step of a flat program's tensors, with everything checked and worked out.

    Holds on to all memory that the kernel reads and writes.
    """

    __slots__ = ("_arguments", "_kept", "_owners", "binding")

    def __init__(
        self,
        binding: Tensors,
        owners: Sequence[Tensor],
        flat: list[Any],
        pointers: array[int],
        scalars: array[float],
        distance: int,
    ) -> None:
        self.binding = binding
        self._owners = owners
        self._kept = (flat, pointers, scalars)
        at, count = pointers.buffer_info()
        self._arguments = (
            at, scalars.buffer_info()[0], distance, at + 8 * (count - 1), binding.fixed_at,
        )  # fmt: skip

    def __call__(self) -> None:
        """Make the step: weights, states and step counts."""
        binding = self.binding
        self.run_kernel()
        if binding.number_states is not None:
            at, scalars_at, distance, _, _ = self._arguments
            behind = scalars_at + 8 * binding.kernel.read_by_pass
            binding.number_states.write(at + 16 * binding.count, behind, distance)
        # Tell autograd that the weights were written, as torch's own operations do.
        _increment_version(self._owners)

    def run_kernel(self) -> None:
        """The pass over memory alone."""
        binding = self.binding
        self._kept[1][-1] = 0
        if binding.elements < PARALLEL:  # as run_pass does: every call counts here
            binding.kernel.run(*self._arguments)
        else:
            run_pass(binding.kernel.run, self._arguments, binding.elements, binding.tile_count)


class PassesRun:
    """One step of a program's tensors, pass after pass, with everything checked.

    ``alike`` says that all tensors have the same step count and the same states of one number.
    """

    __slots__ = ("_alike", "_flat", "_pointers", "_rows", "binding", "owners")

    def __init__(
        self,
        binding: Tensors,
        owners: Sequence[Tensor],
        flat: list[Any],
        pointers: array[int],
        rows: list[tuple[float, ...]],
        alike: bool,
    ) -> None:
        self.binding = binding
        self.owners = owners
        self._flat = flat
        self._pointers = pointers
        self._rows = rows
        self._alike = alike

    @property
    def rounds(self) -> Callable[[], global_sums.Rounds] | None:
        """What makes the step together with others, where it waits for weights or processes."""
        # Not an attribute: a run that held a method of its own would be a cycle.
        return self._make if self._waits else None

    @property
    def _waits(self) -> bool:
        return bool(self.binding.kernel.sums_over_all) or self.binding.mesh is not None

    def __call__(self) -> None:
        """Make the step: weights, states and step counts."""
        if self._waits:
            global_sums.run([self])
        else:
            self._alone()

    def _alone(self) -> None:
        with torch.no_grad():
            for _ in self._make():
                raise AssertionError("a rule without sums over all parameters asked for one")

    def _make(self) -> global_sums.Rounds:
        binding, kernel = self.binding, self.binding.kernel
        over_all: list[float] = []
        if kernel.sums_over_all and not binding.buckets:
            for _ in range(kernel.sums_over_all):
                over_all.append((yield 0.0))
        done: list[int] = []
        try:
            if binding.mesh is not None and not kernel.sums_over_all:
                yield from self._side_by_side(done)
            else:
                for bucket in binding.buckets:
                    over_all = yield from self._run_bucket(bucket)
                    done += bucket.tensors
        except Exception:
            self._close(done)
            raise
        if binding.number_states is not None:
            # A tensor without elements has no totals but those over all parameters.
            sums = iter(over_all)
            empty = [next(sums) if n.operation == "global_sum" else 0.0 for n in kernel.totals]
            whole = len(kernel.inputs)
            common = self._alike and kernel.after.is_common
            rows = self._rows[:1] if common else self._rows
            rows = [row if len(row) == whole else (*row, *empty) for row in rows]
            after = array("d", chain.from_iterable(kernel.after(rows)))
            at = self._pointers.buffer_info()[0] + 16 * binding.count
            distance = 0 if common else kernel.after.width
            binding.number_states.write(at, after.buffer_info()[0], distance)
        _increment_version(self.owners)

    def _side_by_side(self, done: list[int]) -> global_sums.Rounds:
        """Make the step of all buckets, whose functions wait for other processes, at once.

        One after the other each bucket's matrices would be one process's work while the others
        wait. It takes the memory of all that is kept between passes.
        """
        buckets = self.binding.buckets
        waiting = [(bucket, self._run_bucket(bucket)) for bucket in buckets]
        told: list[Any] = [None] * len(waiting)
        while waiting:
            asking, calls = [], []
            for (bucket, each), value in zip(waiting, told, strict=True):
                try:
                    calls.append(each.send(value))
                    asking.append((bucket, each))
                except StopIteration:
                    done += bucket.tensors
            waiting = asking
            if waiting:
                made = iter((yield [call for of_bucket in calls for call in of_bucket]))
                told = [list(islice(made, len(of_bucket))) for of_bucket in calls]

    def _close(self, done: list[int]) -> None:
        """A function has raised: bring those to an end that had gone through all passes."""
        binding = self.binding
        start, width = 2 * binding.count, binding.row_width
        for i in done:
            row = self._flat[start + width * i : start + width * (i + 1)]
            numbers = row[width - binding.number_count :]
            (made,) = binding.kernel.after([self._rows[i]])
            for number, after in zip(numbers, made, strict=False):
                number.fill_(after)
        if done:
            _increment_version([self.owners[i] for i in done])

    def _run_bucket(self, bucket: Bucket) -> Generator[Any, Any, list[float]]:
        """Make the step of a bucket, and return the sums over all parameters."""
        over_all: list[float] = []
        binding, kernel = self.binding, self.binding.kernel
        arena = torch.empty(bucket.bytes + 64, dtype=torch.uint8, device="cpu")
        shift = -arena.data_ptr() % 64
        memory = arena[shift : shift + bucket.bytes]
        view = memory.numpy()
        totals: list[list[float]] = [[] for _ in bucket.tensors]
        own = self._own_states(bucket)
        due: dict[Due, bool] = {}
        for number, stage in enumerate(kernel.stages):
            if stage.due is not None and not binding.probes:  # which show sums that nobody needs
                if stage.due not in due:
                    due[stage.due] = stage.due([self._rows[i] for i in bucket.tensors])
                if not due[stage.due]:
                    for found in totals:  # any number will do, but 0 might be divided by
                        found += [1.0] * stage.totals
                    continue
            if stage.run is not None:
                self._run_stage(bucket, number, memory, totals)
            for operation, start, count, length in bucket.joins[number]:
                parts = view[start : start + 8 * count * length].view(numpy.float64)
                parts = parts.reshape(count, length)
                if operation == "max":
                    parts[0] = parts.max(axis=0)
                else:  # one after the other: of single numbers NumPy's own sum goes by pairs
                    for part in parts[1:]:
                        parts[0] += part
            for node in stage.each.sums:
                if node.extent == "tensor":
                    places = bucket.totals[id(node)]
                    if node.operation == "global_sum":  # the tensors' parts lie side by side
                        end = places[-1][0] + 8 * places[-1][1]
                        parts = view[places[0][0] : end].view(numpy.float64)
                        total = yield global_sums.exact_sum(parts.tolist())
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
                if binding.mesh is not None and goes_to_owner(node):
                    yield from self._ask_owners(bucket, node, work_out, memory, totals)
                else:
                    self._call(bucket, node, work_out, memory, totals, own)
        held = {id(t) for _, before, _ in kernel.own_states for t in own[id(before)]}
        written = [
            # What a function that was not due has left may be another's state by its name.
            (state, made.clone() if id(made) in held else made)
            for _, before, after in kernel.own_states
            for state, made in zip(own[id(before)], own[id(after)], strict=True)
            if made is not state
        ]
        for state, made in written:
            state.copy_(made)
        for tensor, found in zip(bucket.tensors, totals, strict=True):
            self._rows[tensor] = (*self._rows[tensor], *found)
        for probe in self.binding.probes:
            probe.look(self.binding, bucket, memory, totals)
        return over_all

    def _own_states(self, bucket: Bucket) -> dict[int, list[Tensor]]:
        """The states of a shape of their own, by their nodes; functions add what they make."""
        binding = self.binding
        start, width = 2 * binding.count, binding.row_width
        return {
            id(before): [
                self._flat[start + width * i + binding.state_names.index(name)]
                for i in bucket.tensors
            ]
            for name, before, _ in binding.kernel.own_states
        }

    def _known(
        self, bucket: Bucket, totals: list[list[float]], count: int | None = None
    ) -> list[tuple[float, ...]]:
        """The numbers of the first so many tensors, or of all, as far as they are there yet."""
        tensors = bucket.tensors[:count]
        return [(*self._rows[i], *own) for i, own in zip(tensors, totals, strict=False)]

    def _run_stage(
        self, bucket: Bucket, number: int, memory: Tensor, totals: list[list[float]]
    ) -> None:
        binding, stage = self.binding, self.binding.kernel.stages[number]
        common = self._alike and stage.row.is_common
        rows = stage.row(self._known(bucket, totals, 1 if common else None))
        numbers = array("d", chain.from_iterable(rows))
        tiles, count, elements = bucket.tiles[number]
        counter = array("q", [0])
        fixed = (
            binding.count,
            binding.row_width,
            memory.data_ptr(),
            bucket.places.buffer_info()[0],
            len(bucket.places) // len(bucket.tensors),
            tiles.buffer_info()[0],
            count,
        )
        block = array("q", fixed)
        arguments = (
            self._pointers.buffer_info()[0],
            numbers.buffer_info()[0],
            0 if common else stage.row.width,
            counter.buffer_info()[0],
            block.buffer_info()[0],
        )
        run_pass(stage.run, arguments, elements, count)

    def _call(
        self,
        bucket: Bucket,
        node: Node,
        work_out: ScalarRows,
        memory: Tensor,
        totals: list[list[float]],
        own: dict[int, list[Tensor]],
    ) -> None:
        rows = work_out(self._known(bucket, totals))
        parts = self.binding.kernel.parts.get(id(node), [])
        own.update({id(made): [] for made in parts})
        for alike in bucket.alike:
            span = slice(alike.start, alike.stop)
            taken = [own[id(a)][span] for a in node.arguments if a.extent == "own"]
            results = self._call_batch(bucket, node, memory, alike, rows[span], taken)
            for made in parts:
                own[id(made)] += results[made.value]

    def _ask_owners(
        self,
        bucket: Bucket,
        node: Node,
        work_out: ScalarRows,
        memory: Tensor,
        totals: list[list[float]],
    ) -> Generator[Any, Any, None]:
        """Have a function called by one process for each tensor, for all."""
        rows = work_out(self._known(bucket, totals))
        calls: list[Call] = []
        places: list[Tensor] = []
        for alike in bucket.alike:
            batch, given = self._batch(bucket, node, memory, alike)
            for place, part, to, row in zip(alike, given, batch, rows[alike.start :], strict=False):
                tensor = bucket.tensors[place]
                like = Replica(self.binding.mesh, tuple(part.shape), part.device)
                if not node.value.is_due(row):
                    continue
                part = part.to(node.value.travels_as(part))
                calls.append(Call(node.value, part, like, row, self.binding.names[tensor]))
                places.append(to)
        for to, made in zip(places, (yield calls), strict=True):
            to.copy_(made[0])

    def _call_batch(
        self,
        bucket: Bucket,
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
        batch = whole = None
        if node.extent == "element":
            batch, whole = self._batch(bucket, node, memory, alike)
        first = int(batch is not None)
        together = all(row == rows[0] for row in rows)
        if together and sum(tensors[0].numel() for tensors in own) < _LARGE:
            spans = [slice(0, len(rows))]
        else:
            spans = [slice(i, i + 1) for i in range(len(rows))]
        made: dict[int, list[Tensor]] = {place: [] for place in function.returns}
        for span in spans:
            row = rows[span.start]
            if not function.is_due(row):
                for place, tensors in enumerate(own, start=first):
                    if place in made:
                        made[place] += tensors[span]
                continue
            given = [] if whole is None else [whole[span]]
            given += [
                # A function leaves alone what it does not return. What another has made may lie in
                # any order, on which the last bits of a matrix product depend.
                tensors[span.start].unsqueeze(0).contiguous()
                if span.stop - span.start == 1 and place not in function.returns
                else torch.stack(tensors[span])
                for place, tensors in enumerate(own, start=first)
            ]
            results = function.on_batch(*given, *row)
            if batch is not None and function.returns[0] == 0:
                # It may be a view of what the function got, which torch does not copy onto itself.
                seen = (
                    results[0].untyped_storage().data_ptr() == memory.untyped_storage().data_ptr()
                )
                batch[span].copy_(results[0].clone() if seen else results[0])
            for place, result in zip(function.returns, results, strict=True):
                made[place] += list(result)
        return made

    def _batch(
        self, bucket: Bucket, node: Node, memory: Tensor, alike: range
    ) -> tuple[Tensor, Tensor]:
        """Where the tensors of a batch lie, and what the function gets."""
        first = bucket.tensors[alike.start]
        weight = self._flat[first]
        size, count = weight.numel(), len(alike)
        storage = kept_storage(node, self.binding.kernel.working)
        start, item = bucket.batches[id(node)][alike.start], ITEM_BYTES[storage]
        whole = memory[start : start + item * size * count].view(getattr(torch, storage))
        batch = whole.as_strided((count, *weight.shape), (size, *weight.stride()))
        strides = self.binding.strides[first]
        given = batch
        if strides != weight.stride():
            given = batch.new_empty_strided(batch.shape, (size, *strides))
            given.copy_(batch)
        return batch, given


def _joined(operation: str, parts: Any) -> float:
    """Partial outcomes in one: the exact sum, rounded once, or the largest."""
    if operation == "max":
        return float(parts.max()) if len(parts) else math.nan
    return global_sums.exact_sum(parts.tolist())
