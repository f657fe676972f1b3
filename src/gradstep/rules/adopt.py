"""ADOPT."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Result,
    Value,
    clamp,
    lerp,
    maximum,
    nonzero,
    rule,
    sqrt,
    where,
)


@rule(lr=1e-3, class_name="ADOPT")
def adopt(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.9999,
    eps: NonNegative = 1e-6,
    clip_exp: NonNegative = 0.25,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """ADOPT: Adam that scales each gradient by the squares before it, and averages afterwards.

    A gradient that is not part of its own scale lets it converge with any beta2. The first step
    only measures: it moves nothing.

    States:
        exp_avg: the moving average of the scaled gradient.
        exp_avg_sq: the moving average of the squared gradient.

    Hyperparameters:
        beta1: how much of the average scaled gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        eps: the smallest root of an average square that is divided by.
        clip_exp: a scaled gradient is at most (step − 1) to this power.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Taniguchi et al. 2024, "ADOPT: modified Adam can converge with any β2 with the optimal
        rate", arXiv:2411.02853.

    Agrees with optax, and with timm where clip_exp is 1/3, its default. pytorch_optimizer clips one
    step late, at step to the power 0.25. The authors' code offers L2 decay as well: here that is
    chain(decay_weights, adopt).
    """
    limit = where(step > 1, maximum(step - 1, 1) ** clip_exp, 0.0)
    scaled = clamp(g / maximum(sqrt(exp_avg_sq), eps), -limit, limit)
    exp_avg = lerp(exp_avg, scaled, 1 - beta1)
    exp_avg_sq = lerp(exp_avg_sq, g * g, where(step > 1, 1 - beta2, 1.0))
    direction = exp_avg
    if nonzero(weight_decay):
        direction = direction + where(step > 1, weight_decay, 0.0) * w
    return direction, exp_avg, exp_avg_sq
