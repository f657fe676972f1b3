"""MARS."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Result,
    Value,
    lerp,
    maximum,
    nonzero,
    norm,
    rule,
    sqrt,
    where,
)


@rule(lr=3e-3, class_name="MARS")
def mars(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    last_grad: Value,
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.95,
    beta2: Decay = 0.99,
    gamma: NonNegative = 0.025,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """MARS: AdamW on gradients that are corrected by how they changed since the last step.

    The correction takes noise out of the gradient, and what comes of it is clipped to a norm of 1
    for each layer. This is MARS-AdamW; the paper also has forms over Lion and Shampoo.

    States:
        exp_avg: the moving average of the corrected gradient.
        exp_avg_sq: the moving average of the squared corrected gradient.
        last_grad: the gradient of the step before.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        gamma: what share of the gradient's change, times beta1/(1 − beta1), is added to it.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Yuan et al. 2024, "MARS: unleashing the power of variance reduction for training large
        models", arXiv:2411.10438.

    This is the paper's approximate form: the last gradient is that of the last batch, where the
    exact one is worked out anew on the present batch. Agrees with timm with optimize_1d=True: by
    default timm and the authors update biases and all else of one dimension by plain AdamW. At the
    first step nothing is corrected; the authors' code and pytorch_optimizer take the gradient
    before it to be 0.
    """
    change = where(step == 1, 0 * g, g - last_grad)
    corrected = g + gamma * beta1 / (1 - beta1) * change
    corrected = corrected / maximum(1, norm(corrected))
    exp_avg = lerp(exp_avg, corrected, 1 - beta1)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (corrected * corrected)
    correction1, correction2 = 1 - beta1**step, sqrt(1 - beta2**step)
    direction = correction2 / correction1 * (exp_avg / (sqrt(exp_avg_sq) + eps * correction2))
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, exp_avg, exp_avg_sq, g
