"""The one door for whoever looks on at steps: explanations, schedules, the account of an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from gradstep.optimizer.step import Step


@dataclass(slots=True)
class Contents:
    """An optimizer's groups and states as they are by now: anybody may exchange them.

    The optimizer itself is not in it: what belongs to it would keep it, and all states, alive.
    """

    groups: list[dict[str, Any]] = field(default_factory=list)
    state: MutableMapping[Any, Any] = field(default_factory=dict)


class StepObserver:
    """Is told of each step of an optimizer, or of a partition; does nothing unless overridden.

    The order is begun, planned, written, closed. What is raised before ``written`` ends the step,
    and only ``closed`` comes then. Where weights make their steps by themselves, within backward,
    ``planned`` comes once for each, with ``step.weight``; then, without, for all that are left.
    """

    def begun(self, step: Step) -> None:
        """The closure has run, and nothing of the step has been read yet."""

    def planned(self, step: Step) -> None:
        """All is read and checked, nothing is written: ``step.runs`` will write."""

    def written(self, step: Step) -> None:
        """Weights and states are written."""

    def closed(self, step: Step) -> None:
        """It is over: written, skipped (``step.skipped``), or ended by ``step.error``."""


class OneByOne(StepObserver):
    """Has weights of a step planned one by one, and stands before and behind each.

    A planner has one of these in its ``one_by_one`` while a step is made. All is still planned
    before anything is written.
    """

    def is_alone(self, p: Tensor) -> bool:
        """Whether a weight is one of these; the others are planned together, and come first."""
        return True

    def in_order(self, weights: list[tuple[int, int, Tensor]]) -> list[tuple[int, int, Tensor]]:
        """The order in which weights are written: each with the places of its group and itself."""
        return weights

    def stored(self, p: Tensor, entry: dict[str, Any]) -> dict[str, Any]:
        """The states that a weight is about to step with, where they are to lie."""
        return entry

    def before(self, p: Tensor) -> None:
        """A weight is about to be written."""

    def after(self, p: Tensor) -> None:
        """A weight, and its states, are written."""

    def before_all(self) -> None:
        """All weights are about to be written together: by a rule that sums over them."""


def observe(optimizer: Any, observer: StepObserver) -> Callable[[], None]:
    """Let an observer look on at the steps of an optimizer of gradstep, or of a partition.

    Returns:
        what ends it.
    """
    optimizer._observers = (*optimizer._observers, observer)

    def end() -> None:
        optimizer._observers = tuple([o for o in optimizer._observers if o is not observer])

    return end


@contextmanager
def unobserved(optimizer: Any, kind: type[StepObserver]) -> Iterator[None]:
    """Observers of this kind do not see the steps within; any optimizer may be given."""
    before = getattr(optimizer, "_observers", ())
    hidden = tuple([o for o in before if isinstance(o, kind)])
    if hidden:
        optimizer._observers = tuple([o for o in before if o not in hidden])
    try:
        yield
    finally:
        if hidden:
            optimizer._observers = before
