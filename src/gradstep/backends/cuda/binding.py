"""Tensors of a group bound to the kernel that updates them on a device.

As on the CPU (:mod:`gradstep.backends.cpu.binding`): the same table of addresses, the same rows of
numbers, worked out on the host. Both go up to the device where they changed, and one launch makes
the step of all tensors.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradstep.backends.base import Run, UnreadValues, Values
from gradstep.backends.cpu.binding import Tensors
from gradstep.backends.cpu.kernel import STEP, Kernel
from gradstep.backends.cuda.code import TARGET
from gradstep.backends.cuda.device_copy import DeviceCopy, Transfer
from gradstep.backends.cuda.driver import Arguments, Driver
from gradstep.backends.cuda.images import Images
from gradstep.backends.llvm.grid import THREADS
from gradstep.backends.llvm.grid_walk import ARGUMENTS, chunks
from gradstep.backends.table import Row
from gradstep.backends.update import Update
from gradstep.program.format import Format
from gradstep.program.kernel_spec import KernelSpec
from gradstep.program.numbers_spec import NumbersSpec
from gradstep.program.program import Program
from gradstep.program.scalars import TotalsAsInputs
from gradstep.program.walks import FIELDS
from gradstep.program.weight_formats import WeightFormat
from gradstep.rule.graph import FACTS, Node

#: Tells autograd that tensors were written, as torch's own operations do.
increment_version = torch.autograd.graph.increment_version

_SCALARS, _DISTANCE, _SKIP = map(ARGUMENTS.index, ("scalars", "distance", "skip"))

#: What graphs were captured with. They may be replayed as long as the process lives, whatever
#: becomes of the optimizer.
_captured: list[tuple[Any, ...]] = []


class DeviceKernel(Kernel):
    """The kernel of a flat program on one device.

    Args:
        images: of the device's driver.
        index: the device.
        numbers: name and storage type of a weight's states of one number, the step count last.
        on_device: whether those lie on the device.

    Attributes:
        driver: the device's.
        most_blocks: as many as run at once.
        specs: of its passes.
        names: of lr and the numeric hyperparameters, in the order of a step's numbers.
        more: names of what rows are made of beside: facts of a weight, and its sums.
        width: of the longest row of numbers.
    """

    def __init__(
        self,
        program: Program,
        storage: str,
        formats: Mapping[str, Format],
        weight_format: WeightFormat | None,
        seed: int,
        images: Images,
        index: int,
        numbers: tuple[tuple[str, str], ...] = (),
        on_device: bool = False,
    ) -> None:
        self.images, self.driver, self.index = images, images.driver, index
        self.on_device, self.names = on_device, tuple(program.names)
        facts = self.driver.facts(index)
        self.most_blocks = facts.processors * max(1, facts.threads // THREADS)
        self.specs: list[KernelSpec] = []

        def loaded(spec: KernelSpec) -> Any:
            self.specs.append(spec)
            return images.function(index, spec)

        super().__init__(program, storage, formats, weight_format, seed, TARGET, loaded)
        self.numbers = numbers
        after = (*(node for _, _, node in program.contracted.numbers), STEP)
        #: Of each row that is worked out: its numbers, and how many stand before new states.
        self.rows: list[tuple[tuple[Node, ...], int]] = []
        self.more: tuple[str, ...] = ()
        if program.is_flat:
            scalars = self.specs[0].scalars
            self.rows = [((*scalars, *after), len(scalars))]
        else:
            self.more = (*FACTS, *(f"total {i}" for i in range(len(self.totals))))
            as_host = TotalsAsInputs(self.totals)
            scalars_of = [tuple(map(as_host, each.scalars)) for each in self.specs]
            made = [(scalars, len(scalars)) for scalars in scalars_of]
            self.rows = [*made, (tuple(map(as_host, after)), 0)]
            runs = iter(range(len(self.specs)))
            #: Of each pass its row; passes that only call a function have none.
            self.row_of = [-1 if s.run is None else next(runs) for s in self.stages]
            folds = any(n.extent != "tensor" for s in self.stages for n in s.each.sums)
            self.fold = images.joins(index, "fold") if folds else None
            self.totals_kernel = images.joins(index, "totals") if self.totals else None
        self.width = max(len(nodes) for nodes, _ in self.rows)
        self._functions: dict[tuple[str, ...], list[Any]] = {}

    def works_out(self, stored: tuple[str, ...]) -> list[Any]:
        """What works out each of ``rows`` on the device; None for a row of nothing.

        Args:
            stored: the storage type of each of ``names``, where it lies on the device.
        """
        found = self._functions.get(stored)
        if found is None:
            named = tuple(zip(self.names, stored, strict=True))
            found = []
            for nodes, behind in self.rows:
                spec = NumbersSpec(TARGET, nodes, behind, self.numbers, named, self.more)
                found.append(self.images.numbers(self.index, spec) if nodes else None)
            self._functions[stored] = found
        return found


class DeviceTensors(Tensors):
    """The tensors that one kernel updates on a device.

    Numbers that lie on the device are not read by the host: a kernel before the pass works out the
    rows.

    Attributes:
        numbers_there: whether states of one number lie on the device.
        rows_there: on the device, the rows that were worked out there; None before there are any.
    """

    kernel: DeviceKernel

    def __init__(
        self, kernel: DeviceKernel, of: Sequence[Update] | Sequence[Row], weights: Sequence[Tensor]
    ) -> None:
        self.numbers_there = kernel.on_device
        self.rows_there: Tensor | None = None
        self._copy: DeviceCopy | None = None
        self._by_host: DeviceCopy | None = None  # the same, where it has rows of the host's
        self._for_capture: DeviceCopy | None = None
        self._sizes: list[int] = []
        self._streams: set[int] = set()
        self._arguments: dict[int, Arguments] = {}
        super().__init__(kernel, of, weights)
        self._no_firsts = array("d", bytes(8 * self.count))

    def _lay_flat(self, sizes: Sequence[int]) -> None:
        kernel = self.kernel
        self.elements = sum(sizes)
        self.tiles = chunks(sizes)
        self.tile_count = len(self.tiles) // len(FIELDS["flat"])
        self.grid = min(max(1, self.tile_count), kernel.most_blocks)
        self.refuse_first_in_capture()
        self._fixed_there = DeviceCopy(kernel.driver, kernel.index, [len(self.tiles)])

    def refuse_first_in_capture(self) -> None:
        """Raise where the stream's work is being recorded.

        Raises:
            RuntimeError: it is.
        """
        kernel = self.kernel
        if kernel.driver.is_capturing(kernel.index):
            raise RuntimeError(
                f"the first step of {self.names[0]()} is captured in a graph, and a first step "
                "loads code and makes states. Make a few steps before the capture, as torch's own "
                "optimizers need them"
            )

    def prepare(self, values: Values) -> Run:
        if type(values) is Values and not self.numbers_there:  # as nearly always
            return super().prepare(values)
        there, found_inf = self._there(values)
        own = self.number_states is None or self.numbers_there
        if self.numbers_there or (own and (there or found_inf is not None)):
            return self._prepare_there(values, there, found_inf)
        return super().prepare(values)

    def runs_on(self, stream: int) -> None:
        """Keep the device's memory for what is launched on a stream, whichever that is.

        What a graph was captured with is never freed.
        """
        if stream in self._streams:
            return
        driver, index = self.kernel.driver, self.kernel.index
        if not driver.is_capturing(index):
            self._streams.add(stream)
            for memory in self.memories():
                driver.used_on_stream(index, memory)

    def memories(self) -> list[Tensor]:
        """Of the device, what launches read and write beside the tensors."""
        copies = [each for each in (self._fixed_there, self._copy) if each is not None]
        own = [] if self.rows_there is None else [self.rows_there]
        return [*[each.memory for each in copies], *own]

    def _there(self, values: Values) -> tuple[dict[str, Tensor], Tensor | None]:
        """Which numbers of a step lie on the device; and the verdict, if it does."""
        if not isinstance(values, UnreadValues):
            return {}, None
        driver, found_inf = self.kernel.driver, values.found_inf
        there = {n: t for n, t in values.tensors.items() if _can_be_read(driver, t)}
        if found_inf is None or found_inf.dtype != torch.float32 or not driver.holds(found_inf):
            return there, None
        return there, found_inf

    def _known(self, values: Values, there: Mapping[str, Tensor]) -> Sequence[float]:
        """The numbers of a step, with anything in the place of those that lie on the device."""
        if not (there and isinstance(values, UnreadValues)):
            return values.numbers
        unread = {n: t for n, t in values.tensors.items() if n not in there}
        pairs = zip(self.kernel.names, values.known, strict=True)
        return [float(unread[n]) if n in unread else number for n, number in pairs]

    def _stored(self, there: Mapping[str, Tensor]) -> tuple[str, ...]:
        """The storage types of a step's numbers, where they lie on the device."""
        names = self.kernel.names
        return tuple([str(there[n].dtype)[6:] if n in there else "float64" for n in names])

    def _flat_run(
        self,
        owners: Sequence[Tensor],
        flat: list[Any],
        pointers: array[int],
        scalars: array[float],
        distance: int,
    ) -> Run:
        kernel, copy = self.kernel, self._copy
        if copy is None or self._by_host is None or kernel.driver.is_capturing(kernel.index):
            copy = self._copy_of([len(pointers), self.count * kernel.width])
            self._by_host = None if copy is not self._copy else copy
        staged = (copy, copy.stage((pointers, scalars)))
        run = Launch(self, owners, (flat, pointers, scalars), staged)
        run.distance = distance
        return run

    def _prepare_there(
        self, values: Values, there: Mapping[str, Tensor], found_inf: Tensor | None
    ) -> Run:
        """A step whose rows are worked out on the device.

        Args:
            values: the numbers of the step.
            there: those that lie on the device.
            found_inf: there, too: nothing is written where it is not 0.
        """
        owners, flat, pointers, firsts = self._take_accepted()
        kernel = self.kernel
        arrays: tuple[array[Any], ...] = (
            pointers,
            array("q", [there[n].data_ptr() if n in there else 0 for n in kernel.names]),
            self._no_firsts if firsts is None else array("d", map(float, firsts)),
            array("d", self._known(values, there)),
        )
        copy = self._copy_of(list(map(len, arrays)))
        kept = (flat, arrays, there, found_inf)
        run = Launch(self, owners, kept, (copy, copy.stage(arrays)))
        (run.works_out,) = kernel.works_out(self._stored(there))
        run.distance = kernel.width
        if found_inf is not None:
            run.skip, run.skips = found_inf.data_ptr(), True
        self._make_rows()
        return run

    def _make_rows(self) -> None:
        if self.rows_there is None:
            kernel = self.kernel
            size = 8 * self.count * kernel.width
            self.rows_there = kernel.driver.memory(kernel.index, max(8, size))
            self._streams.clear()

    def _copy_of(self, sizes: list[int]) -> DeviceCopy:
        """Where a step sends arrays to: in a capture to where only the graph's replays read.

        Args:
            sizes: of the arrays, or how long they may become.
        """
        driver, index = self.kernel.driver, self.kernel.index
        if driver.is_capturing(index):
            return self._captured(sizes)
        self._by_host = None
        if self._copy is None or self._sizes != sizes:
            self._copy, self._for_capture = DeviceCopy(driver, index, sizes), None
            self._sizes, self._arguments = sizes, {}
            self._streams.clear()
        if self._for_capture is None:
            self._for_capture = DeviceCopy(driver, index, sizes)
        return self._copy

    def _captured(self, sizes: list[int]) -> DeviceCopy:
        """The copy of numbers that a graph takes along, which is filled at each replay."""
        copy = self._for_capture
        if self.number_states is not None and not self.numbers_there:
            raise RuntimeError(
                f"the step of {self.names[0]()} is captured in a graph, and its step count lies "
                "on the CPU, where no replay counts. Make the optimizer with capturable=True"
            )
        if copy is None or self._sizes != sizes:
            raise RuntimeError(
                f"the step of {self.names[0]()} is captured in a graph, and no such step was made "
                "since the optimizer or its last capture began. Make one before each capture"
            )
        self._for_capture = None
        _captured.append((copy, *self.memories()))
        return copy

    def arguments(self, copy: DeviceCopy, stream: int) -> Arguments:
        """Of the pass, in the order of :data:`gradstep.backends.llvm.grid_walk.ARGUMENTS`.

        All but those that differ from step to step.
        """
        known = self._arguments.get(id(copy))
        if known is None:
            transfer = self._fixed_there.stage([self.tiles])  # they are sent once
            if transfer is not None:
                transfer(stream)
            known = Arguments(
                (copy.at[0], copy.at[-1], 0, self.count, self.row_width, 0, 0, 0,
                 self._fixed_there.at[0], self.tile_count, 0, self.grid)
            )  # fmt: skip
            if copy is self._copy:
                self._arguments[id(copy)] = known
        return known


