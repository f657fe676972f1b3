"""GaLore."""

from __future__ import annotations

from typing import Annotated

from gradstep.linalg.low_rank import (
    average,
    average_square,
    moment_shape,
    projected,
    projector_shape,
    subspace,
    taken_back,
)
from gradstep.rule import (
    Decay,
    Interval,
    NonNegative,
    Result,
    Value,
    lerp,
    new_weight,
    nonzero,
    rule,
    shaped,
    sqrt,
    zeros,
)


@rule(lr=0.01, class_name="GaLore")
def galore(
    g: Value,
    exp_avg: Value = zeros(only="vector"),
    exp_avg_sq: Value = zeros(only="vector"),
    projector: Value = shaped(projector_shape, "rank", only="matrix"),
    low_exp_avg: Value = shaped(moment_shape, "rank", only="matrix"),
    low_exp_avg_sq: Value = shaped(moment_shape, "rank", only="matrix"),
    *,
    w: Value,
    step: Value,
    lr: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
    rank: Annotated[float, Interval(1)] = 128,
    update_proj_gap: Annotated[float, Interval(1)] = 200,
    scale: NonNegative = 0.25,
) -> Result:
    """GaLore: AdamW in the subspace of each matrix where its gradients are largest.

    P is the gradient's first singular vectors along the shorter side of the matrix, taken anew now
    and then. Adam works on ``Pᵀ G``, which needs little memory, and its direction D moves the
    weight by ``scale · P D``.

    States:
        exp_avg: the moving average of the gradient, of weights without rows and columns.
        exp_avg_sq: the moving average of its square, of the same.
        projector: the singular vectors P.
        low_exp_avg: the moving average of the gradient within the subspace.
        low_exp_avg_sq: the moving average of the square of that.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: shrinks the weight by lr · weight_decay, after its step (decoupled).
        rank: how many singular vectors; at most as many as the shorter side is long.
        update_proj_gap: how many steps the singular vectors are kept for.
        scale: makes the steps of matrices smaller than those of other weights.

    Paper:
        Zhao et al. 2024, "GaLore: memory-efficient LLM training by gradient low-rank projection",
        arXiv:2403.03507.

    Agrees with galore-torch's AdamW (proj_type "std") with its examples' defaults: the moments are
    kept as they are when P changes. Weights with fewer than two dimensions have AdamW. One of more
    than two is a matrix of its first dimension and all others together; galore-torch takes
    matrices alone. A singular vector may have either sign, which galore-torch leaves to chance:
    here the largest element is positive. So is the basis of what a gradient of less than full rank
    lacks, in which galore-torch makes steps of rounding: here it hangs on the gradient alone, along
    the weight's own axes as far as it can, and no step is made where √v is rounding of its largest.
    """
    correction1, correction2 = 1 - beta1**step, sqrt(1 - beta2**step)
    if projector is None:
        exp_avg = lerp(exp_avg, g, 1 - beta1)
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
        direction = exp_avg / (sqrt(exp_avg_sq) + eps)
    else:
        projector = subspace(g, projector, step, update_proj_gap)
        low = projected(g, projector, low_exp_avg)
        low_exp_avg = average(low_exp_avg, low, beta1)
        low_exp_avg_sq = average_square(low_exp_avg_sq, low, beta2)
        direction = scale * taken_back(g, projector, low_exp_avg, low_exp_avg_sq, eps)
    w = w - lr * (correction2 / correction1) * direction
    w = w * (1 - lr * weight_decay) if nonzero(weight_decay) else w
    return new_weight(w), exp_avg, exp_avg_sq, projector, low_exp_avg, low_exp_avg_sq
