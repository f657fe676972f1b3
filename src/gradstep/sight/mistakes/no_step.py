"""Trainings in which no step is made, or in which every step has a learning rate of 0."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradstep.sight.mistakes.backward import Backward
from gradstep.sight.mistakes.finding import Mistake
from gradstep.sight.mistakes.place import Place
from gradstep.sight.mistakes.scheduling import Scheduling
from gradstep.sight.mistakes.watched import Family, Held, Watched, values_of

NO_STEP = Mistake(
    "no-step",
    when="backward passes reach an optimizer's parameters, and its step() is never called: "
    "forgotten, or written without its parentheses",
    why="the weights stay as they are, and the gradients pile up",
    write="optimizer.step() after this line",
)
LEARNING_RATE_ZERO = Mistake(
    "learning-rate-zero",
    when="the learning rate is 0 at all steps: set so, or by a warm-up that never leaves 0",
    why="a step of length 0 changes nothing",
    write="a learning rate above 0",
)

_TRIAL = 3


class NoStep(Family):
    """Looks at the end whether a training has trained."""

    order = 16

    def __init__(self, diagnosis: Any) -> None:
        super().__init__(diagnosis)
        self._begun: dict[int, tuple[Held, Tensor | None]] = {}
        self._above_zero: set[int] = set()

    def added(self, watched: Watched) -> None:
        candidates = [h for h in watched.held if h.parameter.requires_grad]
        if candidates and not watched.steps:
            held = max(candidates, key=lambda h: h.parameter.numel())
            self._begun[id(watched)] = held, values_of(held.parameter, 64)

    def forgot(self, watched: Watched) -> None:
        self._begun.pop(id(watched), None)

    def before_look(self, watched: Watched) -> None:
        self._begun.pop(id(watched), None)
        if id(watched) not in self._above_zero:
            rates = [
                float(group["lr"]) for group in watched.optimizer.param_groups if "lr" in group
            ]
            if not rates or any(rates):
                self._above_zero.add(id(watched))

    def close(self) -> None:
        if self.diagnosis.interrupted:
            return
        for watched in self.diagnosis.watched:
            if watched.steps >= _TRIAL and id(watched) not in self._above_zero:
                self._say_zero(watched)
            elif not watched.steps and id(watched) in self._begun:
                self._look(watched, *self._begun[id(watched)])
        self._begun.clear()

    def _look(self, watched: Watched, held: Held, begun: Tensor | None) -> None:
        backward = self.diagnosis.family(Backward)
        now = values_of(held.parameter, 64)
        if backward is None or backward.count < _TRIAL or begun is None or now is None:
            return
        if not held.arrived or now.shape != begun.shape or not torch.equal(now, begun):
            return  # no gradient came, or somebody else moves the weights
        name = type(watched.optimizer).__name__
        seen = f"{backward.count} backward passes, and {name}.step() was never called"
        bare = _without_parentheses("step", watched.place, backward.place)
        if bare is not None:
            self.diagnosis.report(
                NO_STEP,
                f"{seen}: this line names it, and does not call it",
                write=f"{bare.text.partition('#')[0].strip()}()",
                watched=watched,
                place=bare,
            )
        else:
            self.diagnosis.report(NO_STEP, seen, watched=watched, place=backward.place)

    def _say_zero(self, watched: Watched) -> None:
        scheduler = self.diagnosis.family(Scheduling).of(watched)
        if scheduler is None:
            self.diagnosis.report(
                LEARNING_RATE_ZERO,
                f"lr was 0 at all {watched.steps} steps",
                watched=watched,
                place=watched.place,
            )
            return
        kind, steps = type(scheduler.scheduler).__name__, scheduler.steps
        self.diagnosis.report(
            LEARNING_RATE_ZERO,
            f"lr was 0 at all {watched.steps} steps: {kind}, which was stepped {steps} "
            f"time{'s' * (steps != 1)}, never left 0",
            write="a schedule that begins above 0, such as (step + 1) / warmup, and "
            "scheduler.step() after each optimizer.step() if it counts steps",
            watched=watched,
            place=scheduler.place,
        )


def _without_parentheses(name: str, *places: Place | None) -> Place | None:
    """A statement in the files of these lines that names a method and does not call it."""
    for file in dict.fromkeys(place.file for place in places if place is not None):
        try:
            tree = ast.parse(Path(file).read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Attribute)
                and node.value.attr == name
            ):
                return Place(file, node.lineno, "<module>")
    return None
