"""DiffGrad."""

from __future__ import annotations

from gradstep.rule import Decay, NonNegative, Result, Value, abs, exp, lerp, nonzero, rule, sqrt


@rule(lr=1e-3, class_name="DiffGrad")
def diffgrad(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    previous_grad: Value,
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """DiffGrad: Adam that takes half a step where the gradient stays, a whole one where it changes.

    States:
        exp_avg: the moving average of the gradient.
        exp_avg_sq: the moving average of the squared gradient.
        previous_grad: the gradient of the step before.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: adds this share of the weight to its gradient (an L2 penalty).

    Paper:
        Dubey et al. 2019, "diffGrad: an optimization method for convolutional neural networks",
        arXiv:1909.11015.

    Agrees with the paper. The authors' code, torch-optimizer and pytorch_optimizer add eps to the
    root before it is corrected for the average's start. pytorch_optimizer decays decoupled.
    """
    if nonzero(weight_decay):
        g = g + weight_decay * w
    friction = 1 / (1 + exp(-abs(previous_grad - g)))
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
    scale = sqrt(exp_avg_sq) / sqrt(1 - beta2**step) + eps
    return friction * (exp_avg / (1 - beta1**step) / scale), exp_avg, exp_avg_sq, g
