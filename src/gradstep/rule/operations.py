"""The operations of the little language: on numbers, on tensors, on paper, in kernels and as text.

The table is the single place that knows what an operation means. The tracer records its names,
the kernels translate them, the explanations print and evaluate them. An operation is a primitive,
for which the kernels have an instruction, or has an *expansion*, made of primitives: then its row
is all that there is of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

if TYPE_CHECKING:  # the two that work in decimals import them: every import of gradstep would wait
    from decimal import Decimal


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
        paper: on decimal numbers of many digits; None for what ``number`` does to them.
        latex: a function's name in LaTeX, or a template with one ``{}`` an argument; empty for the
            operation's own name, upright.
        expansion: on :class:`gradstep.rule.expansions.Term`, of which it is made with operators and
            the methods there; None for a primitive.
        about: what it is, in a sentence, for a function of the language that the table alone makes.
    """

    number: Callable[..., Any]
    tensor: Callable[..., Tensor]
    text: str
    precedence: int = 9
    boolean: bool = False
    paper: Callable[..., Any] | None = None
    latex: str = ""
    expansion: Callable[..., Any] | None = None
    about: str = ""


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
    moved: Tensor = start + weight * (end - start)
    return moved


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
        chosen: Tensor = a if condition else b
        return chosen
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


def _cube_root_number(x: float) -> float:
    root = float(numpy.cbrt(x))
    # C libraries are up to four units off: one step of Newton's.
    return root - (root - x / root**2) / 3 if root and math.isfinite(root) else root


def _cube_root_tensor(x: Tensor) -> Tensor:
    wide = x.double()
    # The root of 0 is 0 by choice: autograd would make nan of a derivative that is infinite.
    size = torch.where(wide == 0, 1.0, wide.abs())
    root = size ** (1 / 3)
    root = torch.where(root.isfinite(), root - (root - size / root**2) / 3, root)
    return torch.where(wide == 0, wide, root.copysign(wide)).to(x.dtype)


def _atan2_tensor(y: Any, x: Any) -> Tensor:
    like = y if isinstance(y, Tensor) else x
    return torch.atan2(_as_tensor(y, like), _as_tensor(x, like))


def _tanh_on_paper(x: Decimal) -> Decimal:
    from decimal import Decimal

    if abs(x) > 1000:
        return Decimal(1).copy_sign(x)
    grown = (2 * x).exp()
    return (grown - 1) / (grown + 1) if abs(x) > Decimal("1e-20") else x - x**3 / 3


def _atan2_on_paper(y: Decimal, x: Decimal) -> Decimal:
    from decimal import Decimal

    if not (y.is_finite() and x.is_finite()) or (x == 0 and y == 0):
        return Decimal(math.atan2(y, x))

    def arctangent(t: Decimal) -> Decimal:
        for _ in range(8):  # each halves the angle
            t = t / (1 + (1 + t * t).sqrt())
        terms = ((-t * t) ** k * t / (2 * k + 1) for k in range(20))
        return 256 * sum(terms, Decimal(0))

    right_angle = 2 * arctangent(Decimal(1))
    if abs(y) > abs(x):
        return (right_angle - arctangent(x / abs(y))).copy_sign(y)
    turned = 2 * right_angle if x < 0 else Decimal(0)
    return (turned + arctangent(abs(y) / x)).copy_sign(y)


def _expansion(name: str) -> Callable[..., Any]:
    """An expansion of :mod:`gradstep.rule.expansions`, which is read where a kernel is written."""

    def of(*terms: Any) -> Any:
        return getattr(import_module("gradstep.rule.expansions"), name)(*terms)

    return of


def _stored(x: float) -> float:
    return float(x) if torch.get_default_dtype() == torch.float64 else float(numpy.float32(x))


