"""Rules that sum over rows, columns or a tensor, on a device: pass after pass, no wait between.

What a pass leaves lies where it lies on the CPU (:mod:`gradstep.backends.cpu.buckets`), in the
device's memory: the parts of sums are joined there, and rows of numbers that hang on sums are
worked out there. So the host gives all launches of a step away at once.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy
from torch import Tensor

from gradstep.backends.base import Run, Values
from gradstep.backends.cpu.buckets import Bucket
from gradstep.backends.cuda.binding import DeviceKernel, DeviceTensors, increment_version
from gradstep.backends.cuda.device_copy import DeviceCopy, Transfer
from gradstep.backends.cuda.driver import Arguments
from gradstep.backends.llvm.grid import THREADS
from gradstep.backends.llvm.grid_joins import TOTALS_FIELDS
from gradstep.backends.table import Row
from gradstep.backends.update import Update
from gradstep.rule.graph import FACTS


class DevicePasses(DeviceTensors):
    """Tensors that go through the passes of one kernel on a device, all together.

    Where states of one number lie on the CPU, the device gets copies of them in their storage
    types, and the host writes what becomes of them: it hangs on no sum.
    """

    def __init__(
        self, kernel: DeviceKernel, of: Sequence[Update] | Sequence[Row], weights: Sequence[Tensor]
    ) -> None:
        super().__init__(kernel, of, weights)
        self.refuse_first_in_capture()
        driver, index = kernel.driver, kernel.index
        (bucket,) = self.buckets
        self._tables = list(_tables(kernel, bucket, self.facts))
        sizes = [len(each) for each in self._tables]
        self._fixed_there = DeviceCopy(driver, index, sizes)
        self._arena = driver.memory(index, bucket.bytes + 64)
        self._is_narrow = [kind == "float32" for _, kind in kernel.numbers]

    def memories(self) -> list[Tensor]:
        return [*super().memories(), self._arena]

    def _divided(self, weights: Sequence[Tensor]) -> list[list[int]]:
        return [list(range(len(weights)))]

    def prepare(self, values: Values) -> Run:
        owners, flat, pointers, firsts = self._take_accepted()
        kernel, states, n = self.kernel, self.number_states, self.count
        there, found_inf = self._there(values)
        of_host = states is not None and not self.numbers_there
        if of_host:  # whose own step counts could not be held back
            there, found_inf = {}, None
        known = self._known(values, there)
        begun = [0.0] * n if firsts is None else list(map(float, firsts))
        width = self.number_count if of_host else 0
        sizes = [len(pointers), len(kernel.names), n, len(kernel.names), n * width]
        copy = self._copy_of(sizes)
        table, after = pointers, array("d")
        own = array("d")
        if of_host and states is not None:
            at = pointers.buffer_info()[0] + 16 * n
            own = states.read(at)
            table = self._with_copies(pointers, copy.at[-1])
            rows = [own[width * i : width * (i + 1)] for i in range(n)]
            heads = [
                (*self._given(row), first, *known) for row, first in zip(rows, begun, strict=True)
            ]
            facts = zip(heads, self.facts, strict=True)
            after = array("d", chain.from_iterable(kernel.after([h + f for h, f in facts])))
        arrays: tuple[array[Any], ...] = (
            table,
            array("q", [there[m].data_ptr() if m in there else 0 for m in kernel.names]),
            array("d", begun),
            array("d", known),
            self._slots(own),
        )
        self._make_rows()
        run = PassesLaunch(self, owners, copy, copy.stage(arrays))
        run.kept = (flat, pointers, after, there, found_inf)
        run.works_out = kernel.works_out(self._stored(there))
        if found_inf is not None:
            run.skip, run.skips = found_inf.data_ptr(), True
        return run

    def _with_copies(self, pointers: array[int], at: int) -> array[int]:
        """The table, with the copies of states of one number in the place of these."""
        n, width, own = self.count, self.row_width, self.number_count
        made = numpy.array(pointers, numpy.int64)
        rows = made[2 * n : 2 * n + n * width].reshape(n, width)
        rows[:, width - own :] = at + 8 * numpy.arange(n * own).reshape(n, own)
        return array("q", made.tobytes())

    def _slots(self, own: array[float]) -> array[int]:
        """States of one number as they are stored, eight bytes apart."""
        if not own:
            return array("q")
        numbers = numpy.array(own, numpy.float64).reshape(self.count, -1)
        slots = numbers.view(numpy.int64).copy()
        narrow = numbers.astype(numpy.float32).view(numpy.uint32)
        for column, is_narrow in enumerate(self._is_narrow):
            if is_narrow:
                slots[:, column] = narrow[:, column]
        return array("q", slots.tobytes())

    def sums_of(self, number: int) -> int:
        """How many totals a pass leaves."""
        return len(self._tables[3 + 3 * number]) // len(TOTALS_FIELDS)

    def tables_at(self, stream: int) -> list[int]:
        """Where the tables lie on the device; they are sent once."""
        transfer = self._fixed_there.stage(self._tables)
        if transfer is not None:
            transfer(stream)
        return self._fixed_there.at

    @property
    def arena_at(self) -> int:
        """Where what is kept between passes lies."""
        at = self._arena.data_ptr()
        return at + -at % 64


def _tables(
    kernel: DeviceKernel, bucket: Bucket, facts: Sequence[tuple[float, ...]]
) -> Sequence[array[Any]]:
    """What is the same in every step: places; of each pass tiles, joins and totals; rows of facts.

    The rows of facts have room for totals behind, which the device fills.
    """
    found: list[array[Any]] = [bucket.places]
    width = len(kernel.more)
    number = 0
    for stage, (tiles, _, _), joins in zip(kernel.stages, bucket.tiles, bucket.joins, strict=True):
        folds = array("q")
        for operation, start, count, length in joins:
            folds.extend((int(operation == "max"), start, count, length))
        totals = array("q")
        for node in stage.each.sums:
            if node.extent != "tensor":
                continue
            for row, (start, count) in enumerate(bucket.totals[id(node)]):
                out = row * width + len(FACTS) + number
                totals.extend((int(node.operation == "max"), start, count, out, 1, 0))
            number += 1
        found += [tiles, folds, totals]
    more = array("d")
    for own in facts:
        more.extend((*own, *[0.0] * number))
    return [*found, more]


class PassesLaunch:
    """One step of the tensors of a binding, all of whose launches go out at once.

    Attributes:
        kept: all tensors, where they lie, what becomes of states of one number, and what lies on
            the device: held until it is launched.
        works_out: what works out the rows of numbers, pass by pass.
        skip, skips: as of :class:`gradstep.backends.cuda.binding.Launch`.
    """

    __slots__ = ("_copy", "_owners", "_transfer", "binding", "kept", "skip", "skips", "works_out")

    def __init__(
        self,
        binding: DevicePasses,
        owners: Sequence[Tensor],
        copy: DeviceCopy,
        transfer: Transfer | None,
    ) -> None:
        self.binding, self._owners = binding, owners
        self._copy, self._transfer = copy, transfer
        self.kept: tuple[Any, ...] = ()
        self.works_out: Sequence[Any] = ()
        self.skip, self.skips = 0, False

    def __call__(self) -> None:
        """Make the step: weights, states and step counts."""
        binding, kernel = self.binding, self.binding.kernel
        driver, index = kernel.driver, kernel.index
        stream = driver.stream(index)
        binding.runs_on(stream)
        if self._transfer is not None:
            self._transfer(stream)
        places, *fixed, more = binding.tables_at(stream)
        n, width = binding.count, binding.row_width
        table, given, firsts, numbers, _ = self._copy.at
        rows, arena = binding.rows_there.data_ptr(), binding.arena_at  # type: ignore[union-attr]
        (bucket,) = binding.buckets
        places_width = len(bucket.places) // n

        def launch(function: Any, blocks: int, *arguments: int) -> None:
            blocks = min(blocks, kernel.most_blocks)
            given = Arguments((*arguments, self.skip, blocks))
            driver.launch(index, function, blocks, THREADS, stream, given)

        def work_out(number: int) -> None:
            function = self.works_out[number]
            if function is not None:
                blocks = -(-n // THREADS)
                launch(function, blocks, table, n, width, numbers, given, firsts, more, rows)

        for number, stage in enumerate(kernel.stages):
            tiles, folds, totals = fixed[3 * number : 3 * number + 3]
            _, count, _ = bucket.tiles[number]
            if stage.run is not None and count:
                work_out(kernel.row_of[number])
                distance = len(kernel.rows[kernel.row_of[number]][0])
                launch(
                    stage.run, count,
                    table, rows, distance, n, width, arena, places, places_width, tiles, count,
                )  # fmt: skip
            joins = len(bucket.joins[number])
            if joins:
                launch(kernel.fold, joins, arena, folds, joins)
            sums = binding.sums_of(number)
            if sums:
                launch(kernel.totals_kernel, -(-sums // THREADS), arena, totals, sums, more)
        if binding.number_states is not None:
            if binding.numbers_there:
                work_out(len(kernel.rows) - 1)
            else:
                _, pointers, after, *_ = self.kept
                at = pointers.buffer_info()[0] + 16 * n
                binding.number_states.write(at, after.buffer_info()[0], kernel.after.width)
        increment_version(self._owners)
