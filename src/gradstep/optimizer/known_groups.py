"""What is known of an optimizer's groups from one step to the next, by their places.

Groups come and go, and are exchanged, by anybody's hand; those that are alike go through a step as
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from gradstep.optimizer.alike_groups import AlikeGroups, AlikeRun
from gradstep.optimizer.group_run import GroupRun, WeightRun
from gradstep.optimizer.observer import Contents
from gradstep.optimizer.parameter_groups import GroupReader
from gradstep.optimizer.preparing import are_apart


class KnownGroups:
    """The runs of groups, of several together, and of weights that step alone.

    Args:
        contents: the groups, as they are by now.
        reader: reads their options.
        followers: are told of the groups where some have been exchanged or taken out.
    """

    def __init__(
        self,
        contents: Contents,
        reader: GroupReader,
        followers: Iterable[Callable[[Any], object]],
    ) -> None:
        self._contents, self._reader = contents, reader
        self._followers = tuple(followers)
        self._runs: dict[int, GroupRun] = {}
        self._weights: dict[tuple[int, int], WeightRun] = {}  # by places of group and weight
        self._alike: AlikeGroups | None = None

    def __len__(self) -> int:
        """Of how many groups something is known."""
        return len(self._runs)

    def __getitem__(self, place: int) -> GroupRun:
        """Of the group at a place."""
        run = self._runs.get(place)
        if run is not None and run.group is not self._contents.groups[place]:
            self.follow()
            run = None
        if run is None:
            run = self._runs[place] = GroupRun(self._contents.groups[place])
        return run

    def of_each(self) -> Iterator[GroupRun]:
        """Of every group, one after the other."""
        return map(self.__getitem__, range(len(self._contents.groups)))

    def of_weight(self, whole: GroupRun, group: int, place: int) -> WeightRun:
        """Of a weight by its places, alone.

        Args:
            whole: of its group.
        """
        run = self._weights.get((group, place))
        if run is None or run.group is not whole.group:
            run = self._weights[group, place] = WeightRun(whole.group, place)
        run.follow(whole)
        return run

    def of_groups(self) -> list[GroupRun]:
        """Of the groups that have been read."""
        return list(self._runs.values())

    def all(self) -> list[GroupRun]:
        """Also of several groups together, which come last: they are what made a step."""
        together = [] if self._alike is None else self._alike.runs
        alike = (run for run in together if isinstance(run, AlikeRun))
        return [*self._runs.values(), *alike, *self._weights.values()]

    def of_step(self, steps_by_elements: Callable[[GroupRun], bool]) -> list[GroupRun]:
        """Of each group, or of several that are alike together.

        Args:
            steps_by_elements: whether it makes no difference to a group's weights which others a
                kernel gets.
        """
        groups, known = self._contents.groups, self._alike
        try:
            options = list(map(self._reader.read_options, groups))
            if known is not None and known.hold_for(groups, options):
                return known.runs
            self._alike = AlikeGroups(groups, options)
        except Exception:  # an option is missing, or cannot be compared: reading it has words
            self._alike = None
            return list(self.of_each())
        before: dict[tuple[int, ...], AlikeRun] = {}
        if known is not None:
            before = {tuple(run.places): run for run in known.runs if isinstance(run, AlikeRun)}
            if not known.are_of(groups):
                self.follow()
                before = {}
        self._alike.runs = list(self._taken_together(self._alike.places, steps_by_elements, before))
        return self._alike.runs

    def _taken_together(
        self,
        all_places: Sequence[list[int]],
        steps_by_elements: Callable[[GroupRun], bool],
        before: Mapping[tuple[int, ...], AlikeRun],
    ) -> Iterator[GroupRun]:
        """What is known of each of these sets of groups that are alike, or of its groups."""
        groups = self._contents.groups
        apart = len(all_places) == 1 or are_apart([p for g in groups for p in g["params"]])
        for places in all_places:
            first = self[places[0]]
            if len(places) > 1 and apart and steps_by_elements(first):
                run = before.get(tuple(places)) or AlikeRun([groups[i] for i in places], places)
                run.follow_options()
                yield run
            else:
                yield first
                yield from map(self.__getitem__, places[1:])

    def follow(self) -> None:
        """Groups have been exchanged or taken out: forget those that are gone."""
        groups, runs = self._contents.groups, self._runs.items()
        kept = [(i, run) for i, run in runs if i < len(groups) and run.group is groups[i]]
        self._runs = dict(kept)
        self._weights = {
            key: run
            for key, run in self._weights.items()
            if key[0] in self._runs and run.group is groups[key[0]]
        }
        for follow in self._followers:
            follow(groups)
