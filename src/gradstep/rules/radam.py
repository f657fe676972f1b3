"""RAdam."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Result,
    Value,
    lerp,
    new_weight,
    nonzero,
    rule,
    sqrt,
    where,
)


@rule
def radam(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    *,
    w: Value,
    step: Value,
    lr: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
) -> Result:
    """RAdam: Adam that trusts its average square only once it has seen enough gradients.

    Until then (the first five steps, with the usual beta2) it is plain momentum.

    States:
        exp_avg: the moving average of the gradient.
        exp_avg_sq: the moving average of the squared gradient.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: adds this share of the weight to its gradient (an L2 penalty), or, decoupled,
            shrinks the weight itself by lr · weight_decay.
        decoupled_weight_decay: the weight decay of AdamW.

    Paper:
        Liu et al. 2019, "On the variance of the adaptive learning rate and beyond",
        arXiv:1908.03265.

    Agrees with torch.optim.RAdam, which rectifies from a length above 5 on (the paper: above 4).
    pytorch_optimizer's does not move at all before that.
    """
    if nonzero(weight_decay) and not decoupled_weight_decay:
        g = g + weight_decay * w
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
    correction2 = 1 - beta2**step
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * beta2**step / correction2
    share = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    adaptive = sqrt(share * correction2) / (sqrt(exp_avg_sq) + eps)
    direction = exp_avg / (1 - beta1**step) * where(length > 5, adaptive, 1.0)
    if nonzero(weight_decay) and decoupled_weight_decay:
        direction = new_weight(w * (1 - lr * weight_decay) - lr * direction)
    return direction, exp_avg, exp_avg_sq
