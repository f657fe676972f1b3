"""What a step asks of a device and its driver: little, and in one place.

:class:`Driver` is all that the backend knows of NVIDIA: it makes machine code of PTX, loads and
launches it, copies bytes up, and tells of streams and memory. :mod:`gradstep.backends.cuda.nvidia`
is the real one. Another may count what it is asked for, or run the code on the CPU, as the tests'
do; the backend takes tensors on whatever device type its driver names.

Nothing here waits for the device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from gradstep.program.kernel_spec import KernelSpec
    from gradstep.program.numbers_spec import NumbersSpec


class Unavailable(Exception):
    """Why nothing can be run on a device, in one line that says what to do."""


class DriverError(RuntimeError):
    """What the driver refused, with its own name for it."""


@dataclass(frozen=True)
class DeviceFacts:
    """A device.

    Attributes:
        name: as its maker calls it.
        capability: its compute capability times ten: 90 for 9.0.
        processors: how many it has, of which each runs blocks of threads.
        threads: that one of them holds at once.
    """

    name: str
    capability: int
    processors: int
    threads: int


#: The processors that text is written for, the newest first: ten times the compute capability, and
#: the CUDA whose drivers know the PTX of it. A newer processor takes the text of an older one.
PROCESSORS = ((100, 12070), (90, 11080), (80, 11000), (75, 10000))


def processor_for(facts: DeviceFacts, version: int, driver: str) -> str:
    """The newest processors whose text a device and its driver take.

    Args:
        facts: of the device.
        version: of the driver, as :meth:`Driver.version` has it.
        driver: its name.

    Raises:
        Unavailable: there are none.
    """
    for capability, needed in PROCESSORS:
        if facts.capability >= capability and version >= needed:
            return f"sm_{capability}"
    oldest, needed = PROCESSORS[-1]
    if facts.capability < oldest:
        raise Unavailable(
            f"{facts.name} has compute capability {facts.capability / 10}, and kernels are written "
            f"for {oldest / 10} and newer"
        )
    raise Unavailable(
        f"{driver} knows CUDA {_spoken(version)}, and kernels for {facts.name} need "
        f"{_spoken(needed)}: install a newer driver"
    )


def _spoken(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


class Arguments:
    """The arguments of a kernel, 64 bits each, in memory that stays where it is.

    Attributes:
        values: the arguments; they may be changed between launches, which take them by value.
        pointers_at: the address of an array of their addresses, as the driver wants them.
    """

    __slots__ = ("_pointers", "pointers_at", "values")

    def __init__(self, values: Sequence[int]) -> None:
        self.values = array("q", values)
        start = self.values.buffer_info()[0]
        self._pointers = array("q", [start + 8 * i for i in range(len(values))])
        self.pointers_at = self._pointers.buffer_info()[0]


class Event(ABC):
    """A place in a device's work, to be asked whether it was reached."""

    @abstractmethod
    def record(self, stream: int) -> None:
        """Let it stand for the present end of a stream's work."""

    @abstractmethod
    def is_done(self) -> bool:
        """Whether the device has come by. Does not wait."""


class Driver(ABC):
    """A kind of device. Each call names the device by its index among those of the kind.

    Attributes:
        device_type: torch's name for the kind.
        name: of the driver, for messages.
    """

    device_type: str
    name: str

    @abstractmethod
    def version(self) -> int:
        """The newest CUDA that it knows, as 1000 · major + 10 · minor."""

    @abstractmethod
    def facts(self, index: int) -> DeviceFacts:
        """What is known of a device."""

    def code(self, index: int, spec: KernelSpec) -> str:
        """The text of a kernel for a device, of which :meth:`assemble` makes machine code: PTX.

        Raises:
            Unavailable: no text is written for such a device.
        """
        from gradstep.backends.cuda import code  # the compiler is loaded when it is needed

        return code.ptx(spec, self.processor(index))

    def numbers_code(self, index: int, spec: NumbersSpec) -> str:
        """The same of a kernel that works out rows of numbers."""
        from gradstep.backends.cuda import code

        return code.numbers_ptx(spec, self.processor(index))

    def joins_code(self, index: int) -> str:
        """The same of the kernels that join the parts of sums."""
        from gradstep.backends.cuda import code

        return code.joins_ptx(self.processor(index))

    def processor(self, index: int) -> str:
        """The processors that a device's text is for, as ``"sm_90"``.

        Raises:
            Unavailable: the device is older than any of them, or the driver than its text.
        """
        return processor_for(self.facts(index), self.version(), self.name)

    @abstractmethod
    def assemble(self, index: int, text: str) -> bytes:
        """Machine code for a device.

        Raises:
            DriverError: it does not take this text.
        """

    @abstractmethod
    def load(self, index: int, image: bytes) -> Any:
        """Load machine code onto a device, and return a module, which stays loaded."""

    @abstractmethod
    def function(self, module: Any, name: str) -> Any:
        """A kernel of a module."""

    @abstractmethod
    def launch(
        self,
        index: int,
        function: Any,
        grid: int,
        threads: int,
        stream: int,
        arguments: Arguments,
    ) -> None:
        """Have a kernel run by so many blocks of so many threads, behind a stream's other work."""

    @abstractmethod
    def copy_up(self, index: int, to: int, host: int, size: int, stream: int) -> None:
        """Have bytes copied to the device, behind a stream's other work.

        Args:
            index: of the device.
            to: an address of the device's.
            host: the address of memory that :meth:`host_memory` gave, unchanged until then.
            size: how many bytes.
            stream: which.
        """

    @abstractmethod
    def stream(self, index: int) -> int:
        """The stream that torch's own operations go to at present."""

    @abstractmethod
    def is_capturing(self, index: int) -> bool:
        """Whether that stream's work is being recorded into a graph instead of being done."""

    @abstractmethod
    def event(self, index: int) -> Event:
        """An event, to be recorded."""

    @abstractmethod
    def wait(self, index: int) -> None:
        """Wait until that stream's work is done: for self-checks, never in a step."""

    @abstractmethod
    def used_on_stream(self, index: int, tensor: Tensor) -> None:
        """Say that the stream's work reads memory that was made for another stream."""

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in the memory of such devices."""
        return tensor.device.type == self.device_type

    @abstractmethod
    def memory(self, index: int, size: int) -> Tensor:
        """So many bytes of the device's memory.

        Raises:
            torch.OutOfMemoryError: there are not so many.
        """

    @abstractmethod
    def host_memory(self, size: int) -> Tensor:
        """So many bytes of the host's memory, which the device can read by itself."""
