"""One step of an optimizer, or of the parts of a partition: begun, planned, written, closed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gradstep.backends.base import Run
from gradstep.optimizer.cut_short import CutShort
from gradstep.optimizer.observer import StepObserver
from gradstep.optimizer.planning import Planner


class Step:
    """A step: all or nothing over its planners.

    Attributes:
        planners: of the optimizer, or of each part.
        observers: who is told of it.
        loss: what the closure returned; None without one.
        scale: what GradScaler has multiplied the gradients by, where the step is to divide them.
        found_inf: what the runs themselves are to read, to write nothing where it is not 0; None:
            they write.
        runs: once it is planned, of each planner what will write, in order.
        weight: where each weight makes its step by itself, within backward: the one whose step is
            planned. None: all that have a gradient.
        skipped: whether it is left out, since GradScaler found inf or nan in the gradients.
        error: once it is closed, what ended it.
    """

    __slots__ = (
        "error",
        "found_inf",
        "loss",
        "observers",
        "planners",
        "runs",
        "scale",
        "skipped",
        "weight",
    )

    def __init__(
        self,
        planners: Sequence[Planner],
        observers: Sequence[StepObserver],
        loss: Any = None,
        scale: Any = None,
        found_inf: Tensor | None = None,
    ) -> None:
        self.found_inf = found_inf
        self.planners = planners
        self.observers = observers
        self.loss = loss
        self.scale = scale
        self.runs: Sequence[list[Run]] = ()
        self.weight: Tensor | None = None
        self.skipped = False
        self.error: BaseException | None = None

    def make(self) -> None:
        """Make it.

        Raises:
            TypeError, ValueError, RuntimeError: something does not fit. Nothing has been written.
            RuntimeError: it was cut short; names the parameters that had been updated.
        """
        planners = self.planners
        if len(planners) == 1 and not (self.observers or planners[0].observers):
            # The short way, for nobody looks on: all the rest takes a microsecond.
            runs = planners[0].plan(self.loss, self.scale, self.found_inf)
            found_inf = self.found_inf
            # Where some would write whatever it says, it is read here.
            read = found_inf is not None and not all(getattr(run, "skips", 0) for run in runs)
            if read and float(found_inf):  # type: ignore[arg-type]
                return
            if not planners[0].may_stop:
                planners[0].write(runs)
                return
            self.runs = [runs]
        own = [observer for planner in planners for observer in planner.observers]
        self.observers = (*own, *self.observers)
        try:
            for observer in self.observers:
                observer.begun(self)
            self.runs = self.runs or [each.plan(self.loss, self.scale) for each in planners]
            if any(planner.may_stop for planner in planners):
                self.observers = (CutShort(), *self.observers)  # it looks before others tidy up
            for observer in self.observers:
                observer.planned(self)
            for planner, runs in zip(planners, self.runs, strict=True):
                planner.write(runs)
            for observer in self.observers:
                observer.written(self)
        except BaseException as error:
            self.error = error
            raise
        finally:
            try:
                self._close()
            finally:
                self.error = None  # whose traceback holds this step

    def make_weight(self, planner: Planner, group: int, place: int) -> None:
        """Make the part of one weight, which has a gradient; the observers have been told begun.

        Args:
            planner: one of the step's.
            group: the place of the weight's group.
            place: its own place in the group.

        Raises:
            TypeError, ValueError, RuntimeError: something does not fit. Nothing of the weight has
                been written.
            RuntimeError: it was cut short; says what has been written.
        """
        runs = planner.plan_weight(group, place)
        if not (self.observers or planner.may_stop):
            planner.write(runs)
            return
        self.weight = planner.contents.groups[group]["params"][place]
        self.runs = [runs if each is planner else [] for each in self.planners]
        account = CutShort() if planner.may_stop else StepObserver()
        try:
            for observer in (*self.observers, account):
                observer.planned(self)
            planner.write(runs)
        except BaseException as error:
            self.error = error
            account.closed(self)
            raise
        finally:
            self.weight, self.runs, self.error = None, (), None

    def skip(self) -> None:
        """Leave it out."""
        self.skipped = True
        self._close()

    def _close(self) -> None:
        raised: BaseException | None = None
        for observer in self.observers:
            try:
                observer.closed(self)
            except BaseException as error:
                raised = raised or error
        if raised is not None:
            raise raised

    def runs_of(self, planner: Planner) -> list[Run]:
        """What will write of a planner's."""
        return self.runs[self.planners.index(planner)]

    def run_beside(self, planner: Planner, runs: Sequence[Run]) -> None:
        """Make runs of an observer's together with those of a planner, and before them."""
        self.runs_of(planner)[:0] = runs
