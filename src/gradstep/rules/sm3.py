"""SM3."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    Result,
    Value,
    lerp,
    max,
    minimum,
    nonzero,
    per_column,
    per_row,
    rule,
    sqrt,
    where,
    zeros,
)


@rule(lr=0.1, class_name="SM3")
def sm3(
    g: Value,
    momentum_buffer: Value = zeros(when="momentum"),
    row_accumulator: Value = per_row(),
    column_accumulator: Value = per_column(),
    accumulator: Value = zeros(only="vector"),
    *,
    momentum: Decay = 0.9,
) -> Result:
    """SM3: Adagrad that keeps one number a row and one a column.

    An element's sum of squares is at most that of its row and that of its column, so the smaller of
    the two stands for it. The paper's SM3-II, the tighter of its two forms.

    States:
        momentum_buffer: the moving average of the directions.
        row_accumulator: the largest sum of squares in each row.
        column_accumulator: the same of each column.
        accumulator: the sum of squared gradients, for weights without rows.

    Hyperparameters:
        momentum: how much of the average direction is kept at each step.

    Paper:
        Anil et al. 2019, "Memory-efficient adaptive optimization", arXiv:1901.11150.

    Agrees with the paper and the authors' code, and for weights of up to two dimensions with optax
    (at eps=0) and with pytorch_optimizer (at the same momentum; its default is 0, and with beta
    above 0 it keeps averages in place of sums). The paper leaves open which elements share a
    number: here, beyond two dimensions, the rows and columns of each matrix of the last two, where
    the authors have one number for each index of each dimension. An element whose gradients have
    all been 0 does not move.
    """
    if row_accumulator is None:
        total = accumulator = accumulator + g * g
    else:
        total = minimum(row_accumulator, column_accumulator) + g * g
        row_accumulator, column_accumulator = max(total, -1), max(total, -2)
    direction = where(total == 0, 0, g / sqrt(total))
    if nonzero(momentum):
        direction = momentum_buffer = lerp(momentum_buffer, direction, 1 - momentum)
    return direction, momentum_buffer, row_accumulator, column_accumulator, accumulator
