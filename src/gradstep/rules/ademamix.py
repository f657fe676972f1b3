"""AdEMAMix."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Result,
    Value,
    exp,
    lerp,
    log,
    minimum,
    nonzero,
    rule,
    sqrt,
    where,
)


@rule(lr=1e-3, class_name="AdEMAMix")
def ademamix(
    g: Value,
    exp_avg_fast: Value,
    exp_avg_slow: Value,
    exp_avg_sq: Value,
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    beta3: Decay = 0.9999,
    alpha: NonNegative = 2.0,
    alpha_warmup: NonNegative = 0.0,
    beta3_warmup: NonNegative = 0.0,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """AdEMAMix: Adam with two averages of the gradient: one forgets soon, one goes far back.

    The slow one starts at zero and is not corrected for it, so that it fills by and by.

    States:
        exp_avg_fast: the moving average of the gradient that Adam has.
        exp_avg_slow: the one that goes far back.
        exp_avg_sq: the moving average of the squared gradient.

    Hyperparameters:
        beta1: how much of the fast average is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        beta3: how much of the slow average is kept at each step, after its warm-up.
        alpha: the slow average's weight beside the fast one, after its warm-up.
        alpha_warmup: over how many steps alpha rises from 0 in a line; 0 for no warm-up.
        beta3_warmup: over how many steps beta3 rises from beta1, its half-life in a line; 0 for no
            warm-up.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Pagliardini, Ablin & Grangier 2024, "The AdEMAMix optimizer: better, faster, older",
        arXiv:2409.03137.

    Agrees with the authors' code, whose alpha of 2 it has (the paper's experiments: 5 to 10, with
    both warm-ups as long as the training), and with pytorch_optimizer, whose alpha is 5. optax
    takes alpha and beta3 as schedules of the step before.
    """
    done = minimum(step / beta3_warmup, 1)
    warming = exp(1 / ((1 - done) / log(beta1) + done / log(beta3)))
    beta3 = where(step < beta3_warmup, warming, beta3)
    alpha = where(step < alpha_warmup, alpha * step / alpha_warmup, alpha)
    exp_avg_fast = lerp(exp_avg_fast, g, 1 - beta1)
    exp_avg_slow = lerp(exp_avg_slow, g, 1 - beta3)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
    average = exp_avg_fast / (1 - beta1**step) + alpha * exp_avg_slow
    direction = average / (sqrt(exp_avg_sq) / sqrt(1 - beta2**step) + eps)
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, exp_avg_fast, exp_avg_slow, exp_avg_sq
