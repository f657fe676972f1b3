"""EXAdam."""

from __future__ import annotations

from gradstep.rule import Decay, NonNegative, Result, Value, lerp, nonzero, rule, sqrt


@rule(class_name="EXAdam")
def exadam(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """EXAdam: Adam whose moments correct each other's bias, and that adds the present gradient.

    States:
        exp_avg: the moving average of the gradient.
        exp_avg_sq: the moving average of the squared gradient.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        eps: keeps the divisions from blowing up where gradients are tiny.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Adly 2024, "EXAdam: the power of adaptive cross-moments", arXiv:2412.20302.

    Agrees with pytorch_optimizer, with a fixed learning rate in the place of the paper's.
    """
    kept1, kept2 = beta1**step, beta2**step
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
    squared = exp_avg * exp_avg
    d1 = 1 + kept2 * (exp_avg_sq / (exp_avg_sq + eps))
    d2 = 1 + kept1 * (squared / (squared + eps))
    moved = (exp_avg + g) / (1 - kept1) * d1
    direction = moved / (sqrt(exp_avg_sq / (1 - kept2) * d2) + eps)
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, exp_avg, exp_avg_sq
