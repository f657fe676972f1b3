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

from gradstep.backends.base import Run
from gradstep.backends.cpu.binding import Tensors
from gradstep.backends.cpu.kernel import Kernel
from gradstep.backends.cuda.code import TARGET
from gradstep.backends.cuda.device_copy import DeviceCopy, Transfer
from gradstep.backends.cuda.driver import Arguments
from gradstep.backends.cuda.images import Images
from gradstep.backends.llvm.grid import THREADS
from gradstep.backends.llvm.grid_walk import ARGUMENTS, chunks
from gradstep.backends.table import Row
from gradstep.backends.update import Update
from gradstep.program.format import Format
from gradstep.program.kernel_spec import KernelSpec
from gradstep.program.program import Program
from gradstep.program.walks import FIELDS
from gradstep.program.weight_formats import WeightFormat

_increment_version = torch.autograd.graph.increment_version

_DISTANCE = ARGUMENTS.index("distance")

#: What graphs were captured with. They may be replayed as long as the process lives, whatever
#: becomes of the optimizer.
_captured: list[DeviceCopy] = []


class DeviceKernel(Kernel):
    """The kernel of a flat program on one device.

    Args:
        images: of the device's driver.
        index: the device.

    Attributes:
        driver: the device's.
        most_blocks: as many as run at once.
        specs: of its passes.
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
    ) -> None:
        self.driver, self.index = images.driver, index
        facts = self.driver.facts(index)
        self.most_blocks = facts.processors * max(1, facts.threads // THREADS)
        self.specs: list[KernelSpec] = []

        def loaded(spec: KernelSpec) -> Any:
            self.specs.append(spec)
            return images.function(index, spec)

        super().__init__(program, storage, formats, weight_format, seed, TARGET, loaded)


class DeviceTensors(Tensors):
    """The tensors that one kernel updates on a device.

    Attributes:
        copy: of the numbers that the kernel reads, on the device.
    """

    kernel: DeviceKernel

    def __init__(
        self, kernel: DeviceKernel, of: Sequence[Update] | Sequence[Row], weights: Sequence[Tensor]
    ) -> None:
        self._for_capture: DeviceCopy | None = None
        self._arguments: Arguments | None = None
        super().__init__(kernel, of, weights)

    def _lay_flat(self, sizes: Sequence[int]) -> None:
        kernel = self.kernel
        self.elements = sum(sizes)
        self.tiles = chunks(sizes)
        self.tile_count = len(self.tiles) // len(FIELDS["flat"])
        self.grid = min(max(1, self.tile_count), kernel.most_blocks)
        if kernel.driver.is_capturing(kernel.index):
            raise RuntimeError(
                f"the first step of {self.names[0]()} is captured in a graph, and a first step "
                "loads code and makes states. Make a few steps before the capture, as torch's own "
                "optimizers need them"
            )
        self._chunks = DeviceCopy(kernel.driver, kernel.index, [len(self.tiles)])
        self.copy = self._new_copy()

    def _new_copy(self) -> DeviceCopy:
        kernel, n = self.kernel, self.count
        scalars = n * (kernel.read_by_pass + self.number_count + 1)
        return DeviceCopy(kernel.driver, kernel.index, [n * (2 + self.row_width) + 1, scalars])

    def arguments(self, copy: DeviceCopy, stream: int) -> Arguments:
        """Of the kernel, in the order of :data:`gradstep.backends.llvm.grid_walk.ARGUMENTS`.

        All but the distance of rows, which differs from step to step.
        """
        if copy is not self.copy or self._arguments is None:
            transfer = self._chunks.stage([self.tiles])  # they are sent once
            if transfer is not None:
                transfer(stream)
            table, scalars = copy.at
            made = Arguments(
                (table, scalars, 0, self.count, self.row_width, 0, 0, 0, self._chunks.at[0],
                 self.tile_count, 0, self.grid)
            )  # fmt: skip
            if copy is not self.copy:
                return made
            self._arguments = made
        return self._arguments

    def _flat_run(
        self,
        owners: Sequence[Tensor],
        flat: list[Any],
        pointers: array[int],
        scalars: array[float],
        distance: int,
    ) -> Run:
        kernel, copy = self.kernel, self.copy
        if kernel.driver.is_capturing(kernel.index):
            copy = self._captured()
        elif self._for_capture is None:
            self._for_capture = self._new_copy()
        transfer = copy.stage((pointers, scalars))
        return Launch(self, owners, (flat, pointers, scalars), copy, transfer, distance)

    def _captured(self) -> DeviceCopy:
        """The copy of numbers that a graph takes along, which is filled at each replay."""
        copy = self._for_capture
        if self.number_states is not None:
            raise RuntimeError(
                f"the step of {self.names[0]()} is captured in a graph, and its step count lies "
                "on the CPU, where no replay counts. Make the optimizer with capturable=True"
            )
        if copy is None:
            raise RuntimeError(
                f"the step of {self.names[0]()} is captured in a second graph without a step "
                "between the two. Make one"
            )
        self._for_capture = None
        _captured.append(copy)
        return copy


class Launch:
    """One step of the tensors of a binding, with everything checked and worked out.

    Holds on to all memory that is read until it is launched; from then on the stream's order keeps
    it, as of any operation of torch's.
    """

    __slots__ = ("_copy", "_distance", "_kept", "_owners", "_transfer", "binding")

    def __init__(
        self,
        binding: DeviceTensors,
        owners: Sequence[Tensor],
        kept: tuple[list[Any], array[int], array[float]],
        copy: DeviceCopy,
        transfer: Transfer | None,
        distance: int,
    ) -> None:
        self.binding = binding
        self._owners, self._kept = owners, kept
        self._copy, self._transfer, self._distance = copy, transfer, distance

    def __call__(self) -> None:
        """Make the step: weights, states and step counts."""
        binding, kernel = self.binding, self.binding.kernel
        driver, index = kernel.driver, kernel.index
        _, pointers, scalars = self._kept
        if binding.tile_count:
            stream = driver.stream(index)
            if self._transfer is not None:
                self._transfer(stream)
            arguments = binding.arguments(self._copy, stream)
            arguments.values[_DISTANCE] = self._distance
            driver.launch(index, kernel.run, binding.grid, THREADS, stream, arguments)
        if binding.number_states is not None:
            at = pointers.buffer_info()[0] + 16 * binding.count
            behind = scalars.buffer_info()[0] + 8 * kernel.read_by_pass
            binding.number_states.write(at, behind, self._distance)
        # Tell autograd that the weights were written, as torch's own operations do.
        _increment_version(self._owners)
