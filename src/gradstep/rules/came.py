"""CAME."""

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
    mean,
    nonzero,
    per_column,
    per_row,
    rms,
    rsqrt,
    rule,
    zeros,
)


@rule(lr=2e-4, class_name="CAME")
def came(
    g: Value,
    exp_avg: Value,
    exp_avg_sq_row: Value = per_row(),
    exp_avg_sq_col: Value = per_column(),
    exp_avg_res_row: Value = per_row(),
    exp_avg_res_col: Value = per_column(),
    exp_avg_sq: Value = zeros(only="vector"),
    *,
    w: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    beta3: Decay = 0.9999,
    eps1: NonNegative = 1e-30,
    eps2: NonNegative = 1e-16,
    clip_threshold: Annotated[float, Interval(0)] = 1.0,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """CAME: Adafactor with momentum, which steps less where its updates are unsteady.

    How far updates stray from their average is kept like the second moment: as one number a row
    and one a column.

    States:
        exp_avg: the moving average of the update.
        exp_avg_sq_row: the moving average of each row's mean squared gradient.
        exp_avg_sq_col: the same of each column.
        exp_avg_res_row: the moving average of each row's mean squared distance of the update from
            its average.
        exp_avg_res_col: the same of each column.
        exp_avg_sq: the moving average of the squared gradient, for weights without rows.

    Hyperparameters:
        beta1: how much of the average update is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        beta3: how much of the average squared distance is kept at each step.
        eps1: added to the squared gradient, and the least that a second moment can be.
        eps2: added to the squared distance, and the least that its average can be.
        clip_threshold: updates whose root mean square is larger are scaled down to it.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Luo et al. 2023, "CAME: confidence-guided adaptive memory efficient optimization",
        arXiv:2307.02047.

    Agrees with the authors' came-pytorch and pytorch_optimizer: no average is corrected for its
    start at zero, weights of one dimension move by the average update alone, and beyond two
    dimensions the last two are rows and columns. The paper's learning rates are 2e-4 to 3e-4; the
    authors' code has none.
    """
    square, kept = g * g + eps1, (exp_avg_sq_row, exp_avg_sq_col, exp_avg_sq)
    scale, exp_avg_sq_row, exp_avg_sq_col, exp_avg_sq = _taken_in(square, kept, 1 - beta2, eps1)
    update = g * scale
    update = update / maximum(1, rms(update) / clip_threshold)
    direction = exp_avg = lerp(exp_avg, update, 1 - beta1)
    if exp_avg_res_row is not None:
        square, both = (update - exp_avg) ** 2 + eps2, (exp_avg_res_row, exp_avg_res_col, None)
        scale, exp_avg_res_row, exp_avg_res_col, _ = _taken_in(square, both, 1 - beta3, eps2)
        direction = scale * exp_avg
    direction = direction + weight_decay * w if nonzero(weight_decay) else direction
    rows_and_columns = (exp_avg_sq_row, exp_avg_sq_col, exp_avg_res_row, exp_avg_res_col)
    return direction, exp_avg, *rows_and_columns, exp_avg_sq


def _taken_in(
    square: Value, kept: tuple[Any, Any, Any], share: float, least: float
) -> tuple[Value, Any, Any, Any]:
    """Averages with a new square taken in: 1 / √ of them, then those of rows, columns, elements."""
    row, column, whole = kept
    if row is None:
        estimate = whole = lerp(whole, square, share)
    else:
        row, column = lerp(row, mean(square, -1), share), lerp(column, mean(square, -2), share)
        estimate = row * column / maximum(mean(row, -2), least)
    return rsqrt(maximum(estimate, least)), row, column, whole
