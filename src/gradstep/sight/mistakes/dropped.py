"""Gradients that are thrown away before any step has used them."""

from __future__ import annotations

from typing import Any

from gradstep.sight.mistakes.backward import Backward
from gradstep.sight.mistakes.finding import Mistake
from gradstep.sight.mistakes.gradients import Gradients
from gradstep.sight.mistakes.place import Place
from gradstep.sight.mistakes.watched import Family, Watched

GRADIENTS_DROPPED = Mistake(
    "gradients-dropped",
    when="backward passes between two steps, and the gradients of all but the last are cleared: "
    "accumulation with zero_grad() at each batch, a step only once an epoch",
    why="only the last batch counts, the others are worked out for nothing",
    write="zero_grad() once for each step(), right before or after it; or step() after each "
    "backward()",
)

#: Intervals between steps in a row.
_IN_A_ROW = 2


class Dropped(Family):
    """Counts what is dropped in the first steps, while hooks follow the backward pass.

    Not what another optimizer has used before, as a critic's gradients from the generator's loss;
    nor what was for other tensors, as for an input that is to deceive; nor where the weights were
    moved in between, or a step uses what somebody has put together by hand.
    """

    order = 15

    def __init__(self, diagnosis: Any) -> None:
        super().__init__(diagnosis)
        self._in_a_row: dict[int, int] = {}
        self._pending: dict[int, tuple[int, Place | None]] = {}

    def before_step(self, watched: Watched) -> None:
        if watched.has_closure or not self.diagnosis.family(Gradients).follows(watched):
            return  # nobody has counted
        first = next((h for h in watched.held if h.arrived), None)
        if first is None:
            return
        dropped = self._dropped(watched)
        for held in watched.held:
            held.dropped = 0
        if not dropped or first.last() is not first.parameter.grad or self._for_others():
            self._in_a_row[id(watched)] = 0
            return
        rows = self._in_a_row[id(watched)] = self._in_a_row.get(id(watched), 0) + 1
        if rows == _IN_A_ROW or (rows == 1 and dropped >= 3):
            place = self.diagnosis.last_zero_grad()
            if rows == _IN_A_ROW:
                self._say(watched, dropped, place)
            else:
                self._pending[id(watched)] = dropped, place

    def _dropped(self, watched: Watched) -> int:
        """How many gradients of each parameter, at least, were thrown away since the last step."""
        return min([h.dropped for h in watched.held if h.arrived], default=0)

    def _for_others(self) -> bool:
        """Whether the backward passes are for tensors that are no parameters, too."""
        backward = self.diagnosis.family(Backward)
        return backward is None or backward.for_others

    def _say(self, watched: Watched, dropped: int, place: Place | None) -> None:
        self.diagnosis.report(
            GRADIENTS_DROPPED,
            f"of {dropped + 1} backward passes before a step the gradients of {dropped} were "
            "cleared before anybody used them",
            watched=watched,
            place=place,
        )

    def close(self) -> None:
        for watched in self.diagnosis.watched:
            if id(watched) in self._pending and watched.steps == 1:
                self._say(watched, *self._pending[id(watched)])