#: A copy on the device, and what brings it up to date, if anything has to.
_Staged = tuple[DeviceCopy, "Transfer | None"]


def _can_be_read(driver: Driver, number: Tensor) -> bool:
    """Whether a kernel reads a number from where it lies."""
    return number.dtype in (torch.float32, torch.float64) and driver.holds(number)


class Launch:
    """One step of the tensors of a binding, with everything checked and worked out.

    Holds on to all memory that is read until it is launched; from then on the stream's order keeps
    it, as of any operation of torch's.

    Attributes:
        distance: of the rows of numbers.
        works_out: what works these out on the device; None where the host has.
        skip: where a float32 lies: nothing is written where it is not 0; or 0.
        skips: whether there is such a place.
    """

    __slots__ = (
        "_copy", "_kept", "_owners", "_transfer", "binding", "distance", "skip", "skips",
        "works_out",
    )  # fmt: skip

    def __init__(
        self,
        binding: DeviceTensors,
        owners: Sequence[Tensor],
        kept: tuple[Any, ...],
        staged: _Staged,
    ) -> None:
        self.binding = binding
        self._owners, self._kept = owners, kept
        self._copy, self._transfer = staged
        self.distance, self.works_out, self.skip, self.skips = 0, None, 0, False

    def __call__(self) -> None:
        """Make the step: weights, states and step counts."""
        binding, kernel = self.binding, self.binding.kernel
        driver, index = kernel.driver, kernel.index
        stream = driver.stream(index)
        binding.runs_on(stream)
        if self._transfer is not None:
            self._transfer(stream)
        if self.works_out is not None:
            self._work_out(stream)
        if binding.tile_count:
            arguments = binding.arguments(self._copy, stream)
            values = arguments.values
            values[_DISTANCE], values[_SKIP] = self.distance, self.skip
            if self.works_out is not None:
                values[_SCALARS] = binding.rows_there.data_ptr()
            driver.launch(index, kernel.run, binding.grid, THREADS, stream, arguments)
        if self.works_out is None and binding.number_states is not None:
            _, pointers, scalars = self._kept
            at = pointers.buffer_info()[0] + 16 * binding.count
            behind = scalars.buffer_info()[0] + 8 * kernel.read_by_pass
            binding.number_states.write(at, behind, self.distance)
        # Tell autograd that the weights were written, as torch's own operations do.
        increment_version(self._owners)

    def _work_out(self, stream: int) -> None:
        """Rows of numbers, and new states of one number."""
        binding, kernel = self.binding, self.binding.kernel
        table, given, firsts, numbers = self._copy.at
        blocks = -(-binding.count // THREADS)
        rows = binding.rows_there.data_ptr()  # type: ignore[union-attr]
        arguments = Arguments(
            (table, binding.count, binding.row_width, numbers, given, firsts, numbers, rows,
             self.skip, blocks)
        )  # fmt: skip
        kernel.driver.launch(kernel.index, self.works_out, blocks, THREADS, stream, arguments)
