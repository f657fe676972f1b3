"""What a rule reads that is no argument of it: globals, closures, attributes and defaults.

They are read once, while the rule is traced, and a kernel has their values in its code. So they
are looked at again before each step; where one is another value, the rule is traced anew. What
cannot be looked at again is refused. Of the standard library, torch, NumPy and gradstep, functions
and classes are taken as they are.
"""

from __future__ import annotations

import builtins
import functools
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from gradstep.rule.bytecode import variables_read
from gradstep.rule.comparable import (
    MISSING,
    Comparable,
    Unwatched,
    is_known,
    is_method,
    is_new_each_time,
    is_settled,
)
from gradstep.rule.definition import Rule
from gradstep.rule.symbol import RuleError, quoted


@dataclass(frozen=True, eq=False)
class _Reading:
    """A place outside of a rule: how to read it, and what stood there.

    ``settled`` if what stood there cannot change by itself: the same object is the same value.
    """

    read: Callable[[], Any]
    held: Any
    settled: bool
    value: Any
    place: _Place

    def unchanged(self) -> bool:
        """Whether the same value stands there; no for one that cannot be read any more."""
        try:
            now = self.read()
            if now is self.held and self.settled:
                return True
            return bool(Comparable().of(now) == self.value)
        except Exception:
            return False


