"""Adamax."""

from __future__ import annotations

from gradstep.rule import Decay, NonNegative, Result, Value, abs, lerp, maximum, nonzero, rule


@rule
def adamax(
    g: Value,
    exp_avg: Value,
    exp_inf: Value,
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """Adamax: Adam that divides by the largest recent gradient, where Adam takes the average.

    States:
        exp_avg: the moving average of the gradient.
        exp_inf: the largest size of the gradient, fading by beta2 a step.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the largest size is kept at each step.
        eps: is added to each gradient's size, so that nothing is divided by zero.
        weight_decay: adds this share of the weight to its gradient (an L2 penalty).

    Paper:
        Kingma & Ba 2014, "Adam: a method for stochastic optimization", section 7.1,
        arXiv:1412.6980.

    Agrees with torch.optim.Adamax; eps is torch's addition.
    """
    if nonzero(weight_decay):
        g = g + weight_decay * w
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    exp_inf = maximum(beta2 * exp_inf, abs(g) + eps)
    return 1 / (1 - beta1**step) * exp_avg / exp_inf, exp_avg, exp_inf
