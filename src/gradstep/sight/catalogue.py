"""Rules by their names: those of the package, and a user's own as ``module:name``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from gradstep import rules
from gradstep.rule.definition import Rule
from gradstep.rule.graph import Graph
from gradstep.rule.hyperparameter import is_number
from gradstep.rule.trace import trace


class UnknownName(ValueError):
    """Nothing of that name; the message, of one line, names what comes near."""


def rule_names() -> list[str]:
    """The package's rules, then its stages for chains, each in alphabetical order."""
    return sorted(rules.load(), key=lambda name: (is_stage(rules.load()[name]), name))


def is_stage(rule: Rule) -> bool:
    """Whether it is a part for a chain more than a rule to train with."""
    module = getattr(rule.function, "__module__", "")
    return f"{module}.".startswith("gradstep.rules.transforms.")


def find_rule(name: str) -> Rule:
    """The rule of that name.

    Args:
        name: one of :func:`rule_names` or of their classes, in any case, with or without ``_``; or
            ``module:name`` or ``file.py:name`` for a rule of one's own, seen from the current
            folder.

    Raises:
        UnknownName: no such rule, module or file, or something that is no rule.
    """
    if ":" in name:
        return _own_rule(*name.rsplit(":", 1))
    known = spelled(name, rule_names())
    if known is not None:
        return rules.load()[known]
    for rule in rules.load().values():
        if rule.class_name is not None and folded(rule.class_name) == folded(name):
            return rule
    near = nearest(name, rule_names())
    raise UnknownName(
        f"unknown rule {name!r}: {near or 'there are ' + ', '.join(rule_names()) + '.'} "
        "A rule of your own is module:name"
    )


def folded(name: str) -> str:
    """A name without what people spell differently: case, ``_``, ``-`` and spaces."""
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")


def spelled(name: str, known: Iterable[str]) -> str | None:
    """The known name that is meant, however it is spelled; None if there is none."""
    names = list(known)
    if name in names:
        return name
    return next((each for each in names if folded(each) == folded(name)), None)


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """``did you mean a or b?``, or nothing where no name comes near.

    Near is what takes few changes as a share of the whole word: letters put in, left out,
    exchanged, or swapped with the next one.
    """
    likeness = {each: _likeness(folded(name), folded(each)) for each in known}
    best = sorted(likeness, key=lambda each: -likeness[each])[:3]
    near = [each for each in best if likeness[each] >= max(cutoff, likeness[best[0]] - 0.2)]
    return f"did you mean {' or '.join(near)}?" if near else ""


def _likeness(one: str, other: str) -> float:
    """1 less the optimal string alignment distance, as a share of the longer word."""
    before: list[int] = []
    above = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        row = [i]
        for j, its in enumerate(other, 1):
            least = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (letter != its))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == its:
                least = min(least, before[j - 2] + 1)
            row.append(least)
        before, above = above, row
    return 1 - above[-1] / max(len(one), len(other), 1)


def _own_rule(module_name: str, name: str) -> Rule:
    try:
        module = _load(module_name)
    except Exception as error:
        kind = (
            ""
            if isinstance(error, ModuleNotFoundError | FileNotFoundError)
            else (f"{type(error).__name__}: ")
        )
        reason = " ".join(f"{kind}{error}".split())
        raise UnknownName(f"cannot import {module_name}: {reason}") from error
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            own = [n for n, value in vars(module).items() if isinstance(value, Rule)]
            listed = f"it has {', '.join(own)}" if own else "it has no rules"
            raise UnknownName(f"{module_name} has no {name!r}: {nearest(name, own) or listed}")
        found = getattr(found, part)
    if not isinstance(found, Rule):
        plain = callable(found) and not isinstance(found, type)
        raise UnknownName(
            f"{module_name}:{name} is a plain function: put @gradstep.rule above it"
            if plain
            else f"{module_name}:{name} is no rule (it is of type {type(found).__name__})"
        )
    return found


def _load(name: str) -> ModuleType:
    here = str(Path.cwd())
    if name.endswith(".py"):
        path = Path(name)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if not path.is_file() or spec is None or spec.loader is None:
            raise FileNotFoundError(f"there is no file {os.fspath(path)}")
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)
        spec.loader.exec_module(module)
        return module
    if here not in sys.path:
        sys.path.insert(0, here)
    return importlib.import_module(name)


def graph_with(rule: Rule, changed: Mapping[str, Any] | None = None) -> Graph:
    """The rule's graph with some hyperparameters other than their defaults.

    Raises:
        TypeError, ValueError: an unknown hyperparameter, or a value that is not allowed.
        RuleError: a rule that cannot be traced.
    """
    return trace(rule, {**rule(**(changed or {})).hyperparameters, "lr": 1e-3})


def shaping_settings(rule: Rule) -> list[str]:
    """The hyperparameters that change the formula: flags, and numbers that may be 0."""
    flags = [name for name, default in rule.hyperparameters.items() if not is_number(default)]
    asked = [name for name, _ in graph_with(rule).questions]
    needed = [state.when for state in rule.states.values() if state.when is not None]
    return [name for name in rule.hyperparameters if name in {*flags, *asked, *needed}]


def takes_number(rule: Rule, name: str) -> bool:
    """Whether a hyperparameter that is None by default may be a number too."""
    for stage, names in rule.stages:
        own = next((n for n, outer in names.items() if outer == name), None)
        if own is not None and own in stage.hyperparameters:
            return takes_number(stage, own)
    hint = typing.get_type_hints(rule.function).get(name) if rule.function else None
    return rule.hyperparameters[name] is None and bool({int, float} & set(typing.get_args(hint)))


def state_bytes(rule: Rule, item_bytes: int = 4) -> tuple[int, int]:
    """Bytes of state for each weight of a matrix: with the defaults, and with every state in use.

    States that are one number a row, a column or a parameter do not count: :func:`states_along`.
    """
    states = [s for s in rule.states.values() if s.extent() == "element" and s.only is None]
    present = sum(state.exists(rule.hyperparameters) for state in states)
    return item_bytes * present, item_bytes * len(states)


def states_along(rule: Rule) -> list[str]:
    """For each such state ``"row"`` or ``"column"``, which have a number each, or ``"own"``."""
    return [s.shape for s in rule.states.values() if s.shape != "weight"]
