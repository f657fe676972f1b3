"""Fira."""

from __future__ import annotations

from typing import Annotated

from gradstep.linalg.low_rank import (
    average,
    average_square,
    moment_shape,
    outside,
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
    number,
    rule,
    shaped,
    sqrt,
    zeros,
)
from gradstep.rules.growth import limited


@rule(lr=0.01, class_name="Fira")
def fira(
    g: Value,
    exp_avg: Value = zeros(only="vector"),
    exp_avg_sq: Value = zeros(only="vector"),
    projector: Value = shaped(projector_shape, "rank", only="matrix"),
    low_exp_avg: Value = shaped(moment_shape, "rank", only="matrix"),
    low_exp_avg_sq: Value = shaped(moment_shape, "rank", only="matrix"),
    rest_norm: Value = number(0.0),
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
    gamma: Annotated[float, Interval(1)] = 1.01,
) -> Result:
    """Fira: GaLore, and what lies outside of its subspace scaled as Adam scales what lies inside.

    Adam turns ``R = Pᵀ G`` into D. Inside the weight moves by ``scale · P D``, outside by
    ``G − P R``, each channel along the longer side times ``|D| / |R|`` of that channel; the norm of
    that part grows by no more than gamma at a step.

    States:
        exp_avg: the moving average of the gradient, of weights without rows and columns.
        exp_avg_sq: the moving average of its square, of the same.
        projector: the singular vectors P.
        low_exp_avg: the moving average of R.
        low_exp_avg_sq: the moving average of the square of R.
        rest_norm: the norm of the last part outside; 0 for weights without rows and columns.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: shrinks the weight by lr · weight_decay, after its step (decoupled).
        rank: how many singular vectors; at most as many as the shorter side is long.
        update_proj_gap: how many steps the singular vectors are kept for.
        scale: makes the steps of matrices inside the subspace smaller than those of other weights.
        gamma: by how much the norm of the part outside may grow at a step.

    Paper:
        Chen et al. 2024, "Fira: can we achieve full-rank training of LLMs under low-rank
        constraint?", arXiv:2410.01623.

    Agrees with pytorch_optimizer's Fira (projection_type "std") at a scale of 1, while its first
    singular vectors last (it takes new ones a step sooner): at others it takes only that share of
    ``P R`` from the gradient. Otherwise as GaLore; what is outside by rounding alone is 0, and
    after a part of 0 the norm may grow freely.
    """
    if projector is None:
        exp_avg, exp_avg_sq = lerp(exp_avg, g, 1 - beta1), lerp(exp_avg_sq, g * g, 1 - beta2)
        direction = exp_avg / (sqrt(exp_avg_sq) + eps)
    else:
        projector = subspace(g, projector, step, update_proj_gap)
        low = projected(g, projector, low_exp_avg)
        low_exp_avg = average(low_exp_avg, low, beta1)
        low_exp_avg_sq = average_square(low_exp_avg_sq, low, beta2)
        rest = outside(g, projector, low, low_exp_avg, low_exp_avg_sq, eps)
        rest, rest_norm = limited(rest, rest_norm, gamma)
        direction = scale * taken_back(g, projector, low_exp_avg, low_exp_avg_sq, eps) + rest
    w = w - lr * (sqrt(1 - beta2**step) / (1 - beta1**step)) * direction
    w = w * (1 - lr * weight_decay) if nonzero(weight_decay) else w
    return new_weight(w), exp_avg, exp_avg_sq, projector, low_exp_avg, low_exp_avg_sq, rest_norm
