"""The schedules of an optimizer: which number of which group follows which, and how far it is."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from operator import is_
from typing import Any

from gradstep.optimizer.observer import Contents, StepObserver
from gradstep.rule.hyperparameter import Interval, check_number
from gradstep.rule.schedule import Schedule, as_schedule

#: The option of a group, and the place in it if it is a pair such as betas.
Place = tuple[str, int | None]

#: Where a group keeps how many steps it has made along its schedules.
COUNT = "schedule_step"


class Schedules:
    """The schedules of all groups.

    A group holds the present numbers and its count, so that whoever reads or saves a group needs
    to know nothing of schedules.

    Args:
        defaults: the options of groups that have none of their own, schedules among them.
    """

    def __init__(self, defaults: Mapping[str, Any]) -> None:
        self._defaults = _found({n: as_schedule(v) for n, v in defaults.items()})
        self._groups: list[dict[Place, Schedule]] = []
        #: The groups that these belong to: whoever takes one out takes its schedules along.
        self._held: list[MutableMapping[str, Any]] = []
        #: What was put into the groups last, by group and place: nobody else may change it.
        self._written: dict[tuple[int, Place], Any] = {}
        self._any = bool(self._defaults)

    def __bool__(self) -> bool:
        return self._any

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._any = bool(self._defaults) or any(self._groups)

    def add_group(self, group: MutableMapping[str, Any], given: Mapping[str, Any]) -> None:
        """Take in a new group.

        Args:
            group: with numbers only.
            given: its own options, as they were given, with schedules.
        """
        own = {place: s for place, s in self._defaults.items() if place[0] not in given}
        own.update(_found(given))
        self._groups.append({})
        self._held.append(group)
        self._add(len(self._groups) - 1, group, own)

    def drop_last(self) -> None:
        """The last group has been taken out again."""
        self._groups.pop()
        self._held.pop()

    def add_to_group(
        self, number: int, group: MutableMapping[str, Any], given: Mapping[str, Any]
    ) -> None:
        """Take in further options of a group."""
        self._add(number, group, _found(given))

    def _add(
        self, number: int, group: MutableMapping[str, Any], found: Mapping[Place, Schedule]
    ) -> None:
        self._groups[number].update(found)
        if found:
            self._any = True
            group.setdefault(COUNT, 0)
        self._written.update({(number, place): _read(group, place) for place in found})

    def begin_anew(self, groups: Sequence[MutableMapping[str, Any]]) -> None:
        """Groups have been loaded: whatever they hold is where to go on from."""
        self.follow(groups)
        for number, (own, group) in enumerate(zip(self._groups, groups, strict=True)):
            self._written.update({(number, place): _read(group, place) for place in own})
            if ("lr", None) in own:  # of the run that was saved; none drives this one yet
                group.pop("initial_lr", None)

    def follow(self, groups: Sequence[MutableMapping[str, Any]]) -> None:
        """See which groups are there by now.

        A group that is new has the schedules of the one whose parameters it holds; whatever else it
        holds is where to go on from. One of nobody's parameters has schedules only if it counts:
        those of the defaults whose numbers stand in it.
        """
        if len(groups) == len(self._held) and all(map(is_, groups, self._held)):
            return
        if not self:  # of thousands of groups, none follows anything
            self._held, self._groups, self._written = list(groups), [{} for _ in groups], {}
            return
        places = {id(group): number for number, group in enumerate(self._held)}
        for number, group in enumerate(self._held):
            places.update({id(p): number for p in group["params"]})
        known, schedules, written = self._held, self._groups, self._written
        self._held, self._groups, self._written = list(groups), [], {}
        for number, group in enumerate(groups):
            keys = (id(group), *map(id, group["params"]))
            before = next((places[key] for key in keys if key in places), None)
            if before is not None:
                own = dict(schedules[before])
            else:
                own = {p: s for p, s in self._defaults.items() if _stands_in(group, p, s)}
            self._groups.append(own)
            for place in own:
                group.setdefault(COUNT, 0)
                self._written[number, place] = (
                    written[before, place]
                    if before is not None and known[before] is group
                    else _read(group, place)
                )

    def set_numbers(self, groups: Sequence[MutableMapping[str, Any]]) -> None:
        """Put the numbers of the coming step into the groups.

        A learning rate that somebody has set to 0 stays so, and the step does not count.

        Raises:
            ValueError: somebody else has changed a number that follows a schedule, or that gives
                nan.
        """
        self.follow(groups)
        for number, (own, group) in enumerate(zip(self._groups, groups, strict=False)):
            for place, schedule in own.items():
                if self._held_at_zero(number, group, place):
                    continue
                self._check_alone(number, group, place, schedule)
                value = schedule(int(group[COUNT]))
                if value != value:  # else it would be taken, as from torch's schedulers
                    check_number(place[0], value, Interval())
                write_number(group, place, value)
                self._written[number, place] = value

    def advance(self, groups: Sequence[MutableMapping[str, Any]]) -> None:
        """A step has been made."""
        for number, (own, group) in enumerate(zip(self._groups, groups, strict=False)):
            if own and not any(self._held_at_zero(number, group, place) for place in own):
                group[COUNT] = int(group[COUNT]) + 1

    def _held_at_zero(self, number: int, group: Mapping[str, Any], place: Place) -> bool:
        if place != ("lr", None):
            return False
        return bool(self._written[number, place] != 0 and float(group["lr"]) == 0)

    def _check_alone(
        self, number: int, group: Mapping[str, Any], place: Place, schedule: Schedule
    ) -> None:
        key = place[0]
        if key == "lr" and "initial_lr" in group:
            raise ValueError(
                f"lr of group {number} follows the schedule {schedule}, and a scheduler of "
                "torch.optim.lr_scheduler drives it as well. Keep one: give lr as a number, or "
                "make no scheduler"
            )
        written, now = self._written[number, place], _read(group, place)
        if now != written and not (now != now and written != written):  # nan is not nan
            raise ValueError(
                f"{key} of group {number} follows the schedule {schedule}, and somebody else has "
                f"set it from {written!r} to {now!r}. Keep one: give {key} as a number to change "
                "it yourself, or by a scheduler"
            )


class Scheduled(StepObserver):
    """Lets the numbers of an optimizer's groups follow their schedules, step by step.

    Args:
        schedules: what they follow.
        contents: the groups.
    """

    def __init__(self, schedules: Schedules, contents: Contents) -> None:
        self._schedules, self._contents = schedules, contents

    def begun(self, step: Any) -> None:
        """Put the numbers of the step into the groups."""
        self._schedules.set_numbers(self._contents.groups)

    def written(self, step: Any) -> None:
        """Count it."""
        self._schedules.advance(self._contents.groups)


def _found(options: Mapping[str, Any]) -> dict[Place, Schedule]:
    """The schedules among options, by their places."""
    found: dict[Place, Schedule] = {}
    for key, value in options.items():
        if isinstance(value, Schedule):
            found[key, None] = value
        elif isinstance(value, tuple):
            found.update({(key, i): v for i, v in enumerate(value) if isinstance(v, Schedule)})
    return found


def _stands_in(group: Mapping[str, Any], place: Place, schedule: Schedule) -> bool:
    """Whether a group that counts holds the number that a schedule gave it last."""
    return COUNT in group and _read(group, place) == schedule(max(int(group[COUNT]) - 1, 0))


def _read(group: Mapping[str, Any], place: Place) -> Any:
    key, index = place
    return group[key] if index is None else group[key][index]


def write_number(group: MutableMapping[str, Any], place: Place, value: Any) -> None:
    """Put a number into its place in a group."""
    key, index = place
    if index is None:
        group[key] = value
    else:
        group[key] = tuple(value if i == index else v for i, v in enumerate(group[key]))
