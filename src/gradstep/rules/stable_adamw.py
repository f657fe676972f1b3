"""StableAdamW."""

from __future__ import annotations

from gradstep.rule import Decay, NonNegative, Result, Value, lerp, maximum, nonzero, rms, rule, sqrt


@rule(lr=2e-3, class_name="StableAdamW")
def stable_adamw(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.99,
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.2,
) -> Result:
    """StableAdamW: AdamW that steps less where gradients are larger than their average foretold.

    The size of that surprise is one number for each layer, as in Adafactor, and it takes the place
    of clipping gradients.

    States:
        exp_avg: the moving average of the gradient, without its bias towards zero.
        exp_avg_sq: the same of the squared gradient.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step, after the first ones.
        beta2: how much of the average squared gradient is kept at each step, after the first ones.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: shrinks the weight by the learning rate, as clipped, times this (decoupled).

    Paper:
        Wortsman et al. 2023, "Stable and low-precision training for large-scale vision-language
        models", arXiv:2304.13013.

    Agrees with the paper, torch-optimi and pytorch_optimizer, which differ in their defaults: both
    have a weight decay of 0.01, pytorch_optimizer an eps of 1e-8.
    """
    # The averages are corrected as they are made, by a share that starts at 1.
    exp_avg = lerp(exp_avg, g, (1 - beta1) / (1 - beta1**step))
    exp_avg_sq = lerp(exp_avg_sq, g * g, (1 - beta2) / (1 - beta2**step))
    surprise = rms(g / sqrt(maximum(exp_avg_sq, eps * eps)))
    direction = exp_avg / (sqrt(exp_avg_sq) + eps)
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction / maximum(1, surprise), exp_avg, exp_avg_sq
