"""Weights that somebody else moves between two steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradstep.sight.mistakes.finding import Mistake
from gradstep.sight.mistakes.place import Place, here
from gradstep.sight.mistakes.watched import Family, Held, Watched, values_of, window_of

UPDATED_BY_HAND_TOO = Mistake(
    "updated-by-hand-too",
    when="between steps somebody also moves the weights against their gradient",
    why="every update is made twice: once by hand and once by the optimizer",
    write="only one of them: either optimizer.step() or the update by hand",
)
WEIGHTS_CHANGED_OUTSIDE = Mistake(
    "weights-changed-outside",
    when="somebody changed the weights, once. What is done again and again (clipping, "
    "projections, averages) is on purpose, and so is a checkpoint that is loaded into "
    "model and optimizer",
    why="what the optimizer remembers, such as momentum, is about the weights before",
    write="a new optimizer after new weights, or load its own state_dict() with them",
    severity="advice",
)

#: What happens once and then not for so many steps was no part of the loop.
_QUIET = 30


@dataclass
class _Witness:
    """The largest parameter of an optimizer, for all of them, and what happened to it.

    Attributes:
        held: the parameter.
        window, pointer: some elements of the parameter, seen through a view, as long as its memory
            is where the pointer says.
        weight, gradient: what was there after the last step.
        loaded: ``watched.loaded`` at that step.
        changes: in how many intervals between steps somebody moved it.
        along: how many of these movements were along the gradient.
        first: the step before the first change, and where the next step was made.
    """

    held: Held
    window: Tensor | None = None
    pointer: int = 0
    weight: Tensor | None = None
    gradient: Tensor | None = None
    loaded: int = 0
    changes: int = 0
    along: int = 0
    first: tuple[int, Place | None] | None = None

    def look(self) -> Tensor | None:
        """The elements as they are now, seen through a view; None if they cannot be read."""
        parameter = self.held.parameter
        window = self.window
        if window is None or parameter.data_ptr() != self.pointer:
            window = self.window = window_of(parameter, 64)
            # A copy is no window: it has to be taken anew each time.
            shared = window is not None and window.data_ptr() == parameter.data_ptr()
            self.pointer = parameter.data_ptr() if shared else 0
        elif not window.untyped_storage().nbytes():
            return None
        return window


class Outside(Family):
    """Weights changed outside of the optimizer.

    What is done between all steps, or again and again, is done on purpose: clipped weights,
    projections, a weight moved and put back (SAM), averages swapped in and out. All that is silent.
    What happens once in the middle of a training is worth an advice, and an update along the
    gradient by hand, beside the optimizer's own, is a mistake.
    """

    order = 3

    def __init__(self, diagnosis: Any) -> None:
        super().__init__(diagnosis)
        self._witnesses: dict[int, _Witness] = {}

    def added(self, watched: Watched) -> None:
        candidates = [h for h in watched.held if h.parameter.requires_grad]
        if candidates:
            largest = max(candidates, key=lambda h: h.parameter.numel())
            known = self._witnesses.get(id(watched))
            if known is None or known.held is not largest:
                self._witnesses[id(watched)] = _Witness(largest)

    def before_step(self, watched: Watched) -> None:
        witness = self._witnesses.get(id(watched))
        if witness is None or witness.weight is None or watched.inner:
            return
        now = witness.look()
        if now is None or now.shape != witness.weight.shape or watched.in_backward:
            return
        if not torch.equal(now, witness.weight):
            self._changed(watched, witness, now)
        elif (
            witness.changes == 1
            and witness.first is not None
            and watched.steps - witness.first[0] >= _QUIET
        ):
            self._say_once(watched, witness)

    def _changed(self, watched: Watched, witness: _Witness, now: Tensor) -> None:
        assert witness.weight is not None
        with torch.no_grad():
            moved = (now - witness.weight).double()
            size = float(witness.weight.abs().max())
            if not float(moved.abs().max()) > 8 * torch.finfo(now.dtype).eps * size:
                return  # put back, up to rounding; or nan
            gradients = [witness.gradient]
            if witness.held.parameter.grad is not None:
                gradients.append(values_of(witness.held.parameter.grad, 64))
            along = any(_opposite(moved, g) for g in gradients if g is not None)
        if watched.loaded != witness.loaded:
            return  # a checkpoint of both
        if any(
            other is not watched and any(h.parameter is witness.held.parameter for h in other.held)
            for other in self.diagnosis.watched
        ):
            return  # another optimizer
        witness.changes += 1
        witness.along += along
        if witness.first is None:
            witness.first = (watched.steps, here())
            self.diagnosis.attend(_QUIET + 2)
        if witness.along >= 2:
            name = self.diagnosis.name_of(witness.held.parameter)
            self.diagnosis.report(
                UPDATED_BY_HAND_TOO,
                f"between two steps of the optimizer {name} was also moved against its gradient by "
                "somebody else",
                parameter=name,
                watched=watched,
            )

    def after_step(self, watched: Watched) -> None:
        witness = self._witnesses.get(id(watched))
        if witness is None or watched.inner:
            return
        parameter = witness.held.parameter
        window = witness.look()
        witness.weight = None if window is None else window.clone()
        witness.loaded = watched.loaded
        # Only where somebody moves the weights is it worth knowing along what.
        witness.gradient = None
        if (watched.looks or witness.changes) and parameter.grad is not None:
            witness.gradient = values_of(parameter.grad, 64)

    def _say_once(self, watched: Watched, witness: _Witness) -> None:
        assert witness.first is not None
        name = self.diagnosis.name_of(witness.held.parameter)
        step, place = witness.first
        self.diagnosis.report(
            WEIGHTS_CHANGED_OUTSIDE,
            f"{name} was changed outside of the optimizer between steps {step} and {step + 1}, and "
            "not again",
            parameter=name,
            watched=watched,
            place=place,
        )

    def close(self) -> None:
        for watched in self.diagnosis.watched:
            witness = self._witnesses.get(id(watched))
            if witness is not None and witness.changes == 1 and watched.steps >= 5:
                self._say_once(watched, witness)


def _opposite(moved: Tensor, gradient: Tensor) -> bool:
    """Whether a movement is along minus the gradient, and along nothing else."""
    if gradient.shape != moved.shape:
        return False
    gradient = gradient.double()
    lengths = float(moved.norm() * gradient.norm())
    return lengths > 0 and float(moved @ gradient) < -0.999 * lengths
