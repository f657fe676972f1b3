"""APOLLO, the memory-efficient one."""

from __future__ import annotations

from typing import Annotated

from gradstep.linalg.low_rank import (
    average,
    average_square,
    moment_shape,
    randomly_projected,
    scaled_as_adam,
)
from gradstep.rule import (
    Decay,
    Interval,
    NonNegative,
    Result,
    Value,
    lerp,
    maximum,
    new_weight,
    nonzero,
    norm,
    number,
    rule,
    shaped,
    sqrt,
    where,
    zeros,
)


@rule(lr=0.01, class_name="APOLLO")
def apollo(
    g: Value,
    exp_avg: Value = zeros(only="vector"),
    exp_avg_sq: Value = zeros(only="vector"),
    low_exp_avg: Value = shaped(moment_shape, "rank", only="matrix"),
    low_exp_avg_sq: Value = shaped(moment_shape, "rank", only="matrix"),
    scaled_norm: Value = number(0.0),
    *,
    w: Value,
    step: Value,
    lr: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
    rank: Annotated[float, Interval(1)] = 256,
    update_proj_gap: Annotated[float, Interval(1)] = 200,
    scale: NonNegative = 1.0,
    tensor_wise: bool = False,
    seed: NonNegative = 0,
) -> Result:
    """APOLLO: the gradient, scaled as Adam would scale a small random projection of it.

    Not to be confused with Apollo, the quasi-Newton method. With a random P along the shorter side
    of a matrix, Adam turns ``R = P G`` into D. Each channel of the gradient, a row or column along
    the longer side, is then scaled by ``|D| / |R|`` of that channel. APOLLO-Mini, for even less
    memory, is ``tensor_wise=True, rank=1, scale=128``.

    States:
        exp_avg: the moving average of the gradient, of weights without rows and columns.
        exp_avg_sq: the moving average of its square, of the same.
        low_exp_avg: the moving average of R.
        low_exp_avg_sq: the moving average of the square of R.
        scaled_norm: the norm of the last scaled gradient; 0 for weights without rows and columns.

    Hyperparameters:
        beta1: how much of the average is kept at each step.
        beta2: how much of the average square is kept at each step.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: shrinks the weight by lr · weight_decay, after its step (decoupled).
        rank: how many rows R has; at most as many as the shorter side is long.
        update_proj_gap: how many steps a projection is kept for.
        scale: the square of what the steps of matrices are multiplied by.
        tensor_wise: one scale for the whole matrix, not one for each channel.
        seed: chooses the random projections.

    Paper:
        Zhu et al. 2024, "APOLLO: SGD-like memory, AdamW-level performance", arXiv:2412.05270.

    Agrees with the authors' apollo-torch (given the same P, of which the seed makes others there)
    with its examples' defaults. As there, the norm of a scaled gradient grows by at most 1% a
    step; not so after one of 0, from which it could not grow for a thousand steps. Its scale_front
    changes nothing but rounding. Weights with fewer than two dimensions have AdamW. One of more
    than two is a matrix of its first dimension and all others together.
    """
    correction1, correction2 = 1 - beta1**step, sqrt(1 - beta2**step)
    if low_exp_avg is None:
        exp_avg, exp_avg_sq = lerp(exp_avg, g, 1 - beta1), lerp(exp_avg_sq, g * g, 1 - beta2)
        direction = exp_avg / (sqrt(exp_avg_sq) + eps)
    else:
        low = randomly_projected(g, low_exp_avg, step, update_proj_gap, seed)
        low_exp_avg = average(low_exp_avg, low, beta1)
        low_exp_avg_sq = average_square(low_exp_avg_sq, low, beta2)
        direction = scaled_as_adam(g, low, low_exp_avg, low_exp_avg_sq, eps, tensor_wise)
        growth = where(scaled_norm > 0, norm(direction) / (scaled_norm + 1e-8), 0)
        scaled_norm = norm(direction) / maximum(1, growth / 1.01)
        direction = sqrt(scale) / maximum(1, growth / 1.01) * direction
    w = w - lr * (correction2 / correction1) * direction
    w = w * (1 - lr * weight_decay) if nonzero(weight_decay) else w
    return new_weight(w), exp_avg, exp_avg_sq, low_exp_avg, low_exp_avg_sq, scaled_norm
