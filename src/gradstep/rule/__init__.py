"""What a rule is: the decorator, chains and grafts, the little language and its trace."""

from collections.abc import Callable
from typing import Any

from gradstep.rule import language
from gradstep.rule.combine import chain, graft
from gradstep.rule.definition import Rule, rule
from gradstep.rule.hyperparameter import Decay, Interval, NonNegative, Positive, Share
from gradstep.rule.language import (
    abs,
    clamp,
    exp,
    lerp,
    log,
    maximum,
    minimum,
    new_weight,
    nonzero,
    pow,
    rsqrt,
    sign,
    sqrt,
    stored,
    where,
)
from gradstep.rule.opaque import Opaque, opaque
from gradstep.rule.reductions import (
    dot,
    global_dot,
    global_norm,
    global_sum,
    max,
    mean,
    norm,
    rms,
    size,
    sum,
)
from gradstep.rule.state import (
    State,
    copy_of_gradient,
    copy_of_weight,
    full,
    number,
    per_column,
    per_row,
    place,
    shaped,
    shared,
    zeros,
)
from gradstep.rule.symbol import RuleError
from gradstep.rule.value import NewWeight, Result, Value

__all__ = [
    "Decay",
    "Interval",
    "NewWeight",
    "NonNegative",
    "Opaque",
    "Positive",
    "Result",
    "Rule",
    "RuleError",
    "Share",
    "State",
    "Value",
    "abs",
    "chain",
    "clamp",
    "copy_of_gradient",
    "copy_of_weight",
    "dot",
    "exp",
    "full",
    "global_dot",
    "global_norm",
    "global_sum",
    "graft",
    "lerp",
    "log",
    "max",
    "maximum",
    "mean",
    "minimum",
    "new_weight",
    "nonzero",
    "norm",
    "number",
    "opaque",
    "per_column",
    "per_row",
    "place",
    "pow",
    "rms",
    "rsqrt",
    "rule",
    "shaped",
    "shared",
    "sign",
    "size",
    "sqrt",
    "stored",
    "sum",
    "where",
    "zeros",
]


def __getattr__(name: str) -> Callable[..., Any]:
    """A function that the table of operations alone makes, such as ``cbrt``."""
    function: Callable[..., Any] = getattr(language, name)
    return function
