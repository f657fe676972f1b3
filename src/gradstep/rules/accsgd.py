"""AccSGD."""

from __future__ import annotations

from gradstep.rule import (
    NonNegative,
    Positive,
    Result,
    Value,
    copy_of_weight,
    lerp,
    new_weight,
    nonzero,
    rule,
)


@rule(class_name="AccSGD")
def accsgd(
    g: Value,
    momentum_buffer: Value = copy_of_weight(),
    *,
    w: Value,
    lr: Value,
    kappa: Positive = 1000.0,
    xi: Positive = 10.0,
    constant: Positive = 0.7,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """AccSGD: stochastic descent that is accelerated by a second point with a long step.

    States:
        momentum_buffer: the point that takes long steps.

    Hyperparameters:
        kappa: how many times as long a long step is.
        xi: the statistical advantage, at most √kappa.
        constant: between 0 and 1, the less the more careful.
        weight_decay: shrinks the weight by lr · weight_decay, before its step (decoupled).

    Paper:
        Kidambi, Netrapalli, Jain & Kakade 2018, "On the insufficiency of existing momentum schemes
        for stochastic optimization", arXiv:1803.05591; its algorithm is of Jain et al. 2017,
        "Accelerating stochastic gradient descent", arXiv:1704.08227.

    Agrees with pytorch_optimizer and the authors' code, whose point starts as the weight.
    """
    w = w * (1 - lr * weight_decay) if nonzero(weight_decay) else w
    beta = xi * constant * constant / kappa
    zeta = constant / (constant + beta)
    long_step = lr * kappa / constant
    point = (1 - beta) * momentum_buffer + beta * w - beta * long_step * g
    return new_weight(lerp(w - lr * g, point, 1 - zeta)), point
