"""Prodigy."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Positive,
    Result,
    Value,
    abs,
    copy_of_weight,
    global_sum,
    lerp,
    maximum,
    nonzero,
    rule,
    shared,
    sqrt,
    where,
)


@rule(lr=1.0, class_name="Prodigy")
def prodigy(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    s: Value,
    p0: Value = copy_of_weight(),
    d: Value = shared("d0"),
    d_numerator: Value = shared(0.0),
    *,
    w: Value,
    lr: Value,
    step: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    beta3: float | None = None,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    d0: Positive = 1e-6,
    d_coef: NonNegative = 1.0,
    use_bias_correction: bool = False,
    safeguard_warmup: bool = False,
) -> Result:
    """Prodigy: Adam that finds its own learning rate d, a bound from below of the way to go.

    Not to be confused with D-Adaptation, which weighs gradients with d where Prodigy weighs them
    with d², and so is slower to find it. Leave lr at 1, or let a schedule multiply it.

    States:
        exp_avg: the moving average of d · gradient.
        exp_avg_sq: the moving average of (d · gradient)².
        s: the weighted average of the gradients, in units of d0.
        p0: the weight at the start.
        d: the learning rate that was found, which only grows.
        d_numerator: the weighted average of how far the weights went against the gradients.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        beta3: the same for the two averages that d is found with; None for √beta2.
        eps: keeps the division from blowing up, in units of d.
        weight_decay: shrinks the weight by d · lr · weight_decay (decoupled).
        d0: the learning rate to begin with, small enough to do no harm.
        d_coef: makes every estimate of d so many times larger.
        use_bias_correction: divides by 1 − βᵗ as Adam does.
        safeguard_warmup: leaves lr out of the denominator of d, for long warm-ups.

    Paper:
        Mishchenko & Defazio 2023, "Prodigy: an expeditiously adaptive parameter-free learner",
        arXiv:2306.06101.

    Agrees with prodigyopt, which has a decoupled decay too, and also can slow the growth of d.
    optax always corrects the bias.
    """
    beta3 = sqrt(beta2) if beta3 is None else beta3
    correction = sqrt(1 - beta2**step) / (1 - beta1**step) if use_bias_correction else 1
    dlr = d * lr * correction
    d_numerator = beta3 * d_numerator + global_sum(d / d0 * dlr * (g * (p0 - w)))
    s = beta3 * s + d / d0 * (d if safeguard_warmup else dlr) * g
    exp_avg = lerp(exp_avg, d * g, 1 - beta1)
    exp_avg_sq = lerp(exp_avg_sq, d * d * (g * g), 1 - beta2)
    d_denominator = global_sum(abs(s))
    larger = where(d_denominator > 0, maximum(d, d_coef * d_numerator / d_denominator), d)
    direction = exp_avg / (sqrt(exp_avg_sq) + larger * eps)
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return d * correction * direction, exp_avg, exp_avg_sq, s, p0, larger, d_numerator
