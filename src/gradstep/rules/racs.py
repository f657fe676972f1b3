"""RACS."""

from __future__ import annotations

from typing import Annotated, Any

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
    per_column,
    per_row,
    rule,
    size,
    sqrt,
    sum,
    where,
    zeros,
)

#: How often rows and columns are fitted to each other, as in the paper's experiments.
_ITERATIONS = 5
#: Nothing that float32 has is smaller.
_TINY = 1e-38


@rule(lr=0.02, class_name="RACS")
def racs(
    g: Value,
    row_sq: Value = per_row(),
    column_sq: Value = per_column(),
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
) -> Result:
    """RACS: SGD with every row and every column of a matrix scaled by what it has seen.

    A number q a row and s a column with ``q sᵀ ≈ G²``: ``s = (G²)ᵀ q / |q|²``, then
    ``q = G² s / |s|²``, five times from q = 1. The direction is G divided by the root of their
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

    Paper:
        Gong, Scetbon, Ma & Meeds 2025, "Towards efficient optimizer design for LLM via structured
        Fisher approximation with a low-rank extension", arXiv:2502.07752.

    Agrees with the paper's algorithm 1 and the values of its experiments; the paper leaves vectors
    to Adam, and has no eps. pytorch_optimizer's RACS takes plain means of G² along rows and along
    columns for both, so that its steps grow as gradients fall. Beyond two dimensions the last two
    are rows and columns. After a gradient of 0 the norm may grow freely.
    """
    square = g * g
    if row_sq is None:
        estimate = variance = lerp(variance, square, 1 - beta)
    else:
        rows, columns = _scales(square)
        row_sq, column_sq = lerp(row_sq, rows, 1 - beta), lerp(column_sq, columns, 1 - beta)
        estimate = row_sq * column_sq
    scaled = g / (sqrt(estimate) + eps)
    length = norm(scaled)
    limit = maximum(1, where(scaled_norm > 0, length / scaled_norm, 0) / gamma)
    w = w * (1 - lr * weight_decay) if nonzero(weight_decay) else w
    return new_weight(w - lr * alpha / limit * scaled), row_sq, column_sq, variance, length / limit


def _scales(square: Any) -> tuple[Any, Any]:
    """A number a row and a number a column whose products are nearest to the squares."""
    columns = sum(square, -2) / size(square, -2)
    for left in reversed(range(_ITERATIONS)):
        rows = sum(square * columns, -1) / maximum(sum(columns * columns, -1), _TINY)
        if left:
            columns = sum(square * rows, -2) / maximum(sum(rows * rows, -2), _TINY)
    return rows, columns
