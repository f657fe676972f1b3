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
    pow,
    rsqrt,
    rule,
    sign,
    sqrt,
    where,
    zeros,
)
from gradstep.rules import adagrad, adam, clip_by_value, decay_weights, lion, rmsprop, sgd
from gradstep.torch_optim import SGD, Adagrad, Adam, AdamW, Lion, RMSprop

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Decay",
    "Interval",
    "Lion",
    "NonNegative",
    "Optimizer",
    "RMSprop",
    "Rule",
    "RuleError",
    "abs",
    "adagrad",
    "adam",
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
    "new_weight",
    "nonzero",
    "pow",
    "rmsprop",
    "rsqrt",
    "rule",
    "sgd",
    "sign",
    "sqrt",
    "where",
    "zeros",
]
