"""Adai."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Result,
    Value,
    clamp,
    full,
    global_sum,
    nonzero,
    rule,
    where,
    zeros,
)


@rule(lr=0.1, class_name="Adai")
def adai(
    g: Value,
    exp_avg: Value = zeros(),
    exp_avg_sq: Value = zeros(),
    beta1_prod: Value = full(1.0),
    *,
    w: Value,
    step: Value,
    beta0: NonNegative = 0.1,
    beta2: Decay = 0.99,
    eps: Decay = 1e-3,
    weight_decay: NonNegative = 0.0,
    decoupled_weight_decay: bool = False,
) -> Result:
    """Adai: momentum that is longer where gradients are small, and steps of SGD's size everywhere.

    The second moment, over its mean over all weights, sets how fast a weight forgets; it does not
    divide the gradient.

    States:
        exp_avg: the moving average of the gradient.
        exp_avg_sq: the moving average of the squared gradient.
        beta1_prod: the product of the weight's shares kept so far, to correct the average's start.

    Hyperparameters:
        beta0: how much a weight with the mean second moment forgets at each step.
        beta2: how much of the average squared gradient is kept at each step.
        eps: the least that any weight forgets at each step.
        weight_decay: adds this share of the weight to its gradient (an L2 penalty).
        decoupled_weight_decay: shrink the weight itself by lr · weight_decay instead.

    Paper:
        Xie, Wang, Zhang, Sato & Sugiyama 2020, "Adaptive inertia: disentangling the effects of
        adaptive learning rate and momentum", arXiv:2006.15815.

    Agrees with the paper and with pytorch_optimizer, whose mean second moment is at least eps. The
    paper tunes the learning rate as that of SGD; 0.1 is ours.
    """
    if not decoupled_weight_decay and nonzero(weight_decay):
        g = g + weight_decay * w
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
    estimate = exp_avg_sq / (1 - beta2**step)
    # Of all elements: each counts 1.
    typical = global_sum(estimate) / global_sum(where(estimate >= 0, 1, 0))
    beta1 = clamp(1 - where(typical > 0, estimate / typical, 0) * beta0, 0, 1 - eps)
    beta1_prod = beta1_prod * beta1
    exp_avg = beta1 * exp_avg + (1 - beta1) * g
    direction = exp_avg / (1 - beta1_prod)
    if decoupled_weight_decay:
        direction = direction + weight_decay * w
    return direction, exp_avg, exp_avg_sq, beta1_prod
