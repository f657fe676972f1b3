"""Ano."""

from __future__ import annotations

from gradstep.rule import Decay, NonNegative, Result, Value, abs, lerp, nonzero, rule, sign, sqrt


@rule(lr=1e-4, class_name="Ano")
def ano(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.92,
    beta2: Decay = 0.99,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """Ano: the direction of the average gradient, with the size of the present one.

    States:
        exp_avg: the moving average of the gradient, whose sign counts.
        exp_avg_sq: the average square, which goes up and down by shares of the present one.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average square is kept at each step; below ½ it may be negative.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Kegreisz 2025, "Ano: faster is better in noisy landscapes", arXiv:2508.18258.

    Agrees with pytorch_optimizer; its option of a beta1 of 1 − 1/log(step) is a schedule here.
    """
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    square = g * g
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (sign(square - exp_avg_sq) * square)
    direction = abs(g) * sign(exp_avg) / (sqrt(exp_avg_sq / (1 - beta2**step)) + eps)
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, exp_avg, exp_avg_sq
