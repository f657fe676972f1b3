"""An optimizer's parameter groups: what stands in them, whether it is allowed, who is who."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import partial
from operator import itemgetter
from typing import Any, ClassVar

from torch import Tensor

from gradstep.backends.update import describe, has_shape
from gradstep.optimizer.cycled_momentum import OffersMomentum, momentum_places, put_momentum
from gradstep.optimizer.parameter_names import ParameterNames
from gradstep.optimizer.schedules import Schedules
from gradstep.optimizer.states import Beginnings
from gradstep.optimizer.step_hooks import HooksOnce
from gradstep.rule.combine import chain
from gradstep.rule.definition import Rule
from gradstep.rule.hyperparameter import (
    Interval,
    check_number,
    is_number,
    is_sequence,
    is_truth_value,
    like_default,
)
from gradstep.rule.schedule import as_schedule, at_start
from gradstep.rule.trace import trace

#: Where a rule's hyperparameter stands in a parameter group: under its own name, unless said
#: otherwise here, as ``{"beta1": ("betas", 0)}``.
Places = Mapping[str, tuple[str, int]]

_ANY = Interval(nan=True)


class Groups(HooksOnce):
    """What of :class:`gradstep.Optimizer` is about its parameter groups.

    Attributes:
        rule: the rule, with plain numbers.
        group_keys: the options of a group that a step reads.
        number_names: the numbers of a step, in the order in which engines take them.
        flag_names: the hyperparameters that are no numbers; they choose the kernel.
    """

    rule: Rule
    group_keys: tuple[str, ...]
    number_names: tuple[str, ...]
    flag_names: tuple[str, ...]
    _schedules: Schedules
    _names: ParameterNames
    _places: ClassVar[Places] = {}
    #: Whether states exist from construction on (as in torch's Adagrad) or from the first step.
    _states_at_construction = False

    def _prepare_reading(self, defaults: Mapping[str, Any]) -> None:
        """Find out what a step reads of a group with these options."""
        rule = self.rule
        keys = ["lr", *(self._places.get(n, (n,))[0] for n in rule.hyperparameters)]
        keys += [flag for flag in ("maximize", "differentiable") if flag in defaults]
        self.group_keys = tuple(dict.fromkeys(keys))
        self.read_options = itemgetter(*self.group_keys)
        numeric = [n for n, d in rule.hyperparameters.items() if is_number(d)]
        self.number_names = ("lr", *numeric, "grad_scale", *["loss"] * ("loss" in rule.inputs))
        self._momenta = momentum_places(rule, self._places)
        self._warned: set[str] = set()  # options that were set to what makes no sense
        own_flags = (n for n, d in rule.hyperparameters.items() if isinstance(d, bool))
        self._flags = (*own_flags, "maximize", "differentiable")
        self.flag_names = tuple(n for n in rule.hyperparameters if n not in numeric)

    def begin_anew(self) -> None:
        """Forget what was known of earlier steps: groups and states have been exchanged."""
        self._prepare_reading(self.defaults)
        self._schedules.begin_anew(self.param_groups)
        self._names.follow(self.param_groups)

    # Numbers.

    def take_momentum(self, group: MutableMapping[str, Any]) -> None:
        """Put a ``momentum`` that a scheduler of torch's has set where the rule has it."""
        offered = "part" in group or isinstance(self.defaults, OffersMomentum)
        if offered and "momentum" in group and "momentum" not in self.group_keys:
            put_momentum(group, self._momenta)

    def hyperparameter(self, group: Mapping[str, Any], name: str) -> Any:
        """A hyperparameter of the rule, from where it stands in a group."""
        value, default = self._raw(group, name), self.rule.hyperparameters[name]
        return bool(value) if isinstance(default, bool) else like_default(value, default)

    def _raw(self, group: Mapping[str, Any], name: str) -> Any:
        """The same, as it was given."""
        place = self._places.get(name)
        if place is None:
            return group[name]
        key, index = place
        pair = group[key]
        wanted = 1 + max(i for k, i in self._places.values() if k == key)
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

    def check_loaded(self, group: Mapping[str, Any]) -> None:
        """:meth:`check_changed` for a group of a checkpoint, where nan or a word is a spoilt file.

        Raises:
            TypeError: of the wrong type.
            ValueError: nan, a flag that is none, or what :meth:`check_changed` refuses.
        """
        for name in ("lr", *self.rule.hyperparameters):
            self._check_option(group, name, Interval())
        self.check_changed(group)

    def check_changed(self, group: Mapping[str, Any]) -> None:
        """Raise unless a step can be made with the options that a group has by now.

        As torch.optim: ranges hold for new groups, and what a scheduler or a user sets later is
        taken. What is out of its range by more than a rounding, nan, and a flag that is neither
        True nor False nor a number are warned of, once.

        Raises:
            TypeError: of the wrong type.
            ValueError: nan or out of range for a number that gives states their shapes.
        """
        flags = {n: group[n] for n in self._flags if n in group and not is_truth_value(group[n])}
        for name, value in flags.items():
            self._warn_of(name, f"Invalid {name} value: {value!r}; expected True or False")
            group = {**group, name: bool(value)}
        try:
            return self.check_group(group)
        except ValueError as error:
            odd = str(error)
        shaping = {n for state in self.rule.states.values() for n in state.of}
        names = ("lr", *self.rule.hyperparameters)
        for name in names:
            self._check_option(group, name, self._range(name) if name in shaping else _ANY)
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
        if name in self._places:
            key, index = self._places[name]
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

    # Groups.

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with options of its own.

        Args:
            param_group: a dict with ``"params"`` and any options that differ from the defaults.

        Raises:
            TypeError: integer parameters, complex ones where states have a format of their own,
                or an option of the wrong type.
            ValueError: a parameter in two groups, or an option out of range. The optimizer is as
                it was.
        """
        own = {n: v for n, v in param_group.items() if n in self.group_keys}
        found = {n: as_schedule(v) for n, v in own.items()}
        numbers = {n: at_start(v) for n, v in found.items()}
        # Else as it is: torch keeps the very dict that it was given.
        if any(numbers[n] is not v for n, v in own.items()):
            param_group = {**param_group, **numbers}
        try:
            super().add_param_group(param_group)
        except ValueError as error:
            given = param_group["params"] if isinstance(param_group["params"], list) else []
            ids = set(map(id, given))
            twice = [name for name, p in self.named_parameters() if id(p) in ids]
            if twice and "more than one" in str(error):
                raise ValueError(f"{error}: {', '.join(twice)}. Give each once.") from None
            raise
        group = self.param_groups[-1]
        try:
            for p in group["params"]:
                if not (p.is_floating_point() or p.is_complex()):
                    raise TypeError(
                        f"{self.name_of(p)} holds {describe(p)}; only floating-point and complex "
                        "tensors can be optimized. Leave it out."
                    )
                for state, name in self.rule.formats.items() if p.is_complex() else ():
                    raise TypeError(
                        f"{self.name_of(p)} holds {describe(p)}, and {state} would be stored as "
                        f"{name}, of real numbers. Give it to an optimizer without state_dtype."
                    )
            self.check_group(group)
        except Exception:
            self.param_groups.pop()
            raise
        self._schedules.add_group(group, found)
        self._names.begin(group)
        if self._states_at_construction:
            numbers = {n: self.hyperparameter(group, n) for n in self.rule.hyperparameters}
            numbers["lr"] = group["lr"]
            beginnings = Beginnings(self.rule, group, numbers)
            for p in group["params"]:
                if p.is_meta or not has_shape(p):  # its states begin with its first step
                    continue
                beginnings.begin(p, self.state[p], None, self._namer(p))

    def extend(self, stage: Rule) -> None:
        """Put a stage behind the rule, with its numbers in the defaults and in every group.

        Raises:
            ValueError: steps have been made already, which would have been other ones with it; or
                the rule has a hyperparameter of the same name.
            RuleError: a stage that cannot stand behind this rule. The optimizer is as it was.
        """
        if self.state:
            raise ValueError(
                f"{stage.name} cannot be added behind {self.rule.name} any more: the optimizer has "
                "states already. Add it before the first step, and before a checkpoint is loaded."
            )
        taken = [n for n in stage.hyperparameters if n in self.defaults or n in self._places]
        taken += [n for n in stage.states if n in self.rule.states]
        if taken:
            raise ValueError(
                f"{self.rule.name} has its own {taken[0]!r}: is {stage.name} part of it already?"
            )
        rule, whole = self.rule, chain(self.rule, stage)
        values = {n: v for n, v in self.defaults.items() if n in rule.hyperparameters}
        trace(whole, {**whole.hyperparameters, **values, "lr": 0.0})
        self.rule = whole
        self._schedules.follow(self.param_groups)
        for number, group in enumerate((*self.param_groups, self.defaults)):
            group.update({n: at_start(v) for n, v in stage.hyperparameters.items()})
            if group is not self.defaults:
                self._schedules.add_to_group(number, group, stage.hyperparameters)
        self.begin_anew()

    # Names.

    def _namer(self, p: Tensor) -> Callable[[], str]:
        # Plans keep this. With the optimizer itself in it, that and its states would be freed only
        # when Python next looks for cycles; with the parameter, one that has been replaced never.
        # (A weak reference to it would be in the way of torch.utils.swap_tensors.)
        return partial(_name_now, weakref.ref(self), id(p))

    def name_of(self, p: Tensor) -> str:
        """The parameter's name in the model if the optimizer was given names, else its place.

        Looks through all groups: for many parameters at once see :meth:`named_parameters`.
        """
        for number, group in enumerate(self.param_groups):
            for position, q in enumerate(group["params"]):
                if q is p:
                    names = self._names.of(group)
                    return (names and names[position]) or _place(number, position, p)
        return f"a parameter of shape {_shape(p)}"

    def names_in(self, group: Mapping[str, Any]) -> list[str | None] | None:
        """The name that each parameter of a group was given with; None if the group has none."""
        return self._names.of(group)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter with the name that messages use."""
        for number, group in enumerate(self.param_groups):
            names = self._names.of(group)
            for position, p in enumerate(group["params"]):
                yield (names and names[position]) or _place(number, position, p), p


def _place(number: int, position: int, p: Tensor) -> str:
    return f"parameter {position} of group {number} (shape {_shape(p)})"


def _name_now(optimizer: weakref.ref[Groups], key: int) -> str:
    """The name of the optimizer's parameter of this id, neither of which is kept alive for it."""
    groups = optimizer()
    named = () if groups is None else groups.named_parameters()
    return next((name for name, p in named if id(p) == key), "a parameter")


def _shape(p: Tensor) -> str:
    return str(tuple(p.shape)) if has_shape(p) else "not known yet"
