"""NVIDIA's driver, by way of NVIDIA's Python package ``cuda-bindings``.

Contexts, streams and memory are torch's. The package is imported when the first tensor on a GPU is
met; torch's wheels for CUDA bring it along since 2.14, ``pip install 'gradstep[cuda]'`` otherwise.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from gradstep.backends.cuda.driver import (
    Arguments,
    DeviceFacts,
    Driver,
    DriverError,
    Event,
    Unavailable,
)

#: Of these errors it is known what to do.
_REMEDIES = {
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": "the driver is older than the code: install a newer one",
    "CUDA_ERROR_JIT_COMPILER_NOT_FOUND": "the driver came without its compiler of PTX, "
    "libnvidia-ptxjitcompiler: install it",
}

#: CU_EVENT_DISABLE_TIMING: such events cost the least.
_WITHOUT_TIMING = 2


class Nvidia(Driver):
    """GPUs of NVIDIA's.

    Raises:
        Unavailable: the package or the driver is missing.
    """

    device_type = "cuda"
    name = "NVIDIA's driver"

    def __init__(self) -> None:
        if torch.version.hip is not None:
            raise Unavailable("torch is built for ROCm, and kernels are written for NVIDIA's GPUs")
        try:
            from cuda.bindings import driver
        except ImportError:
            raise Unavailable(
                "NVIDIA's Python package cuda-bindings is not installed: "
                "pip install 'gradstep[cuda]'"
            ) from None
        self._api: Any = driver
        self._success, self._not_ready = (
            driver.CUresult.CUDA_SUCCESS,
            driver.CUresult.CUDA_ERROR_NOT_READY,
        )
        try:
            self.call("cuInit", 0)
            self._version = int(self.call("cuDriverGetVersion"))
        except Exception as error:  # of several types: no library, no driver, no device
            raise Unavailable(f"NVIDIA's driver cannot be used: {error}") from None
        # Bound once: these are in every step.
        self._current, self._launch = driver.cuCtxGetCurrent, driver.cuLaunchKernel
        self._copy_up = driver.cuMemcpyHtoDAsync
        self._contexts: dict[int, tuple[int, Any]] = {}
        # One look in C; the public way makes an object of each stream.
        self._raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the driver, and return what it gives: one thing, or a list.

        Raises:
            DriverError: it refuses.
        """
        status, *results = getattr(self._api, name)(*arguments)
        if status != self._success:
            self._raise(name, status)
        return results[0] if len(results) == 1 else results

    def call_on(self, index: int, name: str, *arguments: Any) -> Any:
        """The same with a device's context as the thread's own."""
        entered = self._enter(index)
        try:
            return self.call(name, *arguments)
        finally:
            if entered:
                self.call("cuCtxPopCurrent")

    def _raise(self, name: str, status: Any) -> None:
        said = self._api.cuGetErrorString(status)[1]
        text = said.decode() if isinstance(said, bytes) else str(said)
        remedy = _REMEDIES.get(status.name, "")
        raise DriverError(f"{name}: {status.name} ({text})" + (remedy and f"; {remedy}"))

    def _enter(self, index: int) -> bool:
        """Put a device's context on top of the thread's own where another is; tell whether."""
        known = self._contexts.get(index)
        if known is None:
            # torch's own: tensors on the device are in it.
            handle = self.call("cuDevicePrimaryCtxRetain", self.call("cuDeviceGet", index))
            known = self._contexts[index] = (int(handle), handle)
        status, current = self._current()
        if status == self._success and int(current) == known[0]:
            return False
        self.call("cuCtxPushCurrent", known[1])
        return True

    def version(self) -> int:
        return self._version

    def facts(self, index: int) -> DeviceFacts:
        found = torch.cuda.get_device_properties(index)
        return DeviceFacts(
            found.name,
            10 * found.major + found.minor,
            found.multi_processor_count,
            getattr(found, "max_threads_per_multi_processor", 1024),
        )

    def assemble(self, index: int, text: str) -> bytes:
        data = text.encode() + b"\0"
        kind = self._api.CUjitInputType.CU_JIT_INPUT_PTX
        entered = self._enter(index)
        try:
            linker = self.call("cuLinkCreate", 0, [], [])
            try:
                self.call("cuLinkAddData", linker, kind, data, len(data), b"gradstep", 0, [], [])
                at, size = self.call("cuLinkComplete", linker)
                return ctypes.string_at(int(at), int(size))  # it is the linker's memory
            finally:
                self.call("cuLinkDestroy", linker)
        finally:
            if entered:
                self.call("cuCtxPopCurrent")

    def load(self, index: int, image: bytes) -> Any:
        return self.call_on(index, "cuModuleLoadData", image)

    def function(self, module: Any, name: str) -> Any:
        return self.call("cuModuleGetFunction", module, name.encode())

    def launch(
        self,
        index: int,
        function: Any,
        grid: int,
        threads: int,
        stream: int,
        arguments: Arguments,
    ) -> None:
        entered = self._enter(index)
        (status,) = self._launch(
            function, grid, 1, 1, threads, 1, 1, 0, stream, arguments.pointers_at, 0
        )
        if entered:
            self.call("cuCtxPopCurrent")
        if status != self._success:
            self._raise("cuLaunchKernel", status)

    def copy_up(self, index: int, to: int, host: int, size: int, stream: int) -> None:
        entered = self._enter(index)
        (status,) = self._copy_up(to, host, size, stream)
        if entered:
            self.call("cuCtxPopCurrent")
        if status != self._success:
            self._raise("cuMemcpyHtoDAsync", status)

    def stream(self, index: int) -> int:
        if self._raw_stream is not None:
            return int(self._raw_stream(index))
        return int(torch.cuda.current_stream(index).cuda_stream)

    def is_capturing(self, index: int) -> bool:
        if index == torch.cuda.current_device():
            return bool(torch.cuda.is_current_stream_capturing())
        with torch.cuda.device(index):
            return bool(torch.cuda.is_current_stream_capturing())

    def event(self, index: int) -> Event:
        return _Event(self, index)

    def is_reached(self, event: Any) -> bool:
        """Whether the device has come by an event of the driver's."""
        (status,) = self._api.cuEventQuery(event)
        if status not in (self._success, self._not_ready):
            self._raise("cuEventQuery", status)
        return bool(status == self._success)

    def wait(self, index: int) -> None:
        torch.cuda.current_stream(index).synchronize()

    def used_on_stream(self, index: int, tensor: Tensor) -> None:
        tensor.record_stream(torch.cuda.current_stream(index))

    def memory(self, index: int, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, device=torch.device("cuda", index))

    def host_memory(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)


class _Event(Event):
    def __init__(self, nvidia: Nvidia, index: int) -> None:
        self._nvidia, self._index = nvidia, index
        self._event = nvidia.call_on(index, "cuEventCreate", _WITHOUT_TIMING)

    def record(self, stream: int) -> None:
        self._nvidia.call_on(self._index, "cuEventRecord", self._event, stream)

    def is_done(self) -> bool:
        return self._nvidia.is_reached(self._event)

    def __del__(self) -> None:
        with suppress(Exception):  # the process may be ending, and the driver with it
            self._nvidia.call("cuEventDestroy", self._event)
