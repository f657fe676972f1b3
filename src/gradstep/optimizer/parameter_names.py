"""Which parameter has which name, also in groups that were changed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass
class _Record:
    """A group as it was at the last look.

    Attributes:
        group: itself, so that no other has its id.
        ids: of its parameters, which are not kept alive.
        given: its ``param_names``.
        names: the name of each parameter; None for one that has none.
    """

    group: Mapping[str, Any]
    ids: list[int]
    given: list[str]
    names: list[str | None]

    def fits(self) -> bool:
        """Whether the group is as it was."""
        params = self.group["params"]
        return self.group.get("param_names") == self.given and list(map(id, params)) == self.ids


class ParameterNames:
    """The names of an optimizer's parameters.

    A group has ``params`` and ``param_names`` side by side. Whoever takes a parameter out of the
    one, or appends one, mostly leaves the other as it was, and then neither length nor place fits.
    So it is remembered who had which name when both were given.
    """

    def __init__(self) -> None:
        self._records: dict[int, _Record] = {}

    def __getstate__(self) -> list[tuple[Mapping[str, Any], list[str | None] | None]]:
        # A copy has parameters of other ids.
        return [(record.group, self.of(record.group)) for record in self._records.values()]

    def __setstate__(self, named: list[tuple[Mapping[str, Any], list[str | None] | None]]) -> None:
        self._records = {}
        for group, names in named:
            self._remember(group, names)

    def begin(self, group: Mapping[str, Any]) -> None:
        """Take in a new group, whose names are those of its parameters."""
        if group.get("param_names"):
            self._remember(group, list(group["param_names"]))

    def follow(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Remember these groups as they are, and no others."""
        known = self._known()
        named = [(group, self._of(group, *known)) for group in groups]
        self._records = {}
        for group, names in named:
            self._remember(group, names)

    def follow_one(self, group: Mapping[str, Any]) -> None:
        """Remember one group as it is."""
        record = self._records.get(id(group))
        if record is None or not record.fits():
            self._remember(group, self._of(group, *self._known()))

    def of(self, group: Mapping[str, Any]) -> list[str | None] | None:
        """The name of each parameter of a group; None if the group has no names at all."""
        record = self._records.get(id(group))
        if record is not None and record.fits():
            return record.names
        return self._of(group, *self._known())

    def _remember(self, group: Mapping[str, Any], names: list[str | None] | None) -> None:
        if names is not None:
            ids, given = list(map(id, group["params"])), list(group["param_names"])
            self._records[id(group)] = _Record(group, ids, given, names)

    def _known(self) -> tuple[dict[int, str | None], set[tuple[str, ...]]]:
        """The name of each parameter, by its id, and all lists of names, as remembered."""
        by_id: dict[int, str | None] = {}
        for record in self._records.values():
            by_id.update(zip(record.ids, record.names, strict=True))
        return by_id, {tuple(record.given) for record in self._records.values()}

    def _of(
        self, group: Mapping[str, Any], by_id: Mapping[int, str | None], seen: set[tuple[str, ...]]
    ) -> list[str | None] | None:
        params, given = group["params"], group.get("param_names")
        if not given:
            return None
        record = self._records.get(id(group))
        if record is not None and record.fits():
            return record.names
        names = [by_id.get(id(p)) for p in params]
        if len(given) != len(params):
            return names
        if tuple(given) not in seen:
            return list(given)  # the names were changed as well
        # A parameter that is new has taken the place, and the name, of another, unless that is
        # still here under it.
        taken = set(names)
        return [
            own if name is None and own not in taken else name
            for name, own in zip(names, given, strict=True)
        ]
