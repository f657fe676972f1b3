"""LOMO and AdaLomo."""

from __future__ import annotations

from typing import Annotated

from gradstep.rule import (
    Interval,
    NonNegative,
    Positive,
    Result,
    Value,
    clamp,
    lerp,
    maximum,
    mean,
    new_weight,
    nonzero,
    per_column,
    per_row,
    rms,
    rsqrt,
    rule,
    zeros,
)


@rule(class_name="LOMO")
def lomo(
    g: Value,
    *,
    w: Value,
    lr: Value,
    clip_value: NonNegative = 0.0,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """LOMO: gradient descent without states, meant for steps within backward.

    With :class:`gradstep.StepInBackward` around it, a training needs hardly more memory than the
    weights and activations: no states, and the gradients of one layer.

    Hyperparameters:
        clip_value: no element of a gradient counts for more than this; 0 for as much as it is.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Lv et al. 2023, "Full parameter fine-tuning for large language models with limited
        resources", arXiv:2306.09782.

    Agrees with the authors' lomo-optim, but for its clipping by the norm of all gradients, for
    which that makes a second backward pass: clip_by_norm in a chain clips each weight by itself.
    """
    g = clamp(g, -clip_value, clip_value) if nonzero(clip_value) else g
    w = w * (1 - lr * weight_decay) if nonzero(weight_decay) else w
    return new_weight(w - lr * g)


@rule(class_name="AdaLomo")
def adalomo(
    g: Value,
    row_var: Value = per_row(),
    col_var: Value = per_column(),
    variance: Value = zeros(only="vector"),
    *,
    w: Value,
    step: Value,
    lr: Value,
    beta2_decay: Annotated[float, Interval(high=0, closed=True)] = -0.8,
    eps1: Positive = 1e-30,
    eps2: NonNegative = 1e-3,
    d: Annotated[float, Interval(0)] = 1.0,
    clip_value: NonNegative = 0.0,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """AdaLomo: Adafactor's second moment with grouped update normalization, for steps in backward.

    The step is relative to the size of the weights, and clipped where it is larger than usual:
    those of each layer by themselves, so that none has to wait for the gradients of the others. Put
    :class:`gradstep.StepInBackward` around it.

    States:
        row_var: the moving average of each row's mean squared gradient.
        col_var: the same of each column.
        variance: the moving average of the squared gradient, for weights without rows.

    Hyperparameters:
        beta2_decay: the average takes in stepᵝ of the new square: all at first, less and less.
        eps1: added to the squared gradient, and the least that a second moment can be.
        eps2: the size that small weights are taken to have.
        d: steps whose root mean square is larger are scaled down to it.
        clip_value: no element of a gradient counts for more than this; 0 for as much as it is.
        weight_decay: shrinks the weight by lr · weight_decay · its size (decoupled).

    Paper:
        Lv et al. 2023, "AdaLomo: low-memory optimization with adaptive learning rate",
        arXiv:2310.10195.

    Agrees with the authors' lomo-optim, also where that differs from the paper's algorithm: the
    share of the average kept is 1 − stepᵝ. Beyond two dimensions, which it does not take, the last
    two are rows and columns.
    """
    g = clamp(g, -clip_value, clip_value) if nonzero(clip_value) else g
    square = g * g + eps1
    if row_var is None:
        estimate = variance = lerp(variance, square, step**beta2_decay)
    else:
        row_var = lerp(row_var, mean(square, -1), step**beta2_decay)
        col_var = lerp(col_var, mean(square, -2), step**beta2_decay)
        estimate = row_var / maximum(mean(row_var, -2), eps1) * col_var
    update = g * rsqrt(maximum(estimate, eps1))
    update = update / maximum(1, rms(update) / d)
    rate = lr * maximum(eps2, rms(w))
    w = w * (1 - rate * weight_decay) if nonzero(weight_decay) else w
    return new_weight(w - rate * update), row_var, col_var, variance
