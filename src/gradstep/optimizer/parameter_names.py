"""Which parameter has which name, also in groups that were changed by hand."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradstep.backends.update import has_shape
from gradstep.optimizer.observer import Contents


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
    """The names of an optimizer's parameters: whoever needs one asks here.

    A group has ``params`` and ``param_names`` side by side. Whoever takes a parameter out of the
    one, or appends one, mostly leaves the other as it was, and then neither length nor place fits.
    So it is remembered who had which name when both were given.
    """

    def __init__(self) -> None:
        self._records: dict[int, _Record] = {}
        #: By the id of a parameter: its group and place, its name, and what was given for it there.
        self._index: dict[int, tuple[int, int, str, Any]] = {}

    def __getstate__(self) -> list[tuple[Mapping[str, Any], list[str | None] | None]]:
        # A copy has parameters of other ids.
        return [(record.group, self.in_group(record.group)) for record in self._records.values()]

    def __setstate__(self, named: list[tuple[Mapping[str, Any], list[str | None] | None]]) -> None:
        self._records, self._index = {}, {}
        for group, names in named:
            self._remember(group, names)

    # To ask.

    def of(self, groups: Sequence[Mapping[str, Any]], p: Tensor) -> str:
        """A parameter's name in the model if the optimizer was given names, else its place."""
        for _ in range(2):
            number, place, name, given = self._index.get(id(p), (len(groups), 0, "", None))
            if number < len(groups):
                params = groups[number]["params"]
                there = place < len(params) and params[place] is p
                if there and _given(groups[number], place) == given:
                    return name
            self._index = {}
            for number, named in enumerate(self._by_group(groups)):
                for place, (name, q) in enumerate(named):
                    found = number, place, name, _given(groups[number], place)
                    self._index.setdefault(id(q), found)
        return f"a parameter{_shape(p)}"

    def all(
        self, groups: Sequence[Mapping[str, Any]], shapes: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Every parameter with its name, or its place; with its shape beside that, or without."""
        for named in self._by_group(groups, shapes):
            yield from named

    def in_group(self, group: Mapping[str, Any]) -> list[str | None] | None:
        """The name that each parameter of a group was given; None if the group has no names."""
        return self._of(group, self._known)

    def namer(self, contents: Contents, p: Tensor) -> Callable[[], str]:
        """What gives a parameter's name when a message needs it.

        Plans keep it, and it does not keep the parameter, which may be replaced. (A weak reference
        to it would be in the way of torch.utils.swap_tensors.)
        """
        return functools.partial(self._now, contents, id(p))

    def namers(self, contents: Contents, params: Sequence[Tensor]) -> Sequence[Callable[[], str]]:
        """The same for each of many parameters."""
        return _Namers(self, contents, list(map(id, params)))

    def _now(self, contents: Contents, key: int) -> str:
        named = self.all(contents.groups)
        return next((name for name, p in named if id(p) == key), "a parameter")

    def _by_group(
        self, groups: Sequence[Mapping[str, Any]], shapes: bool = True
    ) -> Iterator[list[tuple[str, Tensor]]]:
        known = functools.cache(self._known)
        for number, group in enumerate(groups):
            params = group["params"]
            names = self._of(group, known) or [None] * len(params)
            yield [
                (name or f"parameter {place} of group {number}{_shape(p) if shapes else ''}", p)
                for place, (name, p) in enumerate(zip(names, params, strict=True))
            ]

    # To remember.

    def begin(self, group: Mapping[str, Any]) -> None:
        """Take in a new group, whose names are those of its parameters."""
        if group.get("param_names"):
            self._remember(group, list(group["param_names"]))

    def follow(self, groups: Sequence[Mapping[str, Any]], alone: bool = True) -> None:
        """Remember these groups as they are; and, if ``alone``, no others."""
        known = functools.cache(self._known)
        named = [(group, self._of(group, known)) for group in groups if group.get("param_names")]
        if alone:
            self._records, self._index = {}, {}
        for group, names in named:
            self._remember(group, names)

    def _remember(self, group: Mapping[str, Any], names: list[str | None] | None) -> None:
        record = self._records.get(id(group))
        if names is not None and (record is None or not record.fits()):
            ids, given = list(map(id, group["params"])), list(group["param_names"])
            self._records[id(group)] = _Record(group, ids, given, names)

    def _known(self) -> tuple[dict[int, str | None], set[tuple[str, ...]]]:
        """The name of each parameter, by its id, and all lists of names, as remembered."""
        by_id: dict[int, str | None] = {}
        for record in self._records.values():
            by_id.update(zip(record.ids, record.names, strict=True))
        return by_id, {tuple(record.given) for record in self._records.values()}

    def _of(
        self,
        group: Mapping[str, Any],
        known: Callable[[], tuple[Mapping[int, str | None], set[tuple[str, ...]]]],
    ) -> list[str | None] | None:
        params, given = group["params"], group.get("param_names")
        if not given:
            return None
        record = self._records.get(id(group))
        if record is not None and record.fits():
            return record.names
        by_id, seen = known()
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


class _Namers(Sequence[Any]):
    """What gives the names of parameters, made where it is asked for."""

    def __init__(self, names: ParameterNames, contents: Contents, ids: list[int]) -> None:
        self._names, self._contents, self._ids = names, contents, ids

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, place: Any) -> Any:
        return functools.partial(self._names._now, self._contents, self._ids[place])


def names_of(optimizer: Any) -> ParameterNames:
    """The names of any optimizer's parameters: of gradstep, of torch, or another."""
    own = getattr(optimizer, "_names", None)
    return own if isinstance(own, ParameterNames) else ParameterNames()


def _given(group: Mapping[str, Any], place: int) -> Any:
    """The name that stands beside a parameter."""
    names = group.get("param_names") or ()
    return names[place] if place < len(names) else None


def _shape(p: Tensor) -> str:
    return f" (shape {tuple(p.shape) if has_shape(p) else 'not known yet'})"


def first_names(names: Sequence[str], most: int = 5) -> str:
    """Names for a message: the first, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"
