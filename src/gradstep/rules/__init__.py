"""The rules, one file a family. Each is a function of a few lines; everything else follows.

A file that is added here is found by itself: its rules are then ``gradstep.<rule>``, and a rule
with a ``class_name`` is a class as well. Stages, for chains, are in ``transforms``.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from gradstep.rule.definition import Rule

for _found in pkgutil.walk_packages(__path__, __name__ + "."):
    _module = import_module(_found.name)
    for _name, _value in vars(_module).items():
        # Not those that a file imports from another, nor one with other defaults.
        own = isinstance(_value, Rule) and _value.name == _name
        if own and getattr(_value.function, "__module__", None) == _found.name:
            globals()[_name] = _value

__all__ = sorted(n for n, v in globals().items() if isinstance(v, Rule) and not n.startswith("_"))
