"""Adafactor."""

from __future__ import annotations

from typing import Annotated

from gradstep.rule import (
    Interval,
    NonNegative,
    Result,
    Value,
    lerp,
    maximum,
    mean,
    minimum,
    new_weight,
    nonzero,
    per_column,
    per_row,
    rms,
    rsqrt,
    rule,
    sqrt,
    zeros,
)


@rule
def adafactor(
    g: Value,
    row_var: Value = per_row(),
    col_var: Value = per_column(),
    variance: Value = zeros(only="vector"),
    *,
    w: Value,
    step: Value,
    lr: Value,
    machine_epsilon: Value,
    beta2_decay: Annotated[float, Interval(high=0, closed=True)] = -0.8,
    eps1: Value | float | None = None,
    eps2: NonNegative = 1e-3,
    d: Annotated[float, Interval(1)] = 1.0,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """Adafactor: Adam's second moment kept as one number a row and one a column.

    The step is relative to the size of the weights, and clipped where it is larger than usual.

    States:
        row_var: the moving average of each row's mean squared gradient.
        col_var: the same of each column.
        variance: the moving average of the squared gradient, for weights without rows.

    Hyperparameters:
        beta2_decay: the average takes in stepᵝ of the new square: all at first, less and less.
        eps1: the smallest root of a second moment; None for the dtype's machine epsilon.
        eps2: the size that small weights are taken to have.
        d: steps whose root mean square is larger are scaled down to it.
        weight_decay: shrinks the weight itself by lr · weight_decay.

    Paper:
        Shazeer & Stern 2018, "Adafactor: adaptive learning rates with sublinear memory cost",
        arXiv:1804.04235.

    Agrees with torch.optim.Adafactor: eps1 is a lower bound and not added to the squared gradient,
    the learning rate is at most 1/√step, and there is no first moment. Beyond two dimensions the
    last two are rows and columns. Where eps1 is None torch takes the epsilon of the first dtype of
    a group for all of it; here each weight has its own.
    """
    eps1 = machine_epsilon if eps1 is None else eps1
    size = maximum(eps2, rms(w)) * minimum(lr, 1 / sqrt(step))
    if row_var is None:
        estimate = variance = lerp(variance, g * g, step**beta2_decay)
    else:
        row_var = lerp(row_var, mean(g * g, -1), step**beta2_decay)
        col_var = lerp(col_var, mean(g * g, -2), step**beta2_decay)
        estimate = row_var * col_var / maximum(mean(row_var, -2), eps1)
    update = g * rsqrt(maximum(estimate, eps1 * eps1))
    w = w * (1 - lr * weight_decay) if nonzero(weight_decay) else w
    w = w - size / maximum(1, rms(update) / d) * update
    return new_weight(w), row_var, col_var, variance
