"""LaProp."""

from __future__ import annotations

from gradstep.rule import Decay, NonNegative, Result, Value, lerp, nonzero, rule, sqrt


@rule(lr=4e-4, class_name="LaProp")
def laprop(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-15,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """LaProp: Adam that scales each gradient first and averages afterwards.

    So its two betas no longer hang together: any pair of them is stable.

    States:
        exp_avg: the moving average of the scaled gradient.
        exp_avg_sq: the moving average of the squared gradient.

    Hyperparameters:
        beta1: how much of the average scaled gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Ziyin, Wang & Ueda 2020, "LaProp: separating momentum and adaptivity in Adam",
        arXiv:2002.04839.

    Agrees with timm and pytorch_optimizer for a constant learning rate: those have it inside of the
    average, where a schedule makes a difference; here it stands outside, as in the paper's
    algorithm. timm decays the weight after the step, pytorch_optimizer before it, as here.
    """
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
    scaled = g / (sqrt(exp_avg_sq) / sqrt(1 - beta2**step) + eps)
    exp_avg = lerp(exp_avg, scaled, 1 - beta1)
    direction = exp_avg / (1 - beta1**step)
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, exp_avg, exp_avg_sq
