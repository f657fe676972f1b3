"""A weight's copy in the memory of the CPU, and the lines on which weights and gradients travel."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Line:
    """Copies between a device and the memory of the CPU, one after the other. Waits for each."""

    #: Whether memory is to be pinned, so that the device copies by itself.
    pinned = False

    def to_host(self, source: Tensor, target: Tensor) -> Callable[[], None]:
        """Copy a tensor of the device; returns what waits until it has come."""
        target.copy_(source)
        return _nothing

    def begin_sending(self) -> None:
        """All that reads the device's weights has been started."""

    def to_device(self, source: Tensor, target: Tensor) -> None:
        """Copy a tensor of the CPU."""
        target.copy_(source)

    def end_sending(self) -> None:
        """What the device does from now on is done when all has come."""


class StreamLine(Line):
    """Copies on streams of their own, beside what the device works at.

    Args:
        device: an accelerator with streams, such as a GPU.
        module: torch's for the kind of device.
    """

    pinned = True

    def __init__(self, device: torch.device, module: Any) -> None:
        self._device, self._module = device, module
        self._coming, self._going = module.Stream(device), module.Stream(device)

    def to_host(self, source: Tensor, target: Tensor) -> Callable[[], None]:
        stream = self._coming
        stream.wait_stream(self._module.current_stream(self._device))
        with self._module.stream(stream):
            target.copy_(source, non_blocking=True)
            event = self._module.Event()
            event.record(stream)
        source.record_stream(stream)  # its memory goes to nobody else before it has been read
        wait: Callable[[], None] = event.synchronize
        return wait

    def begin_sending(self) -> None:
        self._going.wait_stream(self._module.current_stream(self._device))

    def to_device(self, source: Tensor, target: Tensor) -> None:
        with self._module.stream(self._going):
            target.copy_(source, non_blocking=True)

    def end_sending(self) -> None:
        self._module.current_stream(self._device).wait_stream(self._going)


def line_to(device: torch.device) -> Line:
    """The line between a device and the memory of the CPU."""
    if device.type == "cpu":
        return Line()
    module = torch.get_device_module(device)
    return StreamLine(device, module) if hasattr(module, "stream") else Line()


def _nothing() -> None:
    pass


class HostCopy:
    """A weight's copy in the memory of the CPU, with which its steps are made.

    Attributes:
        parameter: the weight itself.
        host: its copy, of the same dtype.
        order: when its gradient came, for the order of steps.
        held: whether there is a gradient here that the weight has not any more.
    """

    def __init__(self, parameter: Tensor, line: Line) -> None:
        self.parameter = parameter
        self.host = nn.Parameter(self._empty_like(parameter, line), parameter.requires_grad)
        self.order = 0
        self.held = False
        self._line = line
        self._gradient: Tensor | None = None
        self._wait: Callable[[], None] = _nothing
        self._source: weakref.ref[Tensor] | None = None
        self._source_version = -1
        self._seen = self._sent = -1  # versions of weight and copy when they were alike

    @staticmethod
    def _empty_like(tensor: Tensor, line: Line) -> Tensor:
        return torch.empty_like(
            tensor, device="cpu", requires_grad=False, pin_memory=line.pinned
        ).detach()

    # The weight.

    @torch.no_grad()
    def fetch_weight(self) -> None:
        """Have the copy follow a weight that somebody has written."""
        if self.parameter._version != self._seen:
            self.host.copy_(self.parameter)
            self._seen, self._sent = self.parameter._version, self.host._version

    @torch.no_grad()
    def send_weight(self) -> None:
        """Have the weight follow a copy that a step has written."""
        if self.host._version != self._sent:
            self._line.to_device(self.host, self.parameter)
            self._seen, self._sent = self.parameter._version, self.host._version

    # The gradient.

    @torch.no_grad()
    def fetch_gradient(self, order: int, keep: bool) -> None:
        """Begin to copy the weight's gradient; add it to one that is held here.

        Args:
            order: when.
            keep: whether to hold it, for it is to be freed.
        """
        gradient = self.parameter.grad
        assert gradient is not None
        if gradient.is_sparse:
            own = gradient.to("cpu", copy=True)
            self._gradient = (
                self._gradient + own if self.held and self._gradient is not None else own
            )
            self._wait = _nothing
        elif self.held and self._gradient is not None:
            self.wait()
            another = self._empty_like(gradient, self._line)
            self._line.to_host(gradient, another)()
            self._gradient += another
        else:
            if not _fits(self._gradient, gradient):
                self._gradient = self._empty_like(gradient, self._line)
            assert self._gradient is not None
            self._wait = self._line.to_host(gradient, self._gradient)
        self.order, self.held = order, self.held or keep
        self._source, self._source_version = weakref.ref(gradient), gradient._version

    def has_gradient_of_now(self) -> bool:
        """Whether the gradient that the weight has was copied, and is as it was then."""
        gradient = self.parameter.grad
        if gradient is None or self._source is None:
            return False
        return self._source() is gradient and gradient._version == self._source_version

    def doubt_gradient(self) -> None:
        """The weight's gradient may have been changed in a way that cannot be seen."""
        self._source = None

    def wait(self) -> None:
        """Wait until the gradient has come."""
        self._wait()
        self._wait = _nothing

    def show_gradient(self, shown: bool) -> None:
        """Give the copy of the weight its gradient, or take it away."""
        self.host.grad = self._gradient if shown else None

    def forget_gradient(self) -> None:
        """It has been used, or is not to be."""
        self.held, self._source = False, None
        if self._gradient is not None and self._gradient.is_sparse:
            self._gradient = None

    @property
    def gradient(self) -> Tensor | None:
        """The gradient that is held here, complete."""
        self.wait()
        return self._gradient if self.held else None


def _fits(held: Tensor | None, gradient: Tensor) -> bool:
    return (
        held is not None
        and held.layout is gradient.layout
        and held.dtype == gradient.dtype
        and held.shape == gradient.shape
        and held.stride() == gradient.stride()
    )
