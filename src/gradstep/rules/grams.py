"""Grams."""

from __future__ import annotations

from gradstep.rule import Decay, NonNegative, Result, Value, abs, lerp, nonzero, rule, sign, sqrt


@rule(lr=1e-3, class_name="Grams")
def grams(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """Grams: steps as long as Adam's, but each against the sign of the gradient itself.

    Not to be confused with the cautious mask, which leaves out the steps that go the other way.

    States:
        exp_avg: the moving average of the gradient.
        exp_avg_sq: the moving average of the squared gradient.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Cao, Li & Song 2024, "Grams: gradient descent with adaptive momentum scaling",
        arXiv:2412.17107.

    Agrees with pytorch_optimizer.
    """
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
    scale = sqrt(exp_avg_sq) / sqrt(1 - beta2**step) + eps
    direction = sign(g) * abs(exp_avg / (1 - beta1**step) / scale)
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, exp_avg, exp_avg_sq
