"""Backends: what makes the steps, and the door for one from outside the package.

A backend derives from :class:`Backend`, its bindings from :class:`Binding`. Once registered it is
named by ``engine=``::

    gradstep.backends.register(MyBackend())
    optimizer = gradstep.Adam(model.parameters(), engine=MyBackend.name)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradstep.backends.base import Backend, Binding, Run, Values
    from gradstep.backends.dispatch import engines, register

__all__ = ["Backend", "Binding", "Run", "Values", "engines", "register"]


def __getattr__(name: str) -> Any:
    # Importing gradstep takes one small module from here.
    if name in __all__:
        for module in ("base", "dispatch"):
            found = import_module(f"gradstep.backends.{module}")
            if hasattr(found, name):
                return getattr(found, name)
    raise AttributeError(f"module {__name__} has no {name}")
