"""The rules, one file a family. Each is a function of a few lines; everything else follows.

A file that is added here is found by itself: its rules are then ``gradstep.<rule>``, and a rule
with a ``class_name`` is a class as well. Stages, for chains, are in ``transforms``.

They are imported when the first of them is asked for: so many files would double the time of
``import gradstep``.
"""

from __future__ import annotations

import functools
import pkgutil
from importlib import import_module
from typing import Any

from gradstep.rule.definition import Rule


@functools.cache
def load() -> dict[str, Rule]:
    """Every rule and stage of the package by name, in alphabetical order."""
    found: dict[str, Rule] = {}
    for file in pkgutil.walk_packages(__path__, __name__ + "."):
        for name, value in vars(import_module(file.name)).items():
            # Not those that a file imports from another, nor one with other defaults.
            own = isinstance(value, Rule) and value.name == name
            if own and getattr(value.function, "__module__", None) == file.name:
                found[name] = value
    globals().update(found)
    return dict(sorted(found.items()))


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return list(load())
    if name.startswith("_") or name not in load():
        raise AttributeError(f"module {__name__} has no rule {name!r}")
    return load()[name]
