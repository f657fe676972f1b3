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
from gradstep.optimizer.state_spec import StateSpec, state_specs
from gradstep.optimizer.states import Beginnings, Entry, Unlike, unlike_weight
from gradstep.program.formats import DType


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
        rule, specs = self.rule, self._unlike(names)
        firsts = begun
        if "first" in rule.inputs:  # states may have been saved before the first step
            pairs = zip(begun, entries, strict=True)
            firsts = [new or ("step" in e and not float(e["step"])) for new, e in pairs]
        tensors = {kind: self._tensor_names(own) for kind, own in names.items()}
        alike: Unlike = ({}, {}, {})
        updates: list[Update] = []
        for p, gradient, entry, new, first in zip(
            params, gradients, entries, begun, firsts, strict=True
        ):
            own, of_kind = tensors[p.dim() > 1], specs[p.dim() > 1]
            states = {n: entry[n] for n in own} if own else {}
            counts = {n: entry[n] for n in numbers} if numbers else {}
            unlike: Unlike = unlike_weight(of_kind, p, run.numbers) if of_kind else alike
            name = self._namer(p)
            updates.append(Update(p, gradient, states, counts, first, name, *unlike, new, entry))
        return updates

    def _unlike(self, names: Mapping[bool, Sequence[str]]) -> dict[bool, list[StateSpec]]:
        """Of these states those that have not always their weight's shape and dtype."""
        specs = state_specs(self.rule)
        return {
            k: [specs[n] for n in own if not specs[n].is_like_weight] for k, own in names.items()
        }

    def _tensor_names(self, names: Sequence[str]) -> list[str]:
        """Of the tensors of these states, in their order."""
        specs = state_specs(self.rule)
        return [name for n in names for name in specs[n].names]

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
        dtypes: dict[bool, list[Any]] = {}
        if any(held):
            unlike = [spec for own in self._unlike(names).values() for spec in own]
            # Of one tensor of the weight's shape it is enough to know the dtype.
            formats = {s.name: s.format.dtype for s in unlike if isinstance(s.format, DType)}
            if beginnings.shared or len(formats) < len({spec.name for spec in unlike}):
                return None
            if formats:
                dtypes = {kind: [formats.get(n) for n in own] for kind, own in names.items()}
            try:
                states = [
                    [entry[n] for n in names[p.dim() > 1]] if entry else []
                    for p, entry in zip(params, held, strict=True)
                ]
                counts = [entry[n] for entry in held if entry for n in beginnings.numbers]
            except KeyError:
                return None
        if not are_plain(params, gradients, states, counts, dtypes):
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
                beginnings.follow_layout(p, entry, self._layouts.get(id(p)))
            entries.append(entry)
            begun.append(new)
        return entries, begun
