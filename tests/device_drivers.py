"""Drivers that stand in for NVIDIA's: of devices whose memory is the CPU's.

:class:`Counting` does nothing but count and remember what it is asked for. :class:`Emulating` also
does it: it copies, and runs a kernel as the same code in loops over blocks and threads.
:class:`Interpreting` runs the very PTX that a device would get, instruction by instruction.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy
import torch
from torch import Tensor

import ptx_interpreter
from gradstep.backends.cpu import compiler
from gradstep.backends.cuda.driver import Arguments, DeviceFacts, Driver, DriverError, Event
from gradstep.backends.llvm.grid_joins import FOLD_ARGUMENTS, TOTALS_ARGUMENTS, write_joins
from gradstep.backends.llvm.grid_numbers import NUMBERS_ARGUMENTS, write_numbers_kernel
from gradstep.backends.llvm.grid_walk import ARGUMENTS, write_grid_kernel
from gradstep.program.kernel_spec import KernelSpec
from gradstep.program.numbers_spec import NumbersSpec
from gradstep.program.targets import target_named

#: The arguments of each kernel, but for the blocks that there are.
ENTRIES = {
    "run": ARGUMENTS,
    "numbers": NUMBERS_ARGUMENTS,
    "fold": FOLD_ARGUMENTS,
    "totals": TOTALS_ARGUMENTS,
}


class Reached(Event):
    """An event that the device comes by when the driver is told to work."""

    def __init__(self, driver: Counting) -> None:
        self.driver = driver
        self.at = 0

    def record(self, stream: int) -> None:
        self.at = self.driver.enqueued

    def is_done(self) -> bool:
        return self.at <= self.driver.done


class Counting(Driver):
    """Counts, and does nothing.

    Attributes:
        launches: what was launched: the stream, blocks, threads and arguments.
        copies: what was sent: the stream and how many bytes.
        written, assembled, loaded: how often text was written, made machine code of, and loaded.
        host_pieces: how often memory for transfers was taken.
        lags: whether the device does nothing until it is waited for; else it does all at once.
        capturing: whether the stream is being captured.
        on_stream: the present stream.
        numbers_there: whether numbers of one element count as the device's own.
    """

    device_type = "cpu"
    name = "a driver that counts"

    def __init__(self, capability: int = 90, version: int = 13000) -> None:
        self.launches: list[tuple[int, int, int, list[int]]] = []
        self.copies: list[tuple[int, int]] = []
        self.assembled = self.written = 0
        self.loaded = 0
        self.host_pieces = 0
        self.lags = self.capturing = self.numbers_there = False
        self.on_stream = 7
        self.enqueued = self.done = 0
        self._queue: list[Callable[[], None]] = []
        self.held: list[Tensor] = []
        self._capability, self._version = capability, version

    def forget(self) -> None:
        """Begin to count anew."""
        self.launches, self.copies, self.host_pieces = [], [], 0

    def version(self) -> int:
        return self._version

    def facts(self, index: int) -> DeviceFacts:
        return DeviceFacts("a device of paper", self._capability, 4, 1024)

    def assemble(self, index: int, text: str) -> bytes:
        self.assembled += 1
        return b"machine code of " + text.encode()

    def load(self, index: int, image: bytes) -> Any:
        self.loaded += 1
        return image

    def function(self, module: Any, name: str) -> Any:
        return module, name

    def launch(
        self,
        index: int,
        function: Any,
        grid: int,
        threads: int,
        stream: int,
        arguments: Arguments,
    ) -> None:
        values = list(arguments.values)  # taken at once, as a launch does
        self.launches.append((stream, grid, threads, values))
        self._enqueue(lambda: self.run(function, values))

    def copy_up(self, index: int, to: int, host: int, size: int, stream: int) -> None:
        self.copies.append((stream, size))
        self._enqueue(lambda: self.move(to, host, size))

    def run(self, function: Any, values: list[int]) -> None:
        """Run a kernel."""

    def move(self, to: int, host: int, size: int) -> None:
        """Move bytes."""

    def _enqueue(self, work: Callable[[], None]) -> None:
        self._queue.append(work)
        self.enqueued += 1
        if not self.lags:
            self.wait(0)

    def stream(self, index: int) -> int:
        return self.on_stream

    def is_capturing(self, index: int) -> bool:
        return self.capturing

    def event(self, index: int) -> Event:
        return Reached(self)

    def wait(self, index: int) -> None:
        while self._queue:
            self._queue.pop(0)()
            self.done += 1

    def used_on_stream(self, index: int, tensor: Tensor) -> None:
        self.held.append(tensor)

    def holds(self, tensor: Tensor) -> bool:
        return self.numbers_there

    def memory(self, index: int, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def host_memory(self, size: int) -> Tensor:
        self.host_pieces += 1
        return torch.empty(size, dtype=torch.uint8)


class Emulating(Counting):
    """Also does it all, at once, on the CPU.

    Attributes:
        spoil: changes the text of a kernel, to be found out.
        idle: whether kernels are launched and not run.
    """

    name = "a driver that emulates"

    def __init__(self, capability: int = 90, version: int = 13000) -> None:
        super().__init__(capability, version)
        self.spoil: Callable[[str], str] = lambda text: text
        self.idle = False

    def code(self, index: int, spec: KernelSpec) -> str:
        self.written += 1
        text = write_grid_kernel(replace(spec, target=target_named("loops")))
        return self.spoil(text)

    def numbers_code(self, index: int, spec: NumbersSpec) -> str:
        self.written += 1
        return write_numbers_kernel(replace(spec, target=target_named("loops")))

    def joins_code(self, index: int) -> str:
        self.written += 1
        return write_joins(target_named("loops"))

    def assemble(self, index: int, text: str) -> bytes:
        self.assembled += 1
        return text.encode()

    def function(self, module: Any, name: str) -> Any:
        text = module.decode()
        if "define" not in text:
            raise DriverError("cuModuleLoadData: CUDA_ERROR_INVALID_IMAGE (no code)")
        kinds = {n: (len(a) + 1, False) for n, a in ENTRIES.items() if f'void @"{n}"(' in text}
        return compiler.functions(text, lambda: text, kinds)[name]

    def run(self, function: Any, values: list[int]) -> None:
        if not self.idle:
            function(*values)

    def move(self, to: int, host: int, size: int) -> None:
        ctypes.memmove(to, host, size)


class Interpreting(Emulating):
    """Executes the kernels' PTX with NumPy."""

    name = "a driver that interprets"

    def code(self, index: int, spec: KernelSpec) -> str:
        self.written += 1
        return Driver.code(self, index, spec)

    def numbers_code(self, index: int, spec: NumbersSpec) -> str:
        self.written += 1
        return Driver.numbers_code(self, index, spec)

    def joins_code(self, index: int) -> str:
        self.written += 1
        return Driver.joins_code(self, index)

    def function(self, module: Any, name: str) -> Any:
        parsed = ptx_interpreter.parse(module.decode())

        def run(*values: int) -> None:
            grid, threads = self.launches[-1][1:3]
            with numpy.errstate(all="ignore"):
                ptx_interpreter.run(parsed, name, grid, threads, values)

        return run
