"""gradstep: update the weights of a network with their gradients.

import gradstep

optimizer = gradstep.Adam(model.parameters(), lr=1e-3)     # torch.optim's names and arguments

@gradstep.rule                                             # or a rule of one's own
def heavy_ball(g, velocity, *, momentum=0.9):
    velocity = momentum * velocity + g
    return velocity, velocity

optimizer = gradstep.Optimizer(model.parameters(), heavy_ball, lr=0.1)
"""

from gradstep.optimizer import Optimizer
from gradstep.rule import (
    Decay,
    Interval,
    NonNegative,
    Rule,
    RuleError,
    Share,
    abs,
    chain,
    clamp,
    copy_of_gradient,
    copy_of_weight,
    exp,
    full,
    lerp,
    log,
    maximum,
    minimum,
    new_weight,
    nonzero,
    number,
    pow,
    rsqrt,
    rule,
    sign,
    sqrt,
    stored,
    where,
    zeros,
)
from gradstep.rules import (
    adadelta,
    adagrad,
    adam,
    adamax,
    asgd,
    clip_by_value,
    decay_weights,
    lion,
    nadam,
    radam,
    rmsprop,
    rprop,
    sgd,
)
from gradstep.torch_optim import (
    ASGD,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Lion,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
)

__version__ = "0.1.0"

__all__ = [
    "ASGD",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Decay",
    "Interval",
    "Lion",
    "NAdam",
    "NonNegative",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Rprop",
    "Rule",
    "RuleError",
    "Share",
    "abs",
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "asgd",
    "chain",
    "clamp",
    "clip_by_value",
    "copy_of_gradient",
    "copy_of_weight",
    "decay_weights",
    "exp",
    "full",
    "lerp",
    "lion",
    "log",
    "maximum",
    "minimum",
    "nadam",
    "new_weight",
    "nonzero",
    "number",
    "pow",
    "radam",
    "rmsprop",
    "rprop",
    "rsqrt",
    "rule",
    "sgd",
    "sign",
    "sqrt",
    "stored",
    "where",
    "zeros",
]
