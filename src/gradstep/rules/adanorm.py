"""AdaNorm."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Result,
    Value,
    lerp,
    nonzero,
    norm,
    number,
    rule,
    sqrt,
    where,
)


@rule(lr=1e-3, class_name="AdaNorm")
def adanorm(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    exp_grad_norm: Value = number(0.0),
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    gamma: Decay = 0.95,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """AdaNorm: Adam whose gradients are scaled up where they are smaller than they usually are.

    Usual is the average norm of the layer's gradient. The paper's AdamNorm; it also puts the
    scaled gradient into diffGrad, RAdam and AdaBelief.

    States:
        exp_avg: the moving average of the scaled gradient.
        exp_avg_sq: the moving average of the squared gradient, which is not scaled.
        exp_grad_norm: the moving average of the norm of the layer's gradient.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        gamma: how much of the average norm is kept at each step.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: adds this share of the weight to its gradient (an L2 penalty).

    Paper:
        Dubey, Singh & Chaudhuri 2022, "AdaNorm: adaptive gradient norm correction based optimizer
        for CNNs", arXiv:2210.06364.

    Agrees with the paper. pytorch_optimizer has a beta2 of 0.99, decoupled weight decay, and eps
    added before the second average is corrected, beside 1e-15 under the root.
    """
    if nonzero(weight_decay):
        g = g + weight_decay * w
    grad_norm = norm(g)
    exp_grad_norm = lerp(exp_grad_norm, grad_norm, 1 - gamma)
    small = (grad_norm > 0) & (exp_grad_norm > grad_norm)
    exp_avg = lerp(exp_avg, where(small, exp_grad_norm / grad_norm, 1) * g, 1 - beta1)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
    correction1, correction2 = 1 - beta1**step, sqrt(1 - beta2**step)
    direction = correction2 / correction1 * (exp_avg / (sqrt(exp_avg_sq) + eps * correction2))
    return direction, exp_avg, exp_avg_sq, exp_grad_norm