OPERATIONS: dict[str, Operation] = {
    "add": Operation(lambda a, b: a + b, lambda a, b: a + b, "{} + {}", 2),
    "sub": Operation(lambda a, b: a - b, lambda a, b: a - b, "{} − {}", 2),
    "mul": Operation(lambda a, b: a * b, lambda a, b: a * b, "{}·{}", 3),
    "div": Operation(lambda a, b: a / b, lambda a, b: a / b, "{} / {}", 3),
    "neg": Operation(lambda a: -a, lambda a: -a, "−{}", 4),
    "pow": Operation(
        _power_number,
        torch.pow,
        "{}^{}",
        5,
        paper=lambda a, b: type(a)(1) if b == 0 else a**b,
        expansion=_expansion("pow"),
    ),
    "sqrt": Operation(_sqrt, torch.sqrt, "√({})", paper=lambda a: a.sqrt()),
    "rsqrt": Operation(
        _ieee(lambda a: 1 / _sqrt(a), lambda a: math.copysign(math.inf, a)),
        torch.rsqrt,
        "1/√({})",
        paper=lambda a: 1 / a.sqrt(),
        expansion=lambda a: 1.0 / a.operate("sqrt"),
    ),
    "abs": Operation(abs, torch.abs, "|{}|"),
    "sign": Operation(
        _sign, torch.sign, "sign({})", paper=lambda a: type(a)(int(a > 0) - int(a < 0))
    ),
    "exp": Operation(
        _ieee(math.exp, lambda a: math.inf),
        torch.exp,
        "exp({})",
        paper=lambda a: a.exp(),
        latex=r"\exp",
        expansion=_expansion("exp"),
    ),
    "log": Operation(
        _ieee(math.log, lambda a: -math.inf if a == 0 else math.nan),
        torch.log,
        "log({})",
        paper=lambda a: a.ln(),
        latex=r"\log",
        expansion=_expansion("log"),
    ),
    "cbrt": Operation(
        _cube_root_number,
        _cube_root_tensor,
        "cbrt({})",
        paper=lambda a: (abs(a) ** (type(a)(1) / 3)).copy_sign(a),
        latex=r"\sqrt[3]{{{}}}",
        expansion=_expansion("cbrt"),
        about="The cube root, of either sign.",
    ),
    "tanh": Operation(
        math.tanh,
        torch.tanh,
        "tanh({})",
        paper=_tanh_on_paper,
        latex=r"\tanh",
        expansion=_expansion("tanh"),
        about="The hyperbolic tangent.",
    ),
    "atan2": Operation(
        math.atan2,
        _atan2_tensor,
        "atan2({}, {})",
        paper=_atan2_on_paper,
        expansion=_expansion("atan2"),
        about="The angle of the point (x, y), given as ``atan2(y, x)``, from −π to π.",
    ),
    "lerp": Operation(_lerp_number, _lerp_tensor, "lerp({}, {}, {})"),
    "maximum": Operation(
        _extreme_number(max), _extreme_tensor(torch.maximum), "max({}, {})", latex=r"\max"
    ),
    "minimum": Operation(
        _extreme_number(min), _extreme_tensor(torch.minimum), "min({}, {})", latex=r"\min"
    ),
    "where": Operation(lambda c, a, b: a if c else b, _where_tensor, "({} ? {} : {})"),
    "stored": Operation(_stored, lambda a: a, "{}", paper=lambda a: a),
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
    "max": Operation(_no_number, _no_tensor, "max({})", latex=r"\max"),
    "global_sum": Operation(_no_number, _no_tensor, "global_sum({})"),
    "opaque": Operation(_no_number, _no_tensor, "{}"),
    "part": Operation(_no_number, _no_tensor, "{}"),
}


def expanded(name: str, algebra: Any, *values: Any) -> Any:
    """What the expansion of an operation makes of an algebra's values; None for a primitive.

    Args:
        name: of the operation.
        algebra: a :class:`gradstep.rule.expansions.Algebra`.
        values: the algebra's.
    """
    row = OPERATIONS.get(name)
    if row is None or row.expansion is None:
        return None
    # Few rules need one: the module is read for those.
    from gradstep.rule.expansions import Term

    return row.expansion(*(Term(algebra, value) for value in values)).value


#: The functions that a rule may call, of language.py and reductions.py, beside the table's own.
_FUNCTIONS = (
    "abs", "clamp", "dot", "exp", "global_dot", "global_norm", "global_sum", "lerp", "log", "max",
    "maximum", "mean", "minimum", "new_weight", "nonzero", "norm", "pow", "rms", "rsqrt", "sign",
    "size", "sqrt", "stored", "sum", "where",
)  # fmt: skip


def functions() -> list[str]:
    """The names of all functions that a rule may call."""
    return sorted([*_FUNCTIONS, *(name for name, row in OPERATIONS.items() if row.about)])
