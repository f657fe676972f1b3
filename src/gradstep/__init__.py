"""gradstep: update the weights of a network with their gradients.

import gradstep

optimizer = gradstep.Adam(model.parameters(), lr=1e-3)     # torch.optim's names and arguments

@gradstep.rule                                             # or a rule of one's own
def heavy_ball(g, velocity, *, momentum=0.9):
    velocity = momentum * velocity + g
    return velocity, velocity

optimizer = gradstep.Optimizer(model.parameters(), heavy_ball, lr=0.1)
"""

from typing import Any

from gradstep import rule_classes, rules
from gradstep.compose.partition import Partition, for_model, partition
from gradstep.optimizer import Optimizer
from gradstep.rule import (
    Decay,
    Interval,
    NonNegative,
    Opaque,
    Rule,
    RuleError,
    Share,
    abs,
    chain,
    clamp,
    copy_of_gradient,
    copy_of_weight,
    dot,
    exp,
    full,
    global_norm,
    lerp,
    log,
    max,
    maximum,
    mean,
    minimum,
    new_weight,
    nonzero,
    norm,
    number,
    opaque,
    per_column,
    per_row,
    pow,
    rms,
    rsqrt,
    rule,
    sign,
    size,
    sqrt,
    stored,
    sum,
    where,
    zeros,
)
from gradstep.torch_optim import (
    ASGD,
    LBFGS,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Muon,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
    SparseAdam,
)

__version__ = "0.1.0"

__all__ = [
    "ASGD",
    "LBFGS",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Decay",
    "Interval",
    "Muon",
    "NAdam",
    "NonNegative",
    "Opaque",
    "Optimizer",
    "Partition",
    "RAdam",
    "RMSprop",
    "Rprop",
    "Rule",
    "RuleError",
    "Share",
    "SparseAdam",
    "abs",
    "chain",
    "clamp",
    "copy_of_gradient",
    "copy_of_weight",
    "dot",
    "exp",
    "for_model",
    "full",
    "global_norm",
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
    "partition",
    "per_column",
    "per_row",
    "pow",
    "rms",
    "rsqrt",
    "rule",
    "sign",
    "size",
    "sqrt",
    "stored",
    "sum",
    "where",
    "zeros",
]

# The rules, and a class for each that torch.optim has not, are found in gradstep/rules when one of
# them is first asked for.


def __getattr__(name: str) -> Any:
    if not name.startswith("_"):
        for found in (rules.load(), rule_classes.load()):
            if name in found:
                return found[name]
    raise AttributeError(f"module gradstep has no {name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *rules.load(), *rule_classes.load()})
