"""Reads the options of parameter groups: what a step takes of them, and whether it is allowed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from types import MappingProxyType
from typing import Any

from torch import Tensor

from gradstep.backends.base import UnreadValues, Values
from gradstep.optimizer.cycled_momentum import momentum_places
from gradstep.rule.definition import Rule
from gradstep.rule.graph import Graph
from gradstep.rule.hyperparameter import (
    Interval,
    check_number,
    is_number,
    is_sequence,
    is_truth_value,
    like_default,
)

#: Where a rule's hyperparameter stands in a parameter group: under its own name, unless said
#: otherwise here, as ``{"beta1": ("betas", 0)}``.
Places = Mapping[str, tuple[str, int]]

_ANY = Interval(nan=True)


@dataclass(frozen=True)
class Reading:
    """What a step takes of a group's options.

    Attributes:
        values: the numbers of the step.
        traced_with: lr and every hyperparameter by name, numbers as floats.
        flags: all that the tracing depends on, beside whether numbers are 0; and the numbers that
            give states their shapes: another asks for a look with care at those that are there.
        maximize, differentiable: as torch has them.
        scaled: whether gradients are to be divided.
        raw: the options as they stand; None if they may change inside, as tensors do.
    """

    values: Values
    traced_with: dict[str, Any]
    flags: list[Any]
    maximize: bool
    differentiable: bool
    scaled: bool
    raw: tuple[Any, ...] | None

    def fits(self, graph: Graph) -> bool:
        """Whether every question that the rule asked would be answered as in its graph."""
        return all(bool(self.traced_with[n] != 0) == answer for n, answer in graph.questions)


class GroupReader:
    """Reads the options that a rule has in parameter groups.

    Classes of torch.optim that ask more of their options have one of their own.

    Attributes:
        rule: the rule, with plain numbers.
        places: of hyperparameters that do not stand under their own name.
        group_keys: the options of a group that a step reads.
        read_options: those of a group, in this order.
        number_names: the numbers of a step, in the order in which engines take them.
        flag_names: the hyperparameters that are no numbers; they choose the kernel.
        momenta: where a group has what torch's schedulers take for momentum.
        optional: the hyperparameters that stand in a group only where they are not as by default,
            and that default.
    """

    optional: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, rule: Rule, defaults: Mapping[str, Any], places: Places) -> None:
        self.rule = rule
        self.places = places
        keys = ["lr", *(places.get(n, (n,))[0] for n in rule.hyperparameters)]
        keys += [flag for flag in ("maximize", "differentiable") if flag in defaults]
        self.group_keys = tuple(dict.fromkeys(k for k in keys if k not in self.optional))
        self.read_options: Callable[[Mapping[str, Any]], tuple[Any, ...]]
        self.read_options = itemgetter(*self.group_keys)
        if self.optional:
            self.read_options = self._read_with_optional
        numeric = [n for n, d in rule.hyperparameters.items() if is_number(d)]
        self.number_names = ("lr", *numeric, "grad_scale", *["loss"] * ("loss" in rule.inputs))
        self.momenta = momentum_places(rule, places)
        self._warned: set[str] = set()  # options that were set to what makes no sense
        own_flags = (n for n, d in rule.hyperparameters.items() if isinstance(d, bool))
        self._flags = (*own_flags, "maximize", "differentiable")
        self.flag_names = tuple(n for n in rule.hyperparameters if n not in numeric)

    def _read_with_optional(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        return (*map(group.__getitem__, self.group_keys), *map(group.get, self.optional))

    def read(
        self, group: Mapping[str, Any], loss: float, scale: Any, found_inf: Tensor | None = None
    ) -> Reading:
        """Read a group's numbers and flags, and check them.

        Args:
            group: the group.
            loss: of the present step; used if the rule asks for it.
            scale: by which the present step divides the gradients; None: by none.
            found_inf: what the step itself is to read, to write nothing where it is not 0; None
                for nothing of the kind. The scale is then left to it as well.

        Raises:
            TypeError, ValueError: an option that is not allowed.
        """
        unread = self._unread(group)
        if unread:
            # Looked at when the group was added; to look again would be to wait for the device.
            self.check_changed({**group, **{n: self._usual(n) for n in unread}})
        else:
            self.check_changed(group)
        if found_inf is not None and isinstance(scale, Tensor):
            unread["grad_scale"] = scale
        raw, numbers = self.read_options(group), self.hyperparameters(group)
        maximize, differentiable = bool(group.get("maximize")), bool(group.get("differentiable"))
        flags = [numbers[n] for n in self.flag_names]
        flags += [_as_given(numbers[n]) for state in self.rule.states.values() for n in state.of]
        flags += [maximize, differentiable, scale is not None]
        floats = {
            n: as_float(v)
            for n, v in (("lr", group["lr"]), *numbers.items())
            if n in self.number_names and n not in unread
        }
        traced_with = {**numbers, "lr": group["lr"], **floats}
        given = {n: v if n in unread else _as_given(v) for n, v in numbers.items()}
        if "lr" in unread:
            given["lr"] = unread["lr"]
        else:
            given["lr"] = _as_given(like_default(group["lr"], self.rule.lr))
        if "grad_scale" in unread:
            given["grad_scale"] = scale
        else:
            given["grad_scale"] = floats["grad_scale"] = 1.0 if scale is None else float(scale)
        if "loss" in self.number_names:
            given["loss"] = floats["loss"] = self._loss_for(group, loss)
        known = tuple([floats.get(n, 0.0) for n in self.number_names])
        values = Values(known, given)
        if unread or found_inf is not None:
            values = UnreadValues(self.number_names, known, given, unread, found_inf)
        settled = all(isinstance(v, int | float | str | bool | tuple | None) for v in raw)
        parts = [v for t in raw if isinstance(t, tuple) for v in t]
        settled = settled and all(isinstance(v, int | float | None) for v in parts)
        kept = raw if settled and scale is None else None
        scaled = scale is not None
        return Reading(values, traced_with, flags, maximize, differentiable, scaled, kept)

    def with_loss(self, values: Values, loss: float, group: Mapping[str, Any]) -> Values:
        """The numbers of a step whose options are those of the last, and whose loss is another.

        To read all options anew at each step took a quarter of ALI-G's step of LeNet.
        """
        loss = self._loss_for(group, loss)
        return Values((*values.numbers[:-1], loss), {**values.given, "loss": loss})

    def _loss_for(self, group: Mapping[str, Any], loss: float) -> float:
        return -loss if group.get("maximize") else loss  # what is climbed is its negative

    def _unread(self, group: Mapping[str, Any]) -> dict[str, Tensor]:
        """The numbers in tensors that a step need not read: a graph is to find them changed."""
        if not group.get("capturable") or group.get("differentiable"):
            return {}
        found: dict[str, Tensor] = {}
        for name in self.number_names:
            value = group.get(name) if name not in self.places else None
            if isinstance(value, Tensor) and value.numel() == 1 and not value.requires_grad:
                found[name] = value
        return found

    def _usual(self, name: str) -> Any:
        return 0.0 if name == "lr" else self.rule.hyperparameters[name]

    def hyperparameter(self, group: Mapping[str, Any], name: str) -> Any:
        """A hyperparameter of the rule, from where it stands in a group."""
        value, default = self._raw(group, name), self.rule.hyperparameters[name]
        if value is None and name in self.optional:
            return None
        return bool(value) if isinstance(default, bool) else like_default(value, default)

    def hyperparameters(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """All of them by name."""
        return {name: self.hyperparameter(group, name) for name in self.rule.hyperparameters}

    def numbers(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """These and ``lr``."""
        return {**self.hyperparameters(group), "lr": group["lr"]}

    def _raw(self, group: Mapping[str, Any], name: str) -> Any:
        """One as it was given."""
        place = self.places.get(name)
        if place is None:
            return group.get(name, self.optional[name]) if name in self.optional else group[name]
        key, index = place
        pair = group[key]
        wanted = 1 + max(i for k, i in self.places.values() if k == key)
        if not is_sequence(pair) or len(pair) != wanted:
            raise ValueError(f"Invalid {key}: {pair!r}; expected {wanted} numbers")
        return pair[index]

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Raise unless every option of a new group is allowed.

        Raises:
            TypeError: of the wrong type.
            ValueError: nan, or out of range.
        """
        for name in ("lr", *self.rule.hyperparameters):
            self._check_option(group, name, self._range(name))
        self._check_directions(group)

    def check_changed(self, group: Mapping[str, Any], loaded: bool = False) -> None:
        """Raise unless a step can be made with the options that a group has by now.

        As torch.optim: ranges hold for new groups, and what a scheduler or a user sets later is
        taken. What is out of its range by more than a rounding, nan, and a flag that is neither
        True nor False nor a number are warned of, once.

        Args:
            group: the group.
            loaded: whether it comes from a checkpoint, where nan or a word is a spoilt file.

        Raises:
            TypeError: of the wrong type.
            ValueError: nan or out of range for a number that gives states their shapes; and in a
                checkpoint nan, or a flag of the rule that is none.
        """
        flags = ("maximize", "differentiable") if loaded else self._flags
        odd_flags = {n: group[n] for n in flags if n in group and not is_truth_value(group[n])}
        for name, value in odd_flags.items():
            self._warn_of(name, f"Invalid {name} value: {value!r}; expected True or False")
            group = {**group, name: bool(value)}
        try:
            return self.check_group(group)
        except ValueError as error:
            odd = str(error)
        shaping = {n for state in self.rule.states.values() for n in state.of}
        names = ("lr", *self.rule.hyperparameters)
        taken = Interval() if loaded else _ANY
        for name in names:
            self._check_option(group, name, self._range(name) if name in shaping else taken)
        self._check_directions(group)
        said = {n: self._refusal(group, n, self._range(n)) for n in names}
        if not any(said.values()):  # it is two options together
            self._warn_of(odd, odd)
        for name, refusal in said.items():
            if refusal and self._refusal(group, name, self._range(name).widened()):
                self._warn_of(name, refusal)

    def _warn_of(self, key: str, said: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(
                f"{said}. It was set after the optimizer was made, and is taken as it is, as "
                "torch.optim takes it.",
                stacklevel=3,
            )

    def _range(self, name: str) -> Interval:
        return Interval(0.0) if name == "lr" else self.rule.intervals.get(name, Interval())

    def _check_option(self, group: Mapping[str, Any], name: str, interval: Interval) -> None:
        if name == "lr":
            check_number("lr", group["lr"], interval)
            return
        spoken = None
        if name in self.places:
            key, index = self.places[name]
            spoken = f"{key.removesuffix('s')} parameter at index {index}"
        self.rule.check(name, self._raw(group, name), spoken, interval)

    def _refusal(self, group: Mapping[str, Any], name: str, interval: Interval) -> str | None:
        try:
            self._check_option(group, name, interval)
        except ValueError as error:
            return str(error)
        return None

    def _check_directions(self, group: Mapping[str, Any]) -> None:
        for flag in ("maximize", "differentiable"):
            if not is_truth_value(group.get(flag, False)):
                raise TypeError(f"Invalid {flag} value: {group[flag]!r}; expected True or False")


def as_float(value: Any) -> float:
    """A number, or the one number that a tensor holds."""
    return float(value.detach().item() if isinstance(value, Tensor) else value)


def _as_given(value: Any) -> Any:
    """Numbers as floats; flags, and tensors that autograd follows, as they are."""
    if isinstance(value, Tensor):
        return value if value.requires_grad else as_float(value)
    return float(value) if is_number(value) else value
