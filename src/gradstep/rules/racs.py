"""RACS."""

from __future__ import annotations

from typing import Annotated

from gradstep.linalg.rank_one import a_column, a_row, average_scales, scale_by_root
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


@rule(lr=0.02, class_name="RACS")
def racs(
    g: Value,
    row_sq: Value = shaped(a_row, only="matrix"),
    column_sq: Value = shaped(a_column, only="matrix"),
    variance: Value = zeros(only="vector"),
    scaled_norm: Value = number(0.0),
    *,
    w: Value,
    lr: Value,
    beta: Decay = 0.9,
    alpha: NonNegative = 0.05,
    gamma: Annotated[float, Interval(1)] = 1.01,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    iterations: Annotated[float, Interval(1, 1000)] = 5,
) -> Result:
    """RACS: SGD with every row and every column of a matrix scaled by what it has seen.

    A number q a row and s a column with ``q sᵀ ≈ G²``: ``s = (G²)ᵀ q / |q|²``, then
    ``q = G² s / |s|²``, some times from q = 1. The direction is G divided by the root of their
    averages, and its norm may grow by no more than gamma at a step. A vector is a matrix of one
    column: of it each element has an average of its own.

    States:
        row_sq: the moving average of q.
        column_sq: the moving average of s.
        variance: the moving average of the squared gradient, for weights without rows.
        scaled_norm: the norm of the last scaled gradient.

    Hyperparameters:
        beta: how much of the averages is kept at each step.
        alpha: what the learning rate is multiplied by.
        gamma: by how much the norm of the scaled gradient may grow at a step.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: shrinks the weight itself by lr · weight_decay, before its step.
        iterations: how many times q and s are fitted to each other.

    Paper:
        Gong, Scetbon, Ma & Meeds 2025, "Towards efficient optimizer design for LLM via structured
        Fisher approximation with a low-rank extension", arXiv:2502.07752.

    Agrees with the paper's algorithm 1 and the values of its experiments; the paper leaves vectors
    to Adam, and has no eps. pytorch_optimizer's RACS takes plain means of G² along rows and along
    columns for both, so that its steps grow as gradients fall. Beyond two dimensions the last two
    are rows and columns. After a gradient of 0 the norm may grow freely.
    """
    if row_sq is None:
        variance = lerp(variance, g * g, 1 - beta)
        scaled = g / (sqrt(variance) + eps)
    else:
        row_sq, column_sq = average_scales(g, row_sq, column_sq, beta, iterations)
        scaled = scale_by_root(g, row_sq, column_sq, eps)
    scaled, scaled_norm = limited(scaled, scaled_norm, gamma)
    w = w * (1 - lr * weight_decay) if nonzero(weight_decay) else w
    return new_weight(w - lr * alpha * scaled), row_sq, column_sq, variance, scaled_norm
