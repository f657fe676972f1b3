"""Whether a value outside of a rule is what it was: what is compared, and what stays as it is."""

from __future__ import annotations

import argparse
import enum
import functools
import logging
import sys
import types
from collections import deque
from collections.abc import Iterator, Mapping, Set
from typing import Any

import numpy
import torch
from torch import Tensor

from gradstep.rule.definition import Rule
from gradstep.rule.opaque import Opaque

#: How many values are compared at a step for one object that a rule reads as a whole.
MANY = 100

#: Stands for what is not there.
MISSING = object()
_SCALARS = (bool, int, float, complex, str, bytes, type(None))
_SETTLED = (*_SCALARS, numpy.generic, enum.Enum, torch.dtype, torch.device, range, types.ModuleType)
_NEW_EACH_TIME = ("random", "time", "secrets", "uuid", "numpy.random")
_DRAWING = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial"}
_KNOWN = frozenset({*sys.stdlib_module_names, "torch", "numpy", "gradstep"})


def is_known(value: Any) -> bool:
    """Whether it is a module, class or function that stays as it is: torch's, Python's or ours."""
    if isinstance(value, Opaque | logging.Logger):  # the one is called at each step
        return True
    if isinstance(value, types.ModuleType):
        module: Any = value.__name__
    elif isinstance(value, types.BuiltinFunctionType):
        return isinstance(value.__self__, types.ModuleType | type)
    elif isinstance(value, Rule):
        return all(map(is_known, value.functions()))
    elif isinstance(value, types.MethodType):
        known = isinstance(value.__self__, type | logging.Logger)
        return known and is_known(value.__self__) and is_known(value.__func__)
    elif isinstance(value, type | types.FunctionType | numpy.ufunc):
        module = getattr(value, "__module__", None) or "numpy"
    else:
        return False
    return str(module).partition(".")[0] in _KNOWN


def is_method(value: Any) -> bool:
    """Whether it is a function that hangs on an object of a class that is not the user's."""
    if isinstance(value, types.MethodType):
        return is_known(value.__func__) and not is_known(value)
    return isinstance(value, types.BuiltinMethodType | types.MethodWrapperType)


def is_new_each_time(value: Any) -> bool:
    """Whether it is a function that tells the time, or draws a number."""
    if not isinstance(value, types.BuiltinFunctionType | types.FunctionType | types.MethodType):
        return False
    owner = getattr(value, "__self__", None)
    module = getattr(value, "__module__", None) or getattr(owner, "__module__", None)
    # NumPy's state of random numbers had no module of its own before NumPy 2.
    module = module or getattr(owner, "__name__", None) or type(owner).__module__
    if not isinstance(module, str):
        return False
    if module.partition(".")[0] == "torch" or owner is torch._C._VariableFunctions:
        return getattr(value, "__name__", "") in _DRAWING
    return any(module == m or module.startswith(f"{m}.") for m in _NEW_EACH_TIME)


class Unwatched(Exception):
    """A value whose changes cannot be seen; says what it is."""


def is_settled(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(is_settled, value))
    return isinstance(value, (*_SETTLED, types.FunctionType, Rule)) or value is MISSING


class Comparable:
    """Makes of a value one that is equal as long as the rule would read the same.

    Attributes:
        functions: those that were found in it.
        members: those of its class, which may never be called.
    """

    def __init__(self) -> None:
        self.functions: list[Any] = []
        self.members: list[Any] = []
        self._count = 0
        self._within: list[int] = []

    def of(self, value: Any) -> Any:
        """What is compared of a value.

        Raises:
            Unwatched: nothing that could be compared tells whether it has changed.
        """
        kind = type(value)
        if kind in _SCALARS:  # 0.0 and -0.0 are equal, and are not the same
            return (kind, value or repr(value))
        if value is MISSING or isinstance(value, _SETTLED) or is_known(value):
            return value
        if isinstance(value, Tensor | numpy.ndarray):
            return self._array(value)
        if isinstance(value, types.FunctionType | Rule):
            self.functions.append(value)
            return id(value) if isinstance(value, Rule) else value
        if isinstance(value, types.MethodType):
            self.functions.append(value)
            return (id(value.__self__), value.__func__)
        if isinstance(value, types.BuiltinMethodType):  # of a list or a dict
            return (value.__name__, self.of(value.__self__))
        if id(value) in self._within:
            return "itself"
        self._within.append(id(value))
        try:
            return (kind, *self._parts(value))
        finally:
            self._within.pop()

    def _parts(self, value: Any) -> Iterator[Any]:
        kind = type(value)
        if isinstance(value, functools.partial):
            parts: Any = (value.func, value.args, value.keywords)
        elif isinstance(value, Mapping):
            parts = [part for pair in value.items() for part in pair]
        elif isinstance(value, list | tuple | deque):
            parts = value
        elif isinstance(value, Set):
            parts = sorted(value, key=repr)
        elif hasattr(value, "__wrapped__"):
            parts = (value.__wrapped__,)
        elif isinstance(value, type):
            parts = self._members(value)
        elif isinstance(value, types.SimpleNamespace | argparse.Namespace):
            parts = vars(value).items()
        elif kind.__module__.partition(".")[0] not in _KNOWN:
            parts = self._attributes(value)
        elif _compares(kind):
            yield value  # such as a date, a fraction or a path
            return
        else:
            raise Unwatched(_article(kind))
        counted = not is_settled(value)
        for part in parts:
            self._count += counted
            if self._count > MANY:
                raise Unwatched(f"{_article(kind)} of more than {MANY} values")
            yield self.of(part)

    def _attributes(self, value: Any) -> list[Any]:
        """Of an object of a user's class: its attributes, and the functions of its class."""
        kind = type(value)
        slots = [n for k in kind.__mro__ for n in _names(k.__dict__.get("__slots__", ()))]
        held = {n: getattr(value, n) for n in slots if hasattr(value, n)}
        held |= getattr(value, "__dict__", {})
        if not held and not hasattr(value, "__dict__") and not slots:
            raise Unwatched(_article(kind))
        parts: list[Any] = []
        for name, attribute in held.items():
            parts += [name, attribute]
        for k in kind.__mro__:
            if not is_known(k):
                parts += self._members(k)
        return parts

    def _members(self, kind: type) -> list[Any]:
        """What a user's class holds: its constants and functions."""
        parts: list[Any] = []
        for name, member in list(vars(kind).items()):
            if isinstance(member, staticmethod | classmethod):
                member = member.__func__
            if isinstance(member, types.FunctionType):
                self.members.append(member)
                parts.append(id(member))
            elif not name.startswith("__") and isinstance(member, (*_SETTLED, tuple, list, dict)):
                parts += [name, member]
        return parts

    def _array(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.numel() > MANY or value.device.type == "meta":
                raise Unwatched(f"a tensor of {value.numel()} elements")
            return ("tensor", value.dtype, repr(value.detach().tolist()))
        if value.size > MANY or value.dtype.hasobject:
            raise Unwatched(f"an array of {value.size} elements")
        return ("array", value.dtype.str, value.shape, value.tobytes())


def _names(slots: Any) -> tuple[str, ...]:
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _article(kind: type) -> str:
    return f"{'an' if kind.__name__[0].lower() in 'aeiou' else 'a'} {kind.__name__}"


def _compares(kind: Any) -> bool:
    """Whether objects of a type are compared by what they are, and not by which they are."""
    return kind.__hash__ not in (None, object.__hash__) and kind.__eq__ is not object.__eq__
