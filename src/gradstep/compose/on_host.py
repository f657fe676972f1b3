"""What has each step of an optimizer made elsewhere, and keeps nothing alive."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gradstep.optimizer.observer import OneByOne, StepObserver

if TYPE_CHECKING:
    from gradstep.compose.offload import Offload


class OnHost(OneByOne):
    """Has each step of an optimizer made with the copies of its weights. Keeps nothing alive."""

    def __init__(self, offload: Offload) -> None:
        self._offload = weakref.ref(offload)

    def begun(self, step: Any) -> None:
        offload = self._offload()
        if offload is not None:
            offload._begin_on_host()

    def planned(self, step: Any) -> None:
        offload = self._offload()
        looks = (
            type(o).planned is not StepObserver.planned for o in step.observers if o is not self
        )
        if offload is not None and any(looks):  # they read gradients
            offload._wait_for_all()

    def closed(self, step: Any) -> None:
        offload = self._offload()
        if offload is not None:
            offload._end_on_host(step.error is None and not step.skipped)

    def in_order(self, weights: list[tuple[int, int, Tensor]]) -> list[tuple[int, int, Tensor]]:
        offload = self._offload()
        return weights if offload is None else offload._in_order(weights)

    def is_alone(self, p: Tensor) -> bool:
        offload = self._offload()
        return offload is not None and offload._is_alone(p)

    def stored(self, p: Tensor, entry: dict[str, Any]) -> dict[str, Any]:
        offload = self._offload()
        return entry if offload is None else offload._stored(p, entry)

    def before(self, p: Tensor) -> None:
        offload = self._offload()
        if offload is not None:
            offload._before(p)

    def after(self, p: Tensor) -> None:
        offload = self._offload()
        if offload is not None:
            offload._after(p)

    def before_all(self) -> None:
        offload = self._offload()
        if offload is not None:
            offload._wait_for_all()
