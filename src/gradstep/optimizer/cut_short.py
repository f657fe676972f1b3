"""Steps that are cut short: something has raised in the middle, and others were made before.

Everything else is checked before the first write. But a function of :func:`gradstep.opaque` runs in
the middle of a step, and so do torch's operations where no kernel of ours makes the step, which may
find no memory. What earlier ones led to is written by then: to keep all weights and states until
the last of them has returned would take as much memory as they have themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gradstep.optimizer.observer import StepObserver
from gradstep.optimizer.planning import Planner

if TYPE_CHECKING:
    from gradstep.optimizer.step import Step


class CutShort(StepObserver):
    """Lets an error in the middle of a step say which parameters have been updated already.

    Each parameter, its states included, is either updated or as it was, unless a tensor subclass
    refuses to be written: then the error says so. Where none is updated, the error passes as it is.
    """

    def __init__(self) -> None:
        self._held: list[tuple[Planner, Tensor, int | None, Any]] = []

    def planned(self, step: Step) -> None:
        """See how often each weight and state has been written so far."""
        self._held = [
            (planner, p, _version(p), _versions(planner.contents.state.get(p)))
            for planner in step.planners
            for group in planner.contents.groups
            for p in (group["params"] if step.weight is None else [step.weight])
            if p.grad is not None
        ]

    def closed(self, step: Step) -> None:
        """After an error, see which have been written since.

        Raises:
            RuntimeError: some parameters have been updated; names them. The error is its cause.
        """
        error, held, self._held = step.error, self._held, []
        if not isinstance(error, Exception):
            return
        done: list[str] = []
        half: list[str] = []
        for planner, p, version, states in held:
            state = planner.contents.state
            if version is None:
                done.append(f"{planner.name_of(p)} (or not: it was made in inference mode)")
            elif version != _version(p):
                done.append(planner.name_of(p))
            elif states is None:  # begun in this step
                state.pop(p, None)
                planner.forget_entries()
            elif states != _versions(state.get(p)):
                half.append(planner.name_of(p))
        if not (done or half):
            return
        others = "The others, and their states, are as they were."
        if half:
            others = f"The states of {', '.join(half)} had been, and the weight not. {others}"
        raise RuntimeError(
            f"the step was cut short by {type(error).__name__}: {error}. {len(done)} of "
            f"{len(held)} parameters had been updated by then: {', '.join(done) or 'none'}. "
            f"{others} Load the last checkpoint, or go on from here: each parameter's states "
            "belong to it."
        ) from error


def _version(p: Tensor) -> int | None:
    """How often torch has seen it written; None where torch does not count."""
    return None if p.is_inference() else p._version


def _versions(entry: Any) -> list[tuple[int, int | None]] | None:
    """The states of a parameter, and how often each was written; None where it has none yet."""
    if not isinstance(entry, Mapping):
        return None
    return [(id(s), _version(s)) for s in entry.values() if isinstance(s, Tensor)]
