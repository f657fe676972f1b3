"""The little language that rules are written in, beside Python's operators.

Each function takes tensors, numbers, or (while a rule is traced) symbols. On numbers alone it
works in float64 on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
from torch import Tensor

from gradstep.rule.operations import OPERATIONS
from gradstep.rule.symbol import Symbol, refuse
from gradstep.rule.value import NewWeight

__all__ = [
    "abs",
    "clamp",
    "exp",
    "lerp",
    "log",
    "maximum",
    "minimum",
    "new_weight",
    "nonzero",
    "pow",
    "rsqrt",
    "sign",
    "sqrt",
    "stored",
    "where",
]


def _apply(name: str, *arguments: Any) -> Any:
    for argument in arguments:
        if isinstance(argument, Symbol):
            return argument.recorder.record(name, *arguments)
    operation = OPERATIONS[name]
    if any(isinstance(argument, Tensor) for argument in arguments):
        return operation.tensor(*arguments)
    result = operation.number(*arguments)
    # NumPy's numbers answer 1/0 and the like as IEEE says: what is made of them stays one.
    return numpy.float64(result) if any(isinstance(a, numpy.generic) for a in arguments) else result


def __getattr__(name: str) -> Callable[..., Any]:
    """A function that the table alone makes: ``cbrt``, ``tanh``, ``atan2`` and what is added."""
    row = OPERATIONS.get(name)
    if row is None or not row.about:
        raise AttributeError(f"module {__name__} has no {name}")

    def function(*arguments: Any) -> Any:
        return _apply(name, *arguments)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = row.about
    globals()[name] = function
    return function


def lerp(start: Any, end: Any, weight: Any) -> Any:
    """``start + weight · (end − start)``: an average that moves by ``weight`` towards ``end``.

    Rounded as :func:`torch.lerp` rounds: one fused multiply-add, from the nearer end.
    """
    return _apply("lerp", start, end, weight)


def sqrt(x: Any) -> Any:
    """The square root; nan below zero."""
    return _apply("sqrt", x)


def rsqrt(x: Any) -> Any:
    """``1 / sqrt(x)``, as two roundings."""
    return _apply("rsqrt", x)


def abs(x: Any) -> Any:
    """The absolute value."""
    return _apply("abs", x)


def sign(x: Any) -> Any:
    """−1, 0 or 1; 0 for nan, as :func:`torch.sign` has it."""
    return _apply("sign", x)


def exp(x: Any) -> Any:
    """e to the power ``x``."""
    return _apply("exp", x)


def log(x: Any) -> Any:
    """The natural logarithm; −inf at 0, nan below."""
    return _apply("log", x)


def pow(base: Any, exponent: Any) -> Any:
    """``base`` to the power ``exponent``, the same as ``base ** exponent``."""
    return _apply("pow", base, exponent)


def maximum(a: Any, b: Any) -> Any:
    """The larger of two; nan where either is nan."""
    return _apply("maximum", a, b)


def minimum(a: Any, b: Any) -> Any:
    """The smaller of two; nan where either is nan."""
    return _apply("minimum", a, b)


def clamp(x: Any, low: Any, high: Any) -> Any:
    """``x``, but not below ``low`` nor above ``high``."""
    return minimum(maximum(x, low), high)


def stored(x: Any) -> Any:
    """A number rounded as number states are stored: to float32, unless torch's default is float64.

    For a state that is used in the step that makes it, and must be what a checkpoint holds.
    """
    return _apply("stored", x)


def where(condition: Any, a: Any, b: Any) -> Any:
    """``a`` where the condition holds, else ``b``: for each element, or a number at each step."""
    return _apply("where", condition, a, b)


def nonzero(hyperparameter: Any) -> bool:
    """Whether a hyperparameter is other than 0: the one question about a number that may branch.

    It leaves a term out of the kernel altogether: ``if nonzero(weight_decay): g = g + …``. Asked
    of a hyperparameter only, since each answer has a kernel of its own.
    """
    if isinstance(hyperparameter, Symbol):
        return hyperparameter.recorder.ask(hyperparameter)
    return bool(hyperparameter != 0)


def new_weight(weight: Any) -> NewWeight:
    """Return this in place of the direction, for a rule that sets the weight outright.

    Only the last rule of a chain can do so.
    """
    if isinstance(weight, Symbol) and not weight.per_element:
        refuse("new_weight() got a number.", "It takes the weight's new value, a tensor.")
    return NewWeight(weight)
