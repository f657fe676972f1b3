"""Schedule-Free RAdam."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Result,
    Value,
    copy_of_weight,
    lerp,
    maximum,
    new_weight,
    nonzero,
    number,
    rule,
    sqrt,
    stored,
    where,
    zeros,
)


@rule(
    lr=2.5e-3,
    class_name="RAdamScheduleFree",
    against_codes={"int4": "16 numbers are too few for it, and it was seen to learn far less"},
)
def radam_schedule_free(
    g: Value,
    z: Value = copy_of_weight(),
    exp_avg_sq: Value = zeros(),
    weight_sum: Value = number(0.0),
    lr_max: Value = number(0.0),
    *,
    w: Value,
    step: Value,
    lr: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
    weight_decay: NonNegative = 0.0,
    silent_sgd_phase: bool = True,
) -> Result:
    """Schedule-Free RAdam: RAdam's rectification in the place of a warm-up.

    The weight that is trained is y; for evaluation it has to be moved onto the average:
    x = w + (1 − 1/beta1) · (z − w).

    States:
        z: the point that descent without momentum has come to.
        exp_avg_sq: the moving average of the squared gradient.
        weight_sum: the sum of the shares that the points so far have in the average.
        lr_max: the largest learning rate so far, rectified.

    Hyperparameters:
        beta1: how near to the average, and how far from z, gradients are taken.
        beta2: how much of the average squared gradient is kept at each step.
        eps: keeps the division from blowing up where gradients are tiny.
        r: a point's share in the average grows with its step to this power.
        weight_lr_power: and with the largest learning rate so far to this power.
        weight_decay: shrinks z and the weight by a share of the weight (decoupled).
        silent_sgd_phase: stand still until the average square can be trusted; else plain descent.

    Papers:
        Defazio et al. 2024, "The road less scheduled", arXiv:2405.15682.
        Liu et al. 2019, "On the variance of the adaptive learning rate and beyond",
        arXiv:1908.03265.

    Agrees with the authors' schedulefree. Each weight has its own numbers, so that a weight whose
    first gradient comes late is no exception.
    """
    longest, correction2 = 2 / (1 - beta2) - 1, 1 - beta2**step
    length = longest - 2 * step * beta2**step / correction2
    share = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    rate = lr * where(length > 4, sqrt(share), 0.0 if silent_sgd_phase else 1.0)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
    direction = where(length > 4, g / (sqrt(exp_avg_sq / correction2) + eps), g)
    direction = direction + weight_decay * w if nonzero(weight_decay) else direction
    lr_max = stored(maximum(lr_max, rate))
    part = step**r * lr_max**weight_lr_power
    weight_sum = stored(weight_sum + part)
    part = where(weight_sum > 0, part / weight_sum, 0.0)
    y = lerp(w, z, part) - rate * (1 - beta1 * (1 - part)) * direction
    return new_weight(y), z - rate * direction, exp_avg_sq, weight_sum, lr_max
