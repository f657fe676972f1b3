"""torch's protocol of an optimizer: groups, planning, states, checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradstep.optimizer.optimizer import Optimizer

__all__ = ["Optimizer"]


def __getattr__(name: str) -> Any:
    # Importing gradstep takes one small module from here; old pickles name the class here.
    if name == "Optimizer":
        from gradstep.optimizer.optimizer import Optimizer

        return Optimizer
    raise AttributeError(f"module {__name__} has no {name}")
