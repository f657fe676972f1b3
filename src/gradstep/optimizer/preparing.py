"""What a step takes of each parameter, got ready: its states, begun or as they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from gradstep.backends.update import Update, layout
from gradstep.optimizer.group_run import GroupRun
from gradstep.optimizer.parameter_groups import Groups
from gradstep.optimizer.plain import are_plain
from gradstep.optimizer.states import Beginnings, Entry, follow_layout, unlike_weight


class Preparing(Groups):
    """What of :class:`gradstep.Optimizer` gets the updates of a step ready."""

    def _prepare_reading(self, defaults: Mapping[str, Any]) -> None:
        super()._prepare_reading(defaults)
        self._layouts: dict[int, Any] = {}  # by the ids of parameters

    def know_layouts(self, params: Iterable[Tensor]) -> None:
        """Take the parameters' layouts for those that their states have."""
        for p in params:
            self._layouts[id(p)] = layout(p) if p.layout is torch.strided else None

    def _updates_of(
        self,
        run: GroupRun,
        numbers: Sequence[str],
        names: Mapping[bool, Sequence[str]],
        params: Sequence[Tensor],
        gradients: Sequence[Tensor],
        entries: Sequence[Entry],
        begun: Sequence[bool],
    ) -> list[Update]:
        """The updates of a step.

        Args:
            run: of the parameters' group.
            numbers: the states that are one number.
            names: the other states, with rows and columns and without.
            params: the parameters.
            gradients: one a parameter.
            entries: the states of each, complete.
            begun: whether they have just been begun.
        """
        rule, all_alike = self.rule, self._are_alike(names)
        firsts = begun
        if "first" in rule.inputs:  # states may have been saved before the first step
            pairs = zip(begun, entries, strict=True)
            firsts = [new or ("step" in e and not float(e["step"])) for new, e in pairs]
        unlike: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        updates: list[Update] = []
        for p, gradient, entry, new, first in zip(
            params, gradients, entries, begun, firsts, strict=True
        ):
            own = names[p.dim() > 1]
            states = {n: entry[n] for n in own} if own else {}
            counts = {n: entry[n] for n in numbers} if numbers else {}
            if not all_alike:
                unlike = unlike_weight(rule, p, own, run.numbers)
            name = self._namer(p)
            updates.append(Update(p, gradient, states, counts, first, name, *unlike, new, entry))
        return updates

    def _are_alike(self, names: Mapping[bool, Sequence[str]]) -> bool:
        """Whether states of these names have their weight's shape and dtype."""
        return all(self.rule.states[n].shape == "weight" for own in names.values() for n in own)

    def _plain_entries(
        self,
        beginnings: Beginnings,
        names: Mapping[bool, Sequence[str]],
        params: Sequence[Tensor],
        gradients: Sequence[Tensor],
    ) -> tuple[list[Entry], list[bool]] | None:
        """The states of each parameter, and whether they were just begun; None to look with care.

        For parameters that have all of their states or none, where all is plain and no engine need
        look again. Nothing is changed.

        Args:
            names: the states that a parameter has, with rows and columns and without.
        """
        held: list[Any] = list(map(self.state.get, params))
        states: list[list[Any]] = []
        counts: list[Any] = []
        if not {dict, NoneType}.issuperset(map(type, held)):
            return None
        if any(held):
            if beginnings.shared or not self._are_alike(names):
                return None
            try:
                states = [
                    [entry[n] for n in names[p.dim() > 1]] if entry else []
                    for p, entry in zip(params, held, strict=True)
                ]
                counts = [entry[n] for entry in held if entry for n in beginnings.numbers]
            except KeyError:
                return None
        if not are_plain(params, gradients, states, counts):
            return None
        if all(held):
            return held, [False] * len(held)
        made = {kind: beginnings.makes_any(kind) for kind in (False, True)}
        begun = [not entry and made[p.dim() > 1] for p, entry in zip(params, held, strict=True)]
        lacking = [i for i, entry in enumerate(held) if not entry]
        new = beginnings.begin_all([params[i] for i in lacking], [gradients[i] for i in lacking])
        for i, entry in zip(lacking, new, strict=True):
            held[i] = entry
        return held, begun

    def _entries_of(
        self, beginnings: Beginnings, params: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> tuple[list[Entry], list[bool]]:
        """Copies of what parameters have, completed, and whether they were just begun."""
        entries, begun = [], []
        for p, gradient in zip(params, gradients, strict=True):
            held = self.state.get(p, {})
            if not isinstance(held, Mapping):
                raise TypeError(
                    f"optimizer.state of {self.name_of(p)} is a {type(held).__name__}, not a dict "
                    "of states by name. Load a checkpoint, or delete it to start anew."
                )
            entry = dict(held)
            new = beginnings.begin(p, entry, gradient, self._namer(p))
            if not new:
                follow_layout(self.rule, p, entry, self._layouts.get(id(p)))
            entries.append(entry)
            begun.append(new)
        return entries, begun
