"""Groups with the same options, which a step takes as one: there may be thousands of one parameter.

Only where nothing can come of it but time: for rules that work on each element alone, and weights
that do not share memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Any

from gradstep.optimizer.equal_options import equal_options
from gradstep.optimizer.group_run import GroupRun

#: Options that a step reads only where it begins states.
_OF_STATES = ("fused", "capturable")


class AlikeRun(GroupRun):
    """What is known of several groups from their last step, as if they were one.

    Attributes:
        members: the groups.
        group: the options that they have in common.
        places: of the members among the optimizer's groups.
        misses: how many steps the members have had to make one by one, at a stretch.
    """

    def __init__(self, members: Sequence[dict[str, Any]], places: Sequence[int]) -> None:
        super().__init__({})
        self.members = list(members)
        self.places = list(places)
        self.misses = 0
        self.follow_options()

    def follow_options(self) -> None:
        """Take over the options that the members have by now."""
        self.group.update({k: v for k, v in self.members[0].items() if k != "params"})

    def params(self) -> list[Any]:
        """The parameters, group after group."""
        return [p for group in self.members for p in group["params"]]

    def forget_steps(self) -> None:
        """The members step one by one: nothing of what is known holds after that."""
        self.plans, self.rows, self.engines = {}, {}, {}


class AlikeGroups:
    """Which groups have the same options.

    Args:
        groups: the optimizer's.
        options: of each, what a step reads.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], options: list[tuple[Any, ...]]) -> None:
        self._groups = list(groups)
        self._options = options
        self._of_states = _of_states(groups)
        by_options: dict[Any, list[int]] = {}  # or by place, for one of its own
        for place, (own, others) in enumerate(zip(options, self._of_states, strict=True)):
            key = equal_options((*own, *others)) or place
            by_options.setdefault(key, []).append(place)
        #: The places of groups that are alike, in the order of their first.
        self.places = list(by_options.values())
        #: What the step takes one after the other.
        self.runs: list[GroupRun] = []

    def are_of(self, groups: Sequence[dict[str, Any]]) -> bool:
        """Whether these are still the groups."""
        return len(groups) == len(self._groups) and all(map(is_, groups, self._groups))

    def hold_for(self, groups: Sequence[dict[str, Any]], options: list[tuple[Any, ...]]) -> bool:
        """Whether these are still the groups, and have still the same options."""
        return (
            self.are_of(groups)
            and options == self._options
            and [type(own[0]) for own in options] == [type(own[0]) for own in self._options]
            and _of_states(groups) == self._of_states
        )


def _of_states(groups: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [tuple([group.get(name) for name in _OF_STATES]) for group in groups]
