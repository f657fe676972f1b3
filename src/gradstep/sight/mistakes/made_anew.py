"""Optimizers that are thrown away after each step, and those that get no gradients at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradstep.sight.mistakes.backward import Backward
from gradstep.sight.mistakes.finding import Mistake
from gradstep.sight.mistakes.watched import Family, Watched

OPTIMIZER_MADE_ANEW = Mistake(
    "optimizer-made-anew",
    when="an optimizer that remembers something is made again at the same line for each step",
    why="its momentum and its averages begin at nothing each time: Adam then moves every weight by "
    "lr, however small its gradient",
    write="this line before the loop",
)
OPTIMIZER_WITHOUT_GRADIENTS = Mistake(
    "optimizer-without-gradients",
    when="none of an optimizer's parameters ever gets a gradient, while backward passes reach "
    "others",
    why="its steps change nothing",
    write="the loss so that it depends on these parameters, or the optimizer over those of the "
    "model that the loss comes from",
)

_IN_A_ROW = 3
_LONG_ENOUGH = 100


@dataclass
class _Line:
    """What is made at a line: the last one, and how many before it made just one step."""

    watched: Watched
    streak: int = 0


class MadeAnew(Family):
    """Compares each optimizer with the last one of the same line and parameters."""

    order = 14

    def __init__(self, diagnosis: Any) -> None:
        super().__init__(diagnosis)
        self._lines: dict[Any, _Line] = {}

    def added(self, watched: Watched) -> None:
        if watched.place is None or not watched.held or watched.steps:
            return
        first = watched.held[0].parameter
        key = (str(watched.place), id(first))
        line = self._lines.get(key)
        if line is None or not any(h.parameter is first for h in line.watched.held[:1]):
            self._lines[key] = _Line(watched)
            return
        last, line.watched = line.watched, watched
        if last is watched:
            return
        once = last.steps == 1 and not last.has_closure and _remembers(last, first)
        line.streak = line.streak + 1 if once else 0
        if line.streak >= _IN_A_ROW:
            self.diagnosis.report(
                OPTIMIZER_MADE_ANEW,
                f"{type(watched.optimizer).__name__} is made at this line again and again, over "
                "the same parameters, and makes one step each time",
                watched=watched,
                place=watched.place,
                key=key,
            )
            self.diagnosis.forget(last)

    def before_look(self, watched: Watched) -> None:
        if watched.steps >= _LONG_ENOUGH:
            self._find_without(watched)

    def _find_without(self, watched: Watched) -> None:
        backward = self.diagnosis.family(Backward)
        if watched.in_backward or backward is None or backward.count < watched.steps / 2:
            return
        trains = [h for h in watched.held if h.parameter.requires_grad]
        if not trains or any(h.ever or h.arrived or h.parameter.grad is not None for h in trains):
            return
        if any(f.name == "step-before-backward" for f in self.diagnosis.findings):
            return
        self.diagnosis.report(
            OPTIMIZER_WITHOUT_GRADIENTS,
            f"{watched.steps} steps of {type(watched.optimizer).__name__}, and none of its "
            f"{len(watched.held)} parameters ever got a gradient",
            watched=watched,
            place=watched.place,
        )

    def close(self) -> None:
        for watched in self.diagnosis.watched:
            if watched.steps >= _IN_A_ROW and not self.diagnosis.interrupted:
                self._find_without(watched)
        self._lines.clear()


def _remembers(watched: Watched, first: Tensor) -> bool:
    entry = watched.optimizer.state.get(first)
    return isinstance(entry, dict) and any(
        isinstance(value, Tensor) and name != "step" for name, value in entry.items()
    )
