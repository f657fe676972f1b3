"""How a parameter's states begin, and how they follow it when its layout changes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gradstep.backends.update import describe, has_shape, is_dense, is_matrix, layout
from gradstep.optimizer.state_spec import PLAIN, StateSpec
from gradstep.optimizer.weight_spec import state_specs
from gradstep.program.format import Format
from gradstep.rule.definition import Rule
from gradstep.rule.operations import is_followed
from gradstep.rule.state import State

#: A parameter's states by name.
Entry = dict[str, Any]

#: Shapes and dtypes by the names of tensors, and formats by those of states, where they differ from
#: the weight's.
Unlike = tuple[dict[str, tuple[int, ...]], dict[str, torch.dtype], dict[str, Format]]


def number_states(rule: Rule, numbers: Mapping[str, Any]) -> list[str]:
    """The states that are one number a parameter, the step count last."""
    states = rule.states.items()
    own = [n for n, s in states if s.start == "number" and s.exists(numbers)]
    return own + ["step"] * rule.counts_steps


_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


@contextmanager
def _making_states() -> Iterator[None]:
    """Lets torch make tensors that later steps may write, whatever mode the caller is in.

    A forked child lacks the threads of torch's pool: a fill or copy in several would wait for them
    for ever. There it is done in one.
    """
    threads = torch.get_num_threads() if _forked else 1
    if threads > 1:
        torch.set_num_threads(1)
    try:
        # In this order: outside of inference mode autograd is on again.
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        if threads > 1:
            torch.set_num_threads(threads)


def places_in_group(params: Sequence[Tensor]) -> dict[int, int]:
    """Of a group's parameters, by their ids: the largest first, then by shape and order."""
    ordered = sorted(filter(has_shape, params), key=lambda p: (-p.numel(), tuple(p.shape)))
    return {id(p): place for place, p in enumerate(ordered)}


