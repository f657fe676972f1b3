"""How torch.optim's classes are declared: a signature, which is torch's, over a rule."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from gradstep.classes.class_parts import ClassParts
from gradstep.optimizer.optimizer import Optimizer
from gradstep.rule.definition import Rule

_Declared = TypeVar("_Declared", bound=type[Optimizer])


def over(
    rule: Rule, order: str = "", beyond: Sequence[str] = (), **fixed: Any
) -> Callable[[_Declared], _Declared]:
    """Complete a class that declares its ``__init__`` by nothing but the signature.

    The rule's hyperparameters that are no arguments stand in those whose defaults are tuples, in
    their order: ``beta1`` and ``beta2`` in ``betas``. Type checkers read the declaration as it is.

    Args:
        rule: what the class runs.
        order: of the options in a group, where torch has another there than in the signature.
        beyond: options that torch's class has not.
        fixed: options of a group that the class has no argument for.
    """

    def complete(declared: _Declared) -> _Declared:
        name = declared.__name__
        signature = inspect.signature(declared.__init__)
        slots = [
            (option, index)
            for option, parameter in signature.parameters.items()
            if isinstance(parameter.default, tuple)
            for index in range(len(parameter.default))
        ]
        inside = [n for n in rule.hyperparameters if n not in signature.parameters | fixed]
        places = dict(zip(inside, slots, strict=True))
        parts = ClassParts(name, rule, signature, places, fixed, tuple(order.split()), beyond)
        kind: Any = declared
        kind.__init__ = functools.wraps(declared.__init__)(parts.initializer())
        kind._places = places
        kind.__doc__ = parts.docstring(
            inspect.getdoc(declared) or f"{name}.",  # with -OO there are no docstrings
            f"TypeError, ValueError, RuntimeError: what torch.optim.{name} refuses; nan and "
            "numbers of the wrong type.",
        )
        kind.__module__ = "gradstep"  # where users find it, and pickles
        return declared

    return complete
