"""Conda."""

from __future__ import annotations

from typing import Annotated

from gradstep.linalg.low_rank import (
    average_square,
    projected,
    sides,
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


def basis_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """The shape of a basis of a weight's shorter side."""
    return sides(shape)[0], sides(shape)[0]


@rule(lr=1e-3, class_name="Conda")
def conda(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value = zeros(only="vector"),
    projector: Value = shaped(basis_shape, only="matrix"),
    projected_sq: Value = shaped(sides, only="matrix"),
    *,
    w: Value,
    step: Value,
    lr: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    update_proj_gap: Annotated[float, Interval(1)] = 2000,
    scale: NonNegative = 1.0,
) -> Result:
    """Conda: Adam in the basis of the average gradient's singular vectors, along the shorter side.

    P is the singular vectors of the average gradient M, taken anew now and then. The direction is
    ``P (Pᵀ M / (√V + eps))`` with the average V of the squares of ``Pᵀ G``: each of M's columns is
    brought to one size there.

    States:
        exp_avg: the moving average M of the gradient.
        exp_avg_sq: the moving average of its square, of weights without rows and columns.
        projector: the singular vectors P, as columns.
        projected_sq: V, of all others, the shorter side as its rows.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: shrinks the weight by lr · weight_decay, after its step (decoupled).
        update_proj_gap: how many steps the singular vectors are kept for.
        scale: what the steps of matrices are multiplied by.

    Paper:
        Wang et al. 2025, "Conda: column-normalized Adam for training large language models faster",
        arXiv:2509.24218.

    Agrees with pytorch_optimizer's Conda (projection_type "std") on gradients of full rank along
    the shorter side, while its first singular vectors last; it takes new ones a step sooner.
    Weights with fewer than two dimensions have AdamW; one of more is a matrix of its first
    dimension and all others together, where that leaves it to AdamW. No step is made where √V is
    rounding of its largest.
    """
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    if projector is None:
        exp_avg_sq = lerp(exp_avg_sq, g * g, 1 - beta2)
        direction = exp_avg / (sqrt(exp_avg_sq) + eps)
    else:
        projector = subspace(exp_avg, projector, step, update_proj_gap)
        low, average = (projected(x, projector, projected_sq) for x in (g, exp_avg))
        projected_sq = average_square(projected_sq, low, beta2)
        direction = scale * taken_back(g, projector, average, projected_sq, eps)
    w = w - lr * (sqrt(1 - beta2**step) / (1 - beta1**step)) * direction
    w = w * (1 - lr * weight_decay) if nonzero(weight_decay) else w
    return new_weight(w), exp_avg, exp_avg_sq, projector, projected_sq