class Beginnings:
    """How the states of a group's parameters begin.

    What hangs on the rule and the group's options alone is worked out once, not for each of
    thousands of parameters.

    Args:
        rule: names the states and how they start.
        group: the group, for torch's flags that say where a step count lives.
        numbers: lr and every hyperparameter, by name.
        shared: the states that all parameters have together, from :func:`shared_states`.
    """

    def __init__(
        self,
        rule: Rule,
        group: Mapping[str, Any],
        numbers: Mapping[str, Any],
        shared: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._rule = rule
        self._values = numbers
        #: The states that all parameters have together.
        self.shared = shared or {}
        #: The states that are one number a parameter, the step count last.
        self.numbers = number_states(rule, numbers)
        self._own_numbers = [n for n in self.numbers if n not in self.shared]
        self._on_device = bool(group.get("capturable") or group.get("fused"))
        double = torch.get_default_dtype() == torch.float64 and not group.get("fused")
        self._number_dtype = torch.float64 if double else torch.float32
        self._differentiable = bool(group.get("differentiable"))
        self._of_kind: dict[bool, tuple[list[str], list[str], list[StateSpec]]] = {}
        self._params: Sequence[Tensor] = group.get("params", ())

    @cached_property
    def _places(self) -> dict[int, int]:
        return places_in_group(self._params)

    def _of(self, matrix: bool) -> tuple[list[str], list[str], list[StateSpec]]:
        """Names that begin together, all names that are the parameter's own, and its tensors."""
        if matrix not in self._of_kind:
            states, numbers = self._rule.states, self._values
            specs = state_specs(self._rule).values()
            tensors = [each for each in specs if each.state.exists(numbers, matrix)]
            together = [n for n in self._own_numbers if n == "step" or not states[n].when]
            own = [each for each in tensors if each.name in states]
            together += [each.name for each in own if each.state.when is None]
            kept = [each.name for each in own] + self._own_numbers
            self._of_kind[matrix] = together, kept, tensors
        return self._of_kind[matrix]

    def begin(
        self, p: Tensor, entry: dict[str, Any], gradient: Tensor | None, name_of: Callable[[], str]
    ) -> bool:
        """Add the states that are missing, and tell whether all were.

        Args:
            p: the parameter.
            entry: its states by name; added to.
            gradient: the first gradient; None before there is one.
            name_of: the parameter's name, for messages.

        Raises:
            ValueError: some states are there, and others that began with them are not.
        """
        together, kept, tensors = self._of(is_matrix(p))
        missing = [n for n in together if entry.get(n) is None]
        if missing and len(missing) < len(together):
            there = ", ".join(n for n in together if n not in missing)
            raise ValueError(
                f"state {missing[0]!r} of {name_of()} is missing, while {there} is there. Load a "
                "checkpoint, or delete the parameter's entry in optimizer.state to start it anew."
            )
        fresh = bool(kept) and all(entry.get(n) is None for n in kept)
        for name in self._own_numbers:
            number = entry.get(name)
            # A plain number: as torch's SparseAdam has it.
            if number is None or (isinstance(number, int) and self._rule.sparse == "only"):
                entry[name] = self._number(p, name, number)
        lacking = [each for each in tensors if any(entry.get(n) is None for n in each.names_for(p))]
        if not lacking:
            entry.update(self.shared)
            return fresh
        with _making_states():
            for each in lacking:
                each.begin(p, self._values, gradient, entry)
        entry.update(self.shared)
        return fresh

    def follow_layout(self, p: Tensor, entry: dict[str, Any], before: Any) -> None:
        """Lay states out like their weight, if it was the weight that changed.

        Args:
            p: the parameter.
            entry: its states by name; those that were laid out anew are replaced.
            before: the weight's layout at the last step, None if that is not known.
        """
        if type(p) not in PLAIN or before == layout(p) or not is_dense(p):
            return
        for each in self._of(is_matrix(p))[2]:
            each.lay_out_anew(p, self._values, entry)

    def makes_any(self, matrix: bool) -> bool:
        """Whether a parameter with rows and columns, or without, has states of its own."""
        return bool(self._of(matrix)[1])

    def begin_all(
        self, params: Sequence[Tensor], gradients: Sequence[Tensor | None]
    ) -> list[Entry]:
        """All states of parameters that have none yet, in the order of :meth:`begin`.

        Args:
            params: plain tensors, whose gradients have their dtypes.
            gradients: the first of each; None where no state starts as it.
        """
        numbers, shared = self._own_numbers, self.shared
        tensors = {kind: self._of(kind)[2] for kind in (False, True)}
        if not numbers and not any(tensors.values()) and not shared:
            return [{}] * len(params)  # one, for nobody puts anything into it
        entries: list[Entry] = [{} for _ in params]
        for name in numbers:
            for p, entry in zip(params, entries, strict=True):
                entry[name] = self._number(p, name, None)
        if not any(tensors.values()) and not shared:
            return entries
        with _making_states():
            if tensors[True] == tensors[False] and all(map(_begins_as_zeros, tensors[True])):
                for each in tensors[True]:
                    for entry, zeros in zip(entries, map(torch.zeros_like, params), strict=True):
                        entry[each.name] = zeros
            else:
                for p, gradient, entry in zip(params, gradients, entries, strict=True):
                    for each in tensors[p.dim() > 1]:
                        each.begin(p, self._values, gradient, entry)
            if shared:
                for entry in entries:
                    entry.update(shared)
        return entries

    def _number(self, p: Tensor, name: str, number: Any) -> Tensor:
        """A state that is one number, from this one or, for None, from where it starts."""
        dtype = self._number_dtype
        if number is None:
            state = State() if name == "step" else self._rule.states[name]
            value = float(self._places[id(p)]) if state.counted else state.value
            number = self._values[value] if isinstance(value, str) else value
        if self._differentiable and is_followed(number):
            followed: Tensor = number.reshape(()).to(dtype, copy=True)
            return followed
        device: Any = p.device if self._on_device else "cpu"
        if torch.is_inference_mode_enabled():  # or later steps may not write it
            with torch.inference_mode(False):
                return torch.tensor(float(number), dtype=dtype, device=device)
        if number == 0 and type(number) is float and str(number) == "0.0":
            return torch.zeros((), dtype=dtype, device=device)  # in a fifth of the time
        return torch.tensor(float(number), dtype=dtype, device=device)


def _begins_as_zeros(spec: StateSpec) -> bool:
    return spec.is_like_weight and spec.state.start == "zeros"


def shared_states(
    rule: Rule, entries: Iterable[Any], numbers: Mapping[str, Any], known: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The states that all parameters have together: one tensor each, which is in every entry.

    Args:
        rule: names the states and how they start.
        entries: every parameter's states by name.
        numbers: lr and every hyperparameter, by name.
        known: those that were looked up for this step already.

    Raises:
        TypeError: what an entry holds is no number.
        ValueError: two entries hold different numbers.
    """
    found: dict[str, Tensor] = {}
    for name, state in rule.states.items():
        if not state.shared or not state.exists(numbers):
            continue
        held = known[name] if name in known else common_number(name, entries)
        if held is None:
            start = numbers[state.value] if isinstance(state.value, str) else state.value
            with torch.inference_mode(False):
                held = torch.tensor(float(start), dtype=torch.float64, device="cpu")
        found[name] = held
    return found


def common_number(name: str, entries: Iterable[Any]) -> Tensor | None:
    """The tensor that all entries have under a name, or the first of equal ones; None for none.

    Raises:
        TypeError: what an entry holds is no number.
        ValueError: two entries hold different numbers.
    """
    seen: dict[int, Tensor] = {}
    for entry in entries:
        held = entry.get(name) if isinstance(entry, Mapping) else None
        if held is not None:
            seen[id(held)] = held
    for held in seen.values():
        kinds = (torch.float32, torch.float64)
        if not (isinstance(held, Tensor) and held.numel() == 1 and held.dtype in kinds):
            raise TypeError(
                f"state {name!r} is {describe(held) if isinstance(held, Tensor) else repr(held)}. "
                "Expected a tensor of one float64 number, the same in every parameter's entry."
            )
    first = next(iter(seen.values()), None)
    for held in seen.values():
        if first is not None and not torch.equal(*map(_bits, (held, first))):
            raise ValueError(
                f"state {name!r} is one number for all parameters, and it is {float(first)} for "
                f"one and {float(held)} for another. Load a checkpoint, or give all the same."
            )
    return first


def _bits(number: Tensor) -> Tensor:
    """Of which nan is equal to itself."""
    return number.detach().double().reshape(1).cpu().view(torch.int64)


def unlike_weight(specs: Iterable[StateSpec], p: Tensor, numbers: Mapping[str, Any]) -> Unlike:
    """What of the tensors of states is not as their weight is.

    Args:
        specs: of the states to look at.
        p: the weight.
        numbers: every hyperparameter, by name.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, torch.dtype] = {}
    found: dict[str, Format] = {}
    for each in specs:
        if each.is_like_weight:
            continue
        for part in each.parts(p, numbers):
            if each.state.shape != "weight" or part.shape != p.shape or each.is_in_rows(p):
                shapes[part.name] = part.shape
            if part.dtype != p.dtype:
                dtypes[part.name] = part.dtype
        format = each.format_for(p)
        if format is not None:
            found[each.name] = format
    return shapes, dtypes, found
