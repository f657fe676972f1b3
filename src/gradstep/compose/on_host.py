"""What links an Offload to torch and to the steps of its optimizer; none of it keeps it alive."""

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


class Arrival:
    """What torch calls with a weight whose gradient is complete. It keeps no optimizer alive."""

    def __init__(self, offload: Offload) -> None:
        self.offload = weakref.ref(offload)

    def __call__(self, p: Tensor) -> None:
        offload = self.offload()
        if offload is not None:
            offload._arrived(p)


def frees_gradients(p: Any) -> bool:
    """Whether a weight's gradient leaves it within backward, so that ``step()`` finds none."""
    for hook in (p._post_accumulate_grad_hooks or {}).values():
        offload = hook.offload() if isinstance(hook, Arrival) else None
        if offload is not None and offload.free_gradients:
            return True
    return False


def has_hook(p: Any, offload: Offload) -> bool:
    """Whether an Offload has put its hook on a weight."""
    hooks = (p._post_accumulate_grad_hooks or {}).values()
    return any(isinstance(hook, Arrival) and hook.offload() is offload for hook in hooks)
