"""PAdam."""

from __future__ import annotations

from typing import Annotated

from gradstep.rule import (
    Decay,
    Interval,
    NonNegative,
    Result,
    Value,
    lerp,
    maximum,
    nonzero,
    pow,
    rule,
    sqrt,
    zeros,
)


@rule(lr=0.1, class_name="PAdam")
def padam(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    max_exp_avg_sq: Value = zeros(when="amsgrad"),
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    partial: Annotated[float, Interval(0, 0.5, closed=True)] = 0.125,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    amsgrad: bool = True,
) -> Result:
    """PAdam: Adam that divides by a power of the average square between SGD's and Adam's.

    States:
        exp_avg: the moving average of the gradient.
        exp_avg_sq: the moving average of the squared gradient.
        max_exp_avg_sq: the largest of those so far, kept only with amsgrad.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        partial: the power of the average square: ½ is Adam, 0 is momentum.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: adds this share of the weight to its gradient (an L2 penalty).
        amsgrad: divide by the largest average square so far.

    Paper:
        Chen et al. 2018, "Closing the generalization gap of adaptive gradient methods in training
        deep neural networks", arXiv:1806.06763.

    Agrees with the authors' code; so does pytorch_optimizer, which has no amsgrad and a partial of
    ¼ by default.
    """
    if nonzero(weight_decay):
        g = g + weight_decay * w
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
    largest = exp_avg_sq
    if max_exp_avg_sq is not None:
        largest = max_exp_avg_sq = maximum(max_exp_avg_sq, exp_avg_sq)
    root = pow(sqrt(largest) + eps, 2 * partial)
    direction = sqrt(1 - beta2**step) / (1 - beta1**step) * exp_avg / root
    return direction, exp_avg, exp_avg_sq, max_exp_avg_sq
