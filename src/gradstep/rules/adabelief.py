"""AdaBelief."""

from __future__ import annotations

from gradstep.rule import Decay, NonNegative, Result, Value, lerp, nonzero, rule, sqrt, where


@rule(lr=1e-3, class_name="AdaBelief")
def adabelief(
    g: Value,
    exp_avg: Value,
    exp_avg_var: Value,
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-16,
    weight_decay: NonNegative = 0.0,
    rectify: bool = False,
) -> Result:
    """AdaBelief: Adam that divides by how far gradients are from their average, not by their size.

    States:
        exp_avg: the moving average of the gradient.
        exp_avg_var: the moving average of the squared distance of the gradient from its average.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared distance is kept at each step.
        eps: keeps the division from blowing up; it is added to the average distance as well, and
            stays in it.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).
        rectify: begin as plain momentum, as RAdam does.

    Papers:
        Zhuang et al. 2020, "AdaBelief optimizer: adapting stepsizes by the belief in observed
        gradients", arXiv:2010.07468.
        Liu et al. 2019, "On the variance of the adaptive learning rate and beyond",
        arXiv:1908.03265 (the rectification).

    Agrees with adabelief-pytorch, timm, pytorch_optimizer, and optax with eps_root = eps; eps and
    the decoupled decay are those of the authors' code. There and in timm rectify is on unless
    asked otherwise; in the paper, pytorch_optimizer and optax it is off.
    """
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    distance = g - exp_avg
    exp_avg_var = beta2 * exp_avg_var + (1 - beta2) * (distance * distance) + eps
    correction2 = 1 - beta2**step
    scale = 1 / (sqrt(exp_avg_var) / sqrt(correction2) + eps)
    if rectify:
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * step * beta2**step / correction2
        share = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        scale = where(length >= 5, sqrt(share * correction2) / (sqrt(exp_avg_var) + eps), 1.0)
    direction = exp_avg / (1 - beta1**step) * scale
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, exp_avg, exp_avg_var
