"""A class for each rule that torch.optim has not, made from the rule, as ``gradstep.Lion`` is."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from gradstep import rules
from gradstep.classes.class_parts import ClassParts
from gradstep.classes.hessian import HessianOptimizer
from gradstep.classes.schedule_free import ScheduleFreeOptimizer
from gradstep.optimizer.optimizer import Optimizer
from gradstep.rule.definition import Rule
from gradstep.rule.hyperparameter import is_number

#: What torch.optim's classes take behind their hyperparameters, and so do these.
_FLAGS: dict[str, Any] = {
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
}

_ABOUT = """\
{first}

The rule, :func:`gradstep.{rule}`, tells of its paper and of all else."""
#: What is not an option of a group.
_STORAGE = {"engine": "auto", "state_dtype": None, "low_precision": "nearest"}
_RAISES = "TypeError, ValueError: hyperparameters out of range, nan, or of the wrong type."


def class_of(rule: Rule) -> type[Optimizer]:
    """The class over a rule, with torch.optim's manners.

    Its arguments are ``params``, ``lr``, then the rule's hyperparameters in their order, with
    ``beta1``, ``beta2`` and so on as one tuple ``betas``, where torch.optim has it; the rule's
    flags, ``maximize``, ``foreach``, ``capturable``, ``differentiable``, ``engine`` and
    ``state_dtype`` by name.
    """
    name = str(rule.class_name)
    options, places = _options(rule)
    # What tells checkpoints apart of classes that have the same options.
    parts = ClassParts(name, rule, _signature(options), places, {"rule": rule.name})
    __init__ = parts.initializer()
    __init__.__signature__ = parts.signature  # type: ignore[attr-defined]
    # With -OO there are no docstrings.
    first = (inspect.getdoc(rule.function) or f"{name}.").partition("\n")[0]
    members = {
        "__init__": __init__,
        "__module__": "gradstep",
        "__doc__": parts.docstring(_ABOUT.format(first=first, rule=rule.name), _RAISES),
        "_places": places,
    }
    base: type[Optimizer] = HessianOptimizer if "hessian" in rule.states else Optimizer
    if rule.name.endswith("schedule_free"):
        base = ScheduleFreeOptimizer
    return type(name, (base,), members)


def _options(rule: Rule) -> tuple[dict[str, Any], dict[str, tuple[str, int]]]:
    """The arguments by name, with their defaults, and where in them hyperparameters stand."""
    values = rule.hyperparameters
    betas: list[str] = []
    while is_number(values.get(f"beta{len(betas) + 1}")):
        betas.append(f"beta{len(betas) + 1}")
    betas = betas if len(betas) > 1 else []
    options: dict[str, Any] = {"lr": rule.lr}
    for name, value in values.items():
        if name in betas:
            options.setdefault("betas", tuple(values[beta] for beta in betas))
        else:
            options[name] = value
    return options, {beta: ("betas", place) for place, beta in enumerate(betas)}


def _signature(options: Mapping[str, Any]) -> inspect.Signature:
    plain, by_name = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(name, plain) for name in ("self", "params")]
    flags = {n: v for n, v in options.items() if isinstance(v, bool | str)}
    for name, default in options.items():
        if name not in flags:
            parameters.append(inspect.Parameter(name, plain, default=default))
    for name, default in {**flags, **_FLAGS, **_STORAGE}.items():
        parameters.append(inspect.Parameter(name, by_name, default=default))
    return inspect.Signature(parameters)


@functools.cache
def load() -> dict[str, type[Optimizer]]:
    """The classes by name, in alphabetical order."""
    made = [class_of(rule) for rule in rules.load().values() if rule.class_name is not None]
    return dict(sorted((cls.__name__, cls) for cls in made))
