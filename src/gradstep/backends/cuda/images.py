"""Kernels as machine code on a device: in this process, from the disk, or made anew.

Text and machine code lie on disk beside the CPU's kernels. The machine code is of one device,
driver and version of it; the text, of a processor. Whoever finds machine code there writes no text
and wakes no compiler.
"""

from __future__ import annotations

import threading
from typing import Any

from gradstep.backends import kernel_cache
from gradstep.backends.cpu import compiler
from gradstep.backends.cuda import code
from gradstep.backends.cuda.driver import Driver, Unavailable
from gradstep.program.formats import is_ours
from gradstep.program.kernel_spec import KernelSpec


class Images:
    """The kernels of a driver's devices.

    Attributes:
        driver: makes and loads them.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._functions: dict[str, Any] = {}
        self._lock = threading.Lock()

    def function(self, index: int, spec: KernelSpec) -> Any:
        """A spec's kernel on a device, ready to be launched.

        Raises:
            Unavailable: no text is written for such a spec, or such a device.
            DriverError: the driver does not take it.
        """
        reason = code.refusal(spec)
        if reason is not None:
            raise Unavailable(reason)
        driver, title = self.driver, spec.text()
        text = None
        if not compiler.WRITERS or not all(is_ours(column.format) for column in spec.columns):
            # Another version, or another's format, might write other code for the same spec.
            text = title = driver.code(index, spec)
        name = self.name(index, title)
        with self._lock:
            if name not in self._functions:
                self._functions[name] = self._load(index, name, spec, title, text)
            return self._functions[name]

    def name(self, index: int, *about: str) -> str:
        """The name of what hangs on a device, its driver and the code, as on disk."""
        driver, facts = self.driver, self.driver.facts(index)
        known = (str(index), facts.name, str(facts.capability), driver.name, str(driver.version()))
        return kernel_cache.digest(*about, compiler.WRITERS, compiler.llvm_version(), *known)

    def _load(self, index: int, name: str, spec: KernelSpec, title: str, text: str | None) -> Any:
        driver = self.driver
        image = kernel_cache.read(name)
        if image is not None:
            try:
                return driver.function(driver.load(index, image), "run")
            except RuntimeError:  # whole, but not what this device can load
                pass
        if text is None:
            text = self._text(index, spec, title)
        image = driver.assemble(index, text)
        function = driver.function(driver.load(index, image), "run")
        kernel_cache.write(name, image)
        return function

    def _text(self, index: int, spec: KernelSpec, title: str) -> str:
        """The text of a kernel, which all devices of its processors share."""
        driver = self.driver
        name = kernel_cache.digest(
            "text", title, compiler.WRITERS, compiler.llvm_version(), driver.processor(index)
        )
        kept = kernel_cache.read(name)
        if kept is not None:
            return kept.decode()
        text = driver.code(index, spec)
        kernel_cache.write(name, text.encode())
        return text
