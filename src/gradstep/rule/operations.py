"""The operations of the little language: on Python numbers, on torch tensors, and as text.

The table is the single place that knows what an operation means. The tracer records its names,
the kernels translate them, the explanations print and evaluate them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        number: on Python floats (and NumPy float64 where IEEE's inf and nan are wanted).
        tensor: on torch tensors, mixed with numbers.
        text: a template with one ``{}`` an argument.
        precedence: how tightly the text binds: 1 comparison, 2 sum, 3 product, 4 sign, 5 power, 9
            function or name.
        boolean: the result is a truth value.
    """

    number: Callable[..., Any]
    tensor: Callable[..., Tensor]
    text: str
    precedence: int = 9
    boolean: bool = False


def _lerp_number(start: float, end: float, weight: float) -> float:
    return (
        start + weight * (end - start) if abs(weight) < 0.5 else end - (end - start) * (1 - weight)
    )


def _ieee(function: Callable[[float], float], outside: Callable[[float], float]) -> Any:
    """A function of Python's that gives inf or nan where Python raises, as tensors do."""

    def of(x: float) -> float:
        try:
            return function(x)
        except (ValueError, OverflowError, ZeroDivisionError):
            return outside(x)

    return of


_sqrt = _ieee(math.sqrt, lambda x: math.nan)


def _lerp_tensor(start: Any, end: Any, weight: Any) -> Tensor:
    if isinstance(start, Tensor) and isinstance(end, Tensor):
        if start.dtype != end.dtype:  # of no dimensions, beside a reduction, which is in float64
            wide = torch.promote_types(start.dtype, end.dtype)
            start, end = start.to(wide), end.to(wide)
        if isinstance(weight, Tensor):
            weight = weight.to(start.dtype)
        return torch.lerp(start, end, weight)
    return start + weight * (end - start)


def _sign(x: float) -> float:
    return float(x > 0) - float(x < 0)


def _as_tensor(x: Any, like: Tensor) -> Tensor:
    return x if isinstance(x, Tensor) else torch.full_like(like, x)


def _extreme_tensor(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def of(a: Any, b: Any) -> Tensor:
        like = a if isinstance(a, Tensor) else b
        return function(_as_tensor(a, like), _as_tensor(b, like))

    return of


def _extreme_number(choose: Callable[[float, float], float]) -> Callable[..., float]:
    return lambda a, b: a if math.isnan(a) else b if math.isnan(b) else choose(a, b)


def is_followed(*values: Any) -> bool:
    """Whether autograd records what is done with one of them."""
    return torch.is_grad_enabled() and any(
        isinstance(value, Tensor) and value.requires_grad for value in values
    )


def _where_tensor(condition: Any, a: Any, b: Any) -> Tensor:
    if not isinstance(condition, Tensor) or (condition.dim() == 0 and is_followed(a, b)):
        # One choice for all: of a formula that does not hold, torch.where would pass on nan.
        return a if condition else b
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        # torch would make float32 of two numbers, whatever they are combined with later.
        a, b = (torch.tensor(x, dtype=torch.float64, device=condition.device) for x in (a, b))
    return torch.where(condition, a, b)


def _power_number(base: Any, exponent: Any) -> Any:
    result = base**exponent
    return math.nan if isinstance(result, complex) else result


def _no_number(*arguments: Any) -> Any:
    raise TypeError("a reduction takes a tensor")


def _no_tensor(*arguments: Any) -> Any:
    raise TypeError("an operation that needs its dimensions was called without")


def _stored(x: float) -> float:
    return float(x) if torch.get_default_dtype() == torch.float64 else float(numpy.float32(x))


OPERATIONS: dict[str, Operation] = {
    "add": Operation(lambda a, b: a + b, lambda a, b: a + b, "{} + {}", 2),
    "sub": Operation(lambda a, b: a - b, lambda a, b: a - b, "{} − {}", 2),
    "mul": Operation(lambda a, b: a * b, lambda a, b: a * b, "{}·{}", 3),
    "div": Operation(lambda a, b: a / b, lambda a, b: a / b, "{} / {}", 3),
    "neg": Operation(lambda a: -a, lambda a: -a, "−{}", 4),
    "pow": Operation(_power_number, torch.pow, "{}^{}", 5),
    "sqrt": Operation(_sqrt, torch.sqrt, "√({})"),
    "rsqrt": Operation(
        _ieee(lambda a: 1 / _sqrt(a), lambda a: math.copysign(math.inf, a)), torch.rsqrt, "1/√({})"
    ),
    "abs": Operation(abs, torch.abs, "|{}|"),
    "sign": Operation(_sign, torch.sign, "sign({})"),
    "exp": Operation(_ieee(math.exp, lambda a: math.inf), torch.exp, "exp({})"),
    "log": Operation(
        _ieee(math.log, lambda a: -math.inf if a == 0 else math.nan), torch.log, "log({})"
    ),
    "lerp": Operation(_lerp_number, _lerp_tensor, "lerp({}, {}, {})"),
    "maximum": Operation(_extreme_number(max), _extreme_tensor(torch.maximum), "max({}, {})"),
    "minimum": Operation(_extreme_number(min), _extreme_tensor(torch.minimum), "min({}, {})"),
    "where": Operation(lambda c, a, b: a if c else b, _where_tensor, "({} ? {} : {})"),
    "stored": Operation(_stored, lambda a: a, "{}"),
    "lt": Operation(lambda a, b: a < b, lambda a, b: a < b, "{} < {}", 1, True),
    "le": Operation(lambda a, b: a <= b, lambda a, b: a <= b, "{} ≤ {}", 1, True),
    "gt": Operation(lambda a, b: a > b, lambda a, b: a > b, "{} > {}", 1, True),
    "ge": Operation(lambda a, b: a >= b, lambda a, b: a >= b, "{} ≥ {}", 1, True),
    "eq": Operation(lambda a, b: a == b, lambda a, b: a == b, "{} = {}", 1, True),
    "ne": Operation(lambda a, b: a != b, lambda a, b: a != b, "{} ≠ {}", 1, True),
    "and": Operation(lambda a, b: bool(a) & bool(b), lambda a, b: a & b, "{} and {}", 0, True),
    "or": Operation(lambda a, b: bool(a) | bool(b), lambda a, b: a | b, "{} or {}", 0, True),
    "not": Operation(lambda a: not a, lambda a: ~a, "not {}", 0, True),
    # The rest take dimensions, or a function, too: gradstep.rule.reductions, gradstep.rule.opaque.
    "sum": Operation(_no_number, _no_tensor, "sum({})"),
    "max": Operation(_no_number, _no_tensor, "max({})"),
    "global_sum": Operation(_no_number, _no_tensor, "global_sum({})"),
    "opaque": Operation(_no_number, _no_tensor, "{}"),
    "part": Operation(_no_number, _no_tensor, "{}"),
}

#: The functions that a rule may call: those of language.py and reductions.py.
FUNCTIONS = (
    "abs",
    "clamp",
    "dot",
    "exp",
    "global_dot",
    "global_norm",
    "global_sum",
    "lerp",
    "log",
    "max",
    "maximum",
    "mean",
    "minimum",
    "new_weight",
    "nonzero",
    "norm",
    "pow",
    "rms",
    "rsqrt",
    "sign",
    "size",
    "sqrt",
    "stored",
    "sum",
    "where",
)
