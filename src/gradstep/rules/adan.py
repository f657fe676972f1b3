"""Adan."""

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


@rule(lr=1e-3, class_name="Adan")
def adan(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    exp_avg_diff: Value,
    previous_grad: Value,
    *,
    w: Value,
    step: Value,
    lr: Value,
    first: Value,
    beta1: Decay = 0.98,
    beta2: Decay = 0.92,
    beta3: Decay = 0.99,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    no_prox: bool = False,
) -> Result:
    """Adan: Adam that also follows how the gradient changes, as Nesterov's momentum does.

    States:
        exp_avg: the moving average of the gradient.
        exp_avg_sq: the moving average of the square of the gradient with its change added.
        exp_avg_diff: the moving average of the gradient's change.
        previous_grad: the gradient of the step before.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average change is kept at each step, and its share in the step.
        beta3: how much of the average square is kept at each step.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: shrinks the weight, after the step, to 1 / (1 + lr · weight_decay) of it.
        no_prox: shrink the weight by lr · weight_decay before the step, as AdamW does.

    Paper:
        Xie, Zhou, Li, Lin & Yan 2022, "Adan: adaptive Nesterov momentum algorithm for faster
        optimizing deep models", arXiv:2208.06677.

    Agrees with the authors' code, timm, pytorch_optimizer and optimi. The paper counts its betas
    the other way round (0.02, 0.08, 0.01). optax weights the change with 1 − beta2, which makes
    another rule of it; adan-pytorch does not move at its first step.
    """
    change = where(first, 0.0, g - previous_grad)
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    exp_avg_diff = lerp(exp_avg_diff, change, 1 - beta2)
    ahead = g + beta2 * change
    exp_avg_sq = beta3 * exp_avg_sq + (1 - beta3) * (ahead * ahead)
    average = exp_avg / (1 - beta1**step) + beta2 / (1 - beta2**step) * exp_avg_diff
    direction = average / (sqrt(exp_avg_sq) / sqrt(1 - beta3**step) + eps)
    if nonzero(weight_decay) and no_prox:
        direction = direction + weight_decay * w
    elif nonzero(weight_decay):
        direction = new_weight((w - lr * direction) / (1 + lr * weight_decay))
    return direction, exp_avg, exp_avg_sq, exp_avg_diff, g
