"""Kernels as machine code on a device: in this process, from the disk, or made anew.

Text and machine code lie on disk beside the CPU's kernels. The machine code is of one device,
driver and version of it; the text, of a processor. Whoever finds machine code there writes no text
and wakes no compiler.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from gradstep.backends import kernel_cache
from gradstep.backends.cpu import compiler
from gradstep.backends.cuda import code
from gradstep.backends.cuda.driver import Driver, Unavailable
from gradstep.program.formats import is_ours
from gradstep.program.kernel_spec import KernelSpec
from gradstep.program.numbers_spec import NumbersSpec


class Images:
    """The kernels of a driver's devices.

    Attributes:
        driver: makes and loads them.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._functions: dict[tuple[str, str], Any] = {}
        self._lock = threading.Lock()

    def function(self, index: int, spec: KernelSpec) -> Any:
        """A pass's kernel on a device, ready to be launched.

        Raises:
            Unavailable: no text is written for such a spec, or such a device.
            DriverError: the driver does not take it.
        """
        reason = code.refusal(spec)
        if reason is not None:
            raise Unavailable(reason)
        ours = all(is_ours(column.format) for column in spec.columns)
        # Another's format might write other code for the same spec tomorrow.
        return self._get(index, spec.text(), "run", ours, lambda: self.driver.code(index, spec))

    def numbers(self, index: int, spec: NumbersSpec) -> Any:
        """A kernel that works out rows of numbers; raises as :meth:`function`."""
        write = lambda: self.driver.numbers_code(index, spec)  # noqa: E731
        return self._get(index, spec.text(), "numbers", True, write)

    def joins(self, index: int, entry: str) -> Any:
        """``"fold"`` or ``"totals"``, which join parts of sums; raises as :meth:`function`."""
        return self._get(index, "joins", entry, True, lambda: self.driver.joins_code(index))

    def _get(self, index: int, title: str, entry: str, ours: bool, write: Callable[[], str]) -> Any:
        """A kernel by what shapes its text: from here, from the disk, or made.

        Args:
            index: of the device.
            title: what shapes the text.
            entry: the kernel's name in it.
            ours: whether the title is all that shapes it.
            write: gives the text.
        """
        text = None
        if not (ours and compiler.WRITERS):  # whose sources cannot be read
            text = title = write()
        name = self.name(index, title)
        with self._lock:
            if (name, entry) not in self._functions:
                found = self._load(index, name, entry, title, text, write)
                self._functions[name, entry] = found
            return self._functions[name, entry]

    def name(self, index: int, *about: str) -> str:
        """The name of what hangs on a device, its driver and the code, as on disk."""
        driver, facts = self.driver, self.driver.facts(index)
        known = (str(index), facts.name, str(facts.capability), driver.name, str(driver.version()))
        return kernel_cache.digest(*about, compiler.WRITERS, compiler.llvm_version(), *known)

    def _load(
        self,
        index: int,
        name: str,
        entry: str,
        title: str,
        text: str | None,
        write: Callable[[], str],
    ) -> Any:
        driver = self.driver
        image = kernel_cache.read(name)
        if image is not None:
            try:
                return driver.function(driver.load(index, image), entry)
            except RuntimeError:  # whole, but not what this device can load
                pass
        if text is None:
            text = self._text(index, title, write)
        image = driver.assemble(index, text)
        function = driver.function(driver.load(index, image), entry)
        kernel_cache.write(name, image)
        return function

    def _text(self, index: int, title: str, write: Callable[[], str]) -> str:
        """The text of a kernel, which all devices of its processors share."""
        processor = self.driver.processor(index)
        name = kernel_cache.digest(
            "text", title, compiler.WRITERS, compiler.llvm_version(), processor
        )
        kept = kernel_cache.read(name)
        if kept is not None:
            return kept.decode()
        text = write()
        kernel_cache.write(name, text.encode())
        return text
