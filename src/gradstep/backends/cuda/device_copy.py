"""What a kernel reads beside tensors: numbers of the host's, with a copy in the device's memory.

The copy is brought up to date where something changed, in one asynchronous transfer from memory
that the device reads by itself. Such memory is written again when the device has read it; a step
that finds none takes more instead of waiting.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gradstep.backends.cuda.driver import Driver, Event


class _Slot:
    """A piece of the host's memory that transfers go out from.

    Attributes:
        memory: the piece.
        at: its address.
        view: its bytes.
        event: the end of the last transfer from it; None before the first.
    """

    __slots__ = ("at", "event", "memory", "view")

    def __init__(self, driver: Driver, size: int) -> None:
        self.memory: Tensor = driver.host_memory(size)
        self.at = self.memory.data_ptr()
        numbers: Any = self.memory.numpy()
        self.view = memoryview(numbers)
        self.event: Event | None = None


class DeviceCopy:
    """Arrays that stand one behind the other, and their copy on a device.

    What rarely changes comes first: where one changed, it and all behind it are sent.

    Args:
        driver: the device's.
        index: the device.
        sizes: the arrays' lengths, in 64-bit numbers; an array may have fewer.

    Attributes:
        at: the addresses of the arrays on the device.
        memory: the copy.

    Raises:
        torch.OutOfMemoryError: the device's memory is full.
    """

    def __init__(self, driver: Driver, index: int, sizes: Sequence[int]) -> None:
        self._driver, self._index = driver, index
        starts, size = [], 0
        for each in sizes:
            starts.append(size)
            size += -(-8 * each // 16) * 16
        self._starts, self._size = starts, max(size, 16)
        self.memory = driver.memory(index, self._size)
        start = self.memory.data_ptr()
        self.at = [start + each for each in starts]
        self._sent: list[array[Any] | None] = [None for _ in sizes]
        self._slots: list[_Slot] = [_Slot(driver, self._size)]

    def stage(self, arrays: Sequence[array[Any]]) -> Transfer | None:
        """Get ready what has to be sent so that the device has these; None for nothing.

        All that may fail is done here, and nothing is sent.
        """
        first = 0
        for each, known in zip(arrays, self._sent, strict=True):
            if known is not each and known != each:
                break
            first += 1
        else:
            return None
        slot, starts = self._free(), self._starts
        view, end = slot.view, starts[first]
        for number in range(first, len(arrays)):
            content, start = arrays[number].tobytes(), starts[number]
            end = start + len(content)
            view[start:end] = content
        return Transfer(self, slot, starts[first], end, arrays)

    def _free(self) -> _Slot:
        """A slot whose last transfer is done; another one where there is none."""
        slots = self._slots
        # The first has waited longest. As many as transfers are on their way at once.
        slot = slots[0]
        if slot.event is not None and not slot.event.is_done():
            slot = _Slot(self._driver, self._size)
        else:
            del slots[0]
        slots.append(slot)
        return slot

    def send(self, transfer: Transfer, stream: int) -> None:
        """Have it sent, behind the other work of a stream."""
        driver, slot = self._driver, transfer.slot
        start = transfer.start
        at = self.at[0] + start
        driver.copy_up(self._index, at, slot.at + start, transfer.end - start, stream)
        if slot.event is None:
            slot.event = driver.event(self._index)
        slot.event.record(stream)
        self._sent = list(transfer.arrays)


class Transfer:
    """What is to be sent: a stretch of a slot, after which the device has these arrays."""

    __slots__ = ("arrays", "copy", "end", "slot", "start")

    def __init__(
        self,
        copy: DeviceCopy,
        slot: _Slot,
        start: int,
        end: int,
        arrays: Sequence[array[Any]],
    ) -> None:
        self.copy, self.slot, self.start, self.end = copy, slot, start, end
        self.arrays = arrays

    def __call__(self, stream: int) -> None:
        """Have it sent."""
        self.copy.send(self, stream)
