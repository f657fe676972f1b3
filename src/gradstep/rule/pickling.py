"""How a rule is saved by pickle: by its name, if that leads back to it, as functions are.

pickle saves no functions, so a rule that no name leads to is refused. cloudpickle, which joblib,
ray and dask use, saves the functions of ``__main__``, inner functions and lambdas themselves. It
does so for classes too, while pickle asks ``copyreg`` about classes of a metaclass: so a rule
travels in a class, which each of the two treats in its own way.
"""

from __future__ import annotations

import copyreg
import importlib
import pickle
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

#: The script that was started, which has another content in every process.
_SCRIPTS = ("__main__", "__mp_main__")


def reduced(rule: Any, over: Callable[..., Any]) -> Any:
    """What ``Rule.__reduce_ex__`` returns for a rule of a function.

    ``over`` makes it of the function, ``sparse``, ``lr`` and ``class_name`` alone.
    """
    place = place_of(rule)
    if place is not None and place[0] not in _SCRIPTS:
        return by_name, (*place, dict(rule.hyperparameters))
    content: dict[str, Any] = {
        "kind": type(rule),
        "values": {f.name: getattr(rule, f.name) for f in fields(rule) if f.init},
    }
    content["over"] = over
    carrier = _Carrier(f"the rule {rule.name}", (), {"content": content, "place": place})
    return _unpacked, (carrier, dict(rule.hyperparameters))


def by_name(module: str, name: str, hyperparameters: Mapping[str, Any]) -> Any:
    """The rule of a name, with these defaults.

    Raises:
        TypeError: there is no such rule.
    """
    found = _look_up(importlib.import_module(module), name)
    if not hasattr(found, "hyperparameters"):
        what = "is not there" if found is None else "is no rule"
        raise TypeError(
            f"the rule {module}.{name}, by whose name a pickle was saved, {what}. Define it there, "
            "or load the state_dict() of the optimizer in place of the optimizer."
        )
    return replace(found, hyperparameters={**found.hyperparameters, **hyperparameters})


def place_of(rule: Any) -> tuple[str, str] | None:
    """The module and the name that lead to a rule, whatever its defaults; None if nothing does."""
    module = sys.modules.get(getattr(rule.function, "__module__", None) or "")
    if module is None:
        return None
    names = [getattr(rule.function, "__qualname__", "")]
    names += [n for n, value in list(vars(module).items()) if isinstance(value, type(rule))]
    same = (name for name in names if _is_same(_look_up(module, name), rule))
    name = next(same, None)
    return None if name is None else (module.__name__, name)


def _is_same(found: Any, rule: Any) -> bool:
    if not isinstance(found, type(rule)) or found.function is not rule.function:
        return False
    rest = ("sparse", "lr", "class_name")
    return all(getattr(found, n) == getattr(rule, n) for n in rest)


def _look_up(module: types.ModuleType, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


class _Carrier(type):
    """The class of the classes in which rules travel."""

    content: dict[str, Any]
    place: tuple[str, str] | None


def _unpacked(carrier: Any, hyperparameters: Mapping[str, Any]) -> Any:
    """The rule that came in a class, or was found."""
    if isinstance(carrier, _Carrier):
        carrier = carrier.content["kind"](**carrier.content["values"])
    return replace(carrier, hyperparameters=dict(hyperparameters))


def _of_pickle(carrier: _Carrier) -> Any:
    """What pickle saves of a rule: its name, or that of its function."""
    kind, values = carrier.content["kind"], carrier.content["values"]
    rule = kind(**values)
    if carrier.place is not None:
        return by_name, (*carrier.place, {})
    function = getattr(rule.function, "__func__", rule.function)  # pickle finds methods by objects
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    name = getattr(function, "__qualname__", "")
    if module is not None and _look_up(module, name) is function:
        return carrier.content["over"], (rule.function, rule.sparse, rule.lr, rule.class_name)
    where = f"{getattr(function, '__module__', '?')}.{name}"
    outer, _, inner = name.rpartition(".<locals>.")
    if name.endswith("<lambda>"):
        reason = "its function is a lambda"
    elif outer:
        reason = f"its function {inner} is inside the function {outer}"
    elif module is not None and isinstance(_look_up(module, name), kind):
        reason = f"{where} is another rule now"
    else:
        reason = f"{where} is not it"
    raise pickle.PicklingError(
        f"rule {rule.name} cannot be saved by pickle: {reason}, so nothing could find it again. "
        "Put @gradstep.rule above a function at the top of a module, or give the rule a name "
        "there; or save optimizer.state_dict() in place of the optimizer. cloudpickle saves the "
        "function itself."
    )


copyreg.pickle(_Carrier, _of_pickle)
