"""AdamS."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Result,
    Value,
    global_sum,
    lerp,
    nonzero,
    rule,
    sqrt,
    where,
)


@rule(lr=1e-3, class_name="AdamS")
def adams(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 1e-4,
) -> Result:
    """AdamS: Adam with a decay over the typical gradient, so that both shrink and grow together.

    Not to be confused with AdamW, whose decay stays when gradients get small.

    States:
        exp_avg: the moving average of the gradient.
        exp_avg_sq: the moving average of the squared gradient.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        eps: keeps the divisions from blowing up where gradients are tiny.
        weight_decay: shrinks the weight by lr · weight_decay over the root of the mean of all
            weights' second moments.

    Paper:
        Xie, Xu, Zhang, Sato & Sugiyama 2020, "On the overlooked pitfalls of weight decay and how
        to mitigate them: a gradient-norm perspective" (stable weight decay), arXiv:2011.11152.

    Agrees with pytorch_optimizer, whose eps is also in the decay's denominator, as here.
    """
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    exp_avg_sq = lerp(exp_avg_sq, g * g, 1 - beta2)
    estimate = exp_avg_sq / (1 - beta2**step)
    direction = exp_avg / (1 - beta1**step) / (sqrt(estimate) + eps)
    if nonzero(weight_decay):
        typical = global_sum(estimate) / global_sum(where(estimate >= 0, 1, 0))
        direction = direction + weight_decay / (sqrt(typical) + eps) * w
    return direction, exp_avg, exp_avg_sq
