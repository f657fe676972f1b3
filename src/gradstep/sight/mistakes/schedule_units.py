"""Schedules that count in another unit than they were made for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from gradstep.sight.mistakes.backward import Backward
from gradstep.sight.mistakes.calls import follow
from gradstep.sight.mistakes.finding import Mistake
from gradstep.sight.mistakes.scheduling import Scheduled, Scheduling
from gradstep.sight.mistakes.watched import FIRST_STEPS, Family, Watched

SCHEDULE_TOO_FAST = Mistake(
    "schedule-too-fast",
    when="a StepLR, MultiStepLR or ExponentialLR is stepped at each batch and divides the learning "
    "rate by thousands within one epoch (or by a million in all)",
    why="it was made for epochs: after the first ones the weights hardly move",
    write="scheduler.step() once an epoch, outside of the loop over batches; or a step_size, "
    "milestones or gamma for batches",
)
SCHEDULE_ENDED_EARLY = Mistake(
    "schedule-ended-early",
    when="the learning rate comes to 0 while a fifth of the steps or more is still to come",
    why="these steps change nothing",
    write="as many steps in the schedule as there are calls of scheduler.step()",
)
SCHEDULE_RISES_AGAIN = Mistake(
    "schedule-rises-again",
    when="CosineAnnealingLR is stepped on beyond its T_max",
    why="the learning rate rises again from there, and the training ends far above where it was",
    write="as T_max the number of calls of scheduler.step(): of epochs, or of steps",
    severity="advice",
)
SCHEDULER_STEPPED_TWICE = Mistake(
    "scheduler-stepped-twice",
    when="a scheduler is stepped more than once for each backward pass",
    why="the schedule runs through in a part of the training",
    write="one scheduler.step() after each optimizer.step(), or one an epoch",
)

_BY_ACCELERATE = (
    "accelerate steps a scheduler that it has prepared once for each process: as many steps in the "
    "schedule as all processes make together, or leave the scheduler out of prepare()"
)

_DECAYS = (lr_scheduler.StepLR, lr_scheduler.MultiStepLR, lr_scheduler.ExponentialLR)
_IN_AN_EPOCH, _IN_ALL = 3e-4, 1e-6
_ENOUGH = 10


class ScheduleUnits(Family):
    """Compares how often a scheduler is stepped with steps, backward passes and epochs."""

    order = 18

    def __init__(self, diagnosis: Any) -> None:
        super().__init__(diagnosis)
        self._epoch: dict[int, float] = {}  # id of a watched one -> lr where its epoch began
        self._zero: dict[int, int] = {}  # id of a watched one -> the step since which lr is 0
        self._positive: set[int] = set()
        self._ends: list[Callable[[], None]] = [
            follow(DataLoader, "__iter__", before=self._epoch_begins)
        ]

    def _epoch_begins(self, *_: Any, **__: Any) -> None:
        for watched in self.diagnosis.watched:
            self._epoch[id(watched)] = _rate(watched)

    def before_step(self, watched: Watched) -> None:
        rate = _rate(watched)
        if rate:
            self._positive.add(id(watched))
            if self._zero:
                self._zero.pop(id(watched), None)
        elif id(watched) in self._positive:
            self._zero.setdefault(id(watched), watched.steps)

    def before_look(self, watched: Watched) -> None:
        scheduled = self.diagnosis.family(Scheduling).of(watched)
        if scheduled is None or not scheduled.steps:
            return
        scheduler = scheduled.scheduler
        self._twice(watched, scheduled)
        if isinstance(scheduler, _DECAYS):
            self._decays(watched, scheduled)
        elif type(scheduler) is lr_scheduler.CosineAnnealingLR:
            beyond = scheduler.last_epoch - scheduler.T_max
            if beyond >= max(2, scheduler.T_max / 20):
                self.diagnosis.report(
                    SCHEDULE_RISES_AGAIN,
                    f"CosineAnnealingLR was made for T_max={scheduler.T_max} calls of its step(), "
                    f"and this was call {scheduler.last_epoch}: lr rises again",
                    write=_BY_ACCELERATE * scheduled.by_accelerate,
                    watched=watched,
                    place=scheduled.place,
                )

    def _decays(self, watched: Watched, scheduled: Scheduled) -> None:
        rate = _rate(watched)
        first = float(watched.optimizer.param_groups[0].get("initial_lr", 0))
        if scheduled.steps < 0.9 * watched.steps or rate <= 0 or first <= 0:
            return
        begun = self._epoch.get(id(watched), 0.0)
        within = begun > 0 and rate < _IN_AN_EPOCH * begun
        if within or rate < _IN_ALL * first:
            of = f"{begun:g} where this epoch began" if within else f"{first:g} at first"
            self.diagnosis.report(
                SCHEDULE_TOO_FAST,
                f"{type(scheduled.scheduler).__name__} was stepped {scheduled.steps} times in "
                f"{watched.steps} steps, and lr is {rate:.1g} after {of}",
                watched=watched,
                place=scheduled.stepped,
            )

    def _twice(self, watched: Watched, scheduled: Scheduled) -> None:
        backward = self.diagnosis.family(Backward)
        plateau = isinstance(scheduled.scheduler, lr_scheduler.ReduceLROnPlateau)
        if backward is None or backward.count < _ENOUGH or plateau or scheduled.by_accelerate:
            return
        passes = backward.count
        if scheduled.steps >= 1.9 * passes and watched.steps >= _ENOUGH / 2:
            self.diagnosis.report(
                SCHEDULER_STEPPED_TWICE,
                f"{type(scheduled.scheduler).__name__}.step() was called {scheduled.steps} times "
                f"in {passes} backward passes",
                watched=watched,
                place=scheduled.stepped,
            )

    def close(self) -> None:
        for end in self._ends:
            end()
        self._ends.clear()
        for watched in self.diagnosis.watched:
            since = self._zero.get(id(watched), watched.steps)
            scheduled = self.diagnosis.family(Scheduling).of(watched)
            left = watched.steps - since
            if scheduled is None or left < max(_ENOUGH, watched.steps / 5):
                continue
            about = "step" if since < FIRST_STEPS else "about step"
            calls = f"{scheduled.steps} calls of its step() in {watched.steps} steps"
            self.diagnosis.report(
                SCHEDULE_ENDED_EARLY,
                f"lr has been 0 since {about} {since} of {watched.steps}: "
                f"{type(scheduled.scheduler).__name__} was at its end ({calls})",
                write=_BY_ACCELERATE * scheduled.by_accelerate,
                watched=watched,
                place=scheduled.place,
            )


def _rate(watched: Watched) -> float:
    groups = watched.optimizer.param_groups
    return max((float(group["lr"]) for group in groups if "lr" in group), default=1.0)
