"""What a rule is: the decorator, chains, the little language and its trace."""

from gradstep.rule.definition import Rule, chain, rule
from gradstep.rule.hyperparameter import Decay, Interval, NonNegative, Share
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
from gradstep.rule.state import State, copy_of_gradient, copy_of_weight, full, number, zeros
from gradstep.rule.symbol import RuleError

__all__ = [
    "Decay",
    "Interval",
    "NonNegative",
    "Rule",
    "RuleError",
    "Share",
    "State",
    "abs",
    "chain",
    "clamp",
    "copy_of_gradient",
    "copy_of_weight",
    "exp",
    "full",
    "lerp",
    "log",
    "maximum",
    "minimum",
    "new_weight",
    "nonzero",
    "number",
    "pow",
    "rsqrt",
    "rule",
    "sign",
    "sqrt",
    "stored",
    "where",
    "zeros",
]
