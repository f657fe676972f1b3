"""Adam-atan2."""

from __future__ import annotations

from gradstep.rule import Decay, NonNegative, Result, Value, atan2, lerp, nonzero, rule, sqrt


@rule(lr=1e-4, class_name="AdamAtan2")
def adam_atan2(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.99,
    a: NonNegative = 1.27,
    b: NonNegative = 1.0,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """Adam-atan2: Adam with an angle in the place of the quotient, so that it needs no eps.

    atan2(m, √v) is m / √v where that is small, at most π/2 however large, and 0 where both are 0.
    A gradient that is scaled by any number gives the same step.

    States:
        exp_avg: the moving average of the gradient.
        exp_avg_sq: the moving average of the squared gradient.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        a: what the angle is multiplied by; 1.27 is 4/π, so that m = √v makes a step of 1.
        b: what the root of the average square is multiplied by.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Everett et al. 2024, "Scaling exponents across parameterizations and optimizers",
        arXiv:2407.05872.

    Agrees with adam-atan2-pytorch, whose defaults it has.
    """
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    exp_avg_sq = lerp(exp_avg_sq, g * g, 1 - beta2)
    root = sqrt(exp_avg_sq / (1 - beta2**step))
    direction = a * atan2(exp_avg / (1 - beta1**step), b * root)
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, exp_avg, exp_avg_sq
