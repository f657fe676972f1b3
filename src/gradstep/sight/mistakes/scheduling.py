"""Learning-rate schedulers and the order of their calls."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gradstep.sight.mistakes.calls import follow
from gradstep.sight.mistakes.finding import Mistake
from gradstep.sight.mistakes.place import Place, here
from gradstep.sight.mistakes.watched import Family, Watched

SCHEDULER_BEFORE_OPTIMIZER = Mistake(
    "scheduler-before-optimizer",
    when="a scheduler is stepped before the first step of its optimizer",
    why="the first value of the schedule is skipped",
    write="scheduler.step() after optimizer.step()",
)
SCHEDULER_NEVER_STEPPED = Mistake(
    "scheduler-never-stepped",
    when="a scheduler is made, and its step() never called",
    why="the learning rate stays where the schedule begins",
    write="scheduler.step() after optimizer.step(), or at the end of each epoch",
)

_TRIAL = 3
#: So many optimizers may stand around one another.
_DEEP = 4


@dataclass
class Scheduled:
    """A scheduler that is watched.

    Attributes:
        scheduler: it.
        place: where it was made.
        steps: how often it was stepped since.
        stepped: where it was stepped first.
        by_accelerate: whether accelerate steps it, which does so once for each process.
    """

    scheduler: Any
    place: Place | None
    steps: int = 0
    stepped: Place | None = None
    by_accelerate: bool = False


class Scheduling(Family):
    """Schedulers that are stepped before the optimizer, or never."""

    order = 4

    def __init__(self, diagnosis: Any) -> None:
        super().__init__(diagnosis)
        self._schedulers: dict[int, Scheduled] = {}
        self._ends: list[Callable[[], None]] = []
        self._followed: set[type] = set()

    def take(self, scheduler: Any, place: Place | None) -> None:
        """Watch this scheduler."""
        if id(scheduler) in self._schedulers:
            return
        self._schedulers[id(scheduler)] = Scheduled(scheduler, place)
        # step() of the class that defines it: a call through super() would count twice.
        owner = next((c for c in type(scheduler).__mro__ if "step" in vars(c)), None)
        if owner is not None and owner not in self._followed:
            self._followed.add(owner)
            self._ends.append(follow(owner, "step", before=self._stepped))

    def all(self) -> list[Any]:
        """The schedulers that are watched."""
        return [known.scheduler for known in self._schedulers.values()]

    def of(self, watched: Watched) -> Scheduled | None:
        """The scheduler of an optimizer, as far as one is watched: the outermost."""
        mine = [k for k in self._schedulers.values() if self._optimizer_of(k.scheduler) is watched]
        last = mine[-1] if mine else None
        return next((k for k in mine if hasattr(k.scheduler, "_schedulers")), last)

    def _stepped(self, scheduler: Any, *_: Any, **__: Any) -> None:
        known = self._schedulers.get(id(scheduler))
        if known is None or getattr(scheduler, "_is_initial", False):
            return
        known.steps += 1
        if known.steps == 1:
            known.stepped = here()
            known.by_accelerate = _called_by("accelerate.")
            watched = self._optimizer_of(scheduler)
            if watched is not None and watched.steps == 0:
                self.diagnosis.guarded(self._too_early, watched, scheduler)

    def _optimizer_of(self, scheduler: Any) -> Watched | None:
        optimizer = scheduler.optimizer
        for _ in range(_DEEP):
            for watched in self.diagnosis.watched:
                if watched.optimizer is optimizer:
                    found: Watched = watched
                    return found
            optimizer = getattr(optimizer, "optimizer", None)  # of accelerate's, for one
        return None

    def _too_early(self, watched: Watched, scheduler: Any) -> None:
        if any(h.arrived for h in watched.held):
            gc.collect()  # a scaler that nobody has any more has skipped nothing here
            if any(
                issubclass(type(thing), torch.amp.GradScaler) and thing.is_enabled()
                for thing in gc.get_objects()
            ):
                return  # it has skipped the first step, because of a scale that was too large
        self.diagnosis.report(
            SCHEDULER_BEFORE_OPTIMIZER,
            f"{type(scheduler).__name__}.step() was called before the first optimizer.step()",
            watched=watched,
        )

    def close(self) -> None:
        for end in self._ends:
            end()
        self._ends.clear()
        inner = {
            id(part)
            for known in self._schedulers.values()
            for part in getattr(known.scheduler, "_schedulers", ())
        }
        for key, known in self._schedulers.items():
            watched = self._optimizer_of(known.scheduler)
            if (
                known.steps
                or key in inner
                or watched is None
                or watched.steps < _TRIAL
                or self.diagnosis.interrupted
            ):
                continue
            self.diagnosis.report(
                SCHEDULER_NEVER_STEPPED,
                f"{type(known.scheduler).__name__} was made, but its step() was never called in "
                f"{watched.steps} steps of the optimizer",
                watched=watched,
                place=known.place,
                key=key,
            )


def _called_by(package: str) -> bool:
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(package):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