class FreeVariables:
    """What a rule reads beside its arguments, as it is now.

    Raises:
        RuleError: it reads something that cannot be compared at each step, or keeps something
            between calls; quotes the line.
    """

    def __init__(self, rule: Rule) -> None:
        self._found: dict[Any, _Reading] = {}
        self._seen: dict[tuple[int, int], Any] = {}
        self._maybe = False  # whether the function that is looked through may never be called
        for function in rule.functions():
            self._search(function, as_rule=True)
        self._readings = tuple(self._found.values())
        #: What is the same as long as it is the same object: one look at each step.
        self._settled = [(r.read, r.held) for r in self._readings if r.settled]
        self._others = [r for r in self._readings if not r.settled]
        del self._found, self._seen

    def __bool__(self) -> bool:
        return bool(self._readings)

    def unchanged(self) -> bool:
        """Whether all of it has the value that it had."""
        try:
            for read, held in self._settled:
                if read() is not held:
                    break
            else:
                return not self._others or all(each.unchanged() for each in self._others)
        except Exception:  # such as an attribute that is gone
            return False
        return all(each.unchanged() for each in self._readings)

    def _search(
        self, function: Any, read: Callable[[], Any] | None = None, as_rule: bool = False
    ) -> None:
        """Add what a function reads; ``read`` reads the function itself, for a method's owner."""
        owner: Callable[[], Any] | None = None
        while not isinstance(function, types.FunctionType):
            if isinstance(function, Rule):
                for each in function.functions():
                    self._search(each, as_rule=True)
                return
            if isinstance(function, types.MethodType):
                owner = _Attribute(read or functools.partial(_same, function), "__self__")
                function = function.__func__
            elif hasattr(function, "__wrapped__"):
                function = function.__wrapped__
            else:
                return
        key = (id(function), 0 if owner is None else id(owner()))
        if key in self._seen or is_known(function):
            return
        self._seen[key] = function
        code = function.__code__
        if not as_rule and (function.__defaults__ or function.__kwdefaults__):
            for attribute in ("__defaults__", "__kwdefaults__"):
                place = _Place(function, function.__name__, (attribute,))
                self._add(place, _Attribute(functools.partial(_same, function), attribute), code, 0)
        cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        owners = {} if owner is None else {code.co_varnames[0]: owner}
        self._look_through(code, function.__globals__, cells, owners)

    def _look_through(
        self,
        code: types.CodeType,
        names: dict[str, Any],
        cells: Mapping[str, types.CellType],
        owners: Mapping[str, Callable[[], Any]],
    ) -> None:
        owners = dict(owners)
        for kind, name, attributes, line in variables_read(code):
            start: Callable[[], Any]
            of: Any
            if kind == "store" and (name in cells or name not in code.co_freevars):
                problem = f"keeps {name} between calls, and a rule keeps nothing but its states."
                self._refuse(code, line, problem, "Make it a state.")
            if kind == "module":
                owners[attributes[0]] = functools.partial(sys.modules.get, name, MISSING)
            if kind == "cell" and name in cells:
                of = cells[name]
                start = _Attribute(functools.partial(_same, of), "cell_contents")
            elif kind in ("cell", "local") and name in owners:
                start = of = owners[name]
            elif kind == "import":
                start, of = functools.partial(sys.modules.get, name, MISSING), sys.modules
            elif kind == "global" and (name in names or not hasattr(builtins, name)):
                start, of = functools.partial(names.get, name, MISSING), names
            else:
                continue
            self._follow(start, _Place(of, name, attributes), code, line)
        for inner in code.co_consts:
            if isinstance(inner, types.CodeType):
                free = {n: cells[n] for n in inner.co_freevars if n in cells}
                within = {n: o for n, o in owners.items() if n in inner.co_freevars}
                self._look_through(inner, names, free, within)

    def _follow(
        self, start: Callable[[], Any], place: _Place, code: types.CodeType, line: int
    ) -> None:
        """Add what is read of a variable by way of its attributes, as far as they lead."""
        value = _read(start)
        known = is_known(value)
        path: list[str] = []
        for attribute in place.attributes:
            if is_known(value) and not isinstance(value, types.ModuleType):
                break
            found = getattr(value, attribute, MISSING)
            if found is MISSING or (is_method(found) and not isinstance(value, types.ModuleType)):
                break  # what a list's or dict's own function returns hangs on all of it
            path.append(attribute)
            value = found
            known = known or is_known(value)
        place = replace(place, attributes=tuple(path))
        if is_new_each_time(value):
            self._refuse(
                code,
                line,
                f"calls {place}, which would be asked once, when the rule is traced.",
                "For random numbers take the input noise, a keyword argument of that name; else "
                "make what it returns a hyperparameter, or call it in a function with "
                "@gradstep.opaque above it.",
            )
        if not known and not isinstance(value, types.ModuleType):
            read = _Attribute(start, ".".join(path)) if path else start
            self._add(place, read, code, line)

    def _add(self, place: _Place, read: Callable[[], Any], code: types.CodeType, line: int) -> None:
        """Remember what stands in a place now, and look into the functions that it holds."""
        key = (id(place.of), place.name, place.attributes)
        if key in self._found:
            return
        held = _read(read)
        found = Comparable()
        try:
            value = found.of(held)
        except Unwatched as error:
            problem = f"reads {place}, {error}, whose changes a kernel would not follow."
            self._refuse(
                code,
                line or code.co_firstlineno,
                problem,
                "Make what it needs of it a hyperparameter, a number or a tuple of numbers.",
            )
            return
        self._found[key] = _Reading(read, held, is_settled(held), value, place)
        for function in found.functions:
            self._search(function, read if function is held else None)
        before, self._maybe = self._maybe, True
        for function in found.members:
            self._search(function)
        self._maybe = before

    def _refuse(self, code: types.CodeType, line: int, problem: str, remedy: str) -> None:
        if not self._maybe:
            raise RuleError(f"{quoted(code, line)}{problem} {remedy}")


@dataclass(frozen=True)
class _Place:
    """A variable of a module, of a function or of an object, and attributes of it."""

    of: Any
    name: str
    attributes: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join([self.name, *self.attributes])


class _Attribute:
    """Reads attributes of what another reads."""

    def __init__(self, start: Callable[[], Any], path: str) -> None:
        self._start, self._get = start, attrgetter(path)

    def __call__(self) -> Any:
        return self._get(self._start())


def _same(value: Any) -> Any:
    return value


def _read(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except ValueError:  # the variable of an enclosing function that has no value yet
        return MISSING
