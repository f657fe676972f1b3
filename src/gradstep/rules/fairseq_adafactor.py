"""Adafactor as fairseq, Hugging Face and timm have it."""

from __future__ import annotations

from typing import Annotated

from gradstep.rule import (
    Decay,
    Interval,
    NonNegative,
    Positive,
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
    where,
    zeros,
)


@rule(class_name="FairseqAdafactor")
def fairseq_adafactor(
    g: Value,
    exp_avg_sq_row: Value = per_row(),
    exp_avg_sq_col: Value = per_column(),
    exp_avg_sq: Value = zeros(only="vector"),
    exp_avg: Value = zeros(when="beta1"),
    *,
    w: Value,
    step: Value,
    lr: Value,
    eps1: Positive = 1e-30,
    eps2: NonNegative = 1e-3,
    clip_threshold: Positive = 1.0,
    decay_rate: Annotated[float, Interval(high=0, closed=True)] = -0.8,
    beta1: Decay = 0.0,
    weight_decay: NonNegative = 0.0,
    scale_parameter: bool = True,
    relative_step: bool = False,
) -> Result:
    """Adafactor as T5 is trained with: a fixed learning rate, a first moment if it is asked for.

    States:
        exp_avg_sq_row: the moving average of each row's mean squared gradient.
        exp_avg_sq_col: the same of each column.
        exp_avg_sq: the moving average of the squared gradient, for weights without rows.
        exp_avg: the moving average of the steps, kept only with beta1.

    Hyperparameters:
        eps1: added to the squared gradient.
        eps2: the size that small weights are taken to have.
        clip_threshold: steps whose root mean square is larger are scaled down to it.
        decay_rate: the average takes in stepᵝ of the new square: all at first, less and less.
        beta1: how much of the average step is kept at each step; 0 for no average.
        weight_decay: shrinks the weight by its rate · weight_decay (decoupled).
        scale_parameter: multiply the rate by the root mean square of the weight.
        relative_step: a rate of 1/√step, at most 0.01, in the place of a learning rate above 0.

    Paper:
        Shazeer & Stern 2018, "Adafactor: adaptive learning rates with sublinear memory cost",
        arXiv:1804.04235.

    Agrees with transformers.optimization.Adafactor, which is fairseq's; Hugging Face's Trainer sets
    scale_parameter and relative_step to False. Its warmup_init is a schedule here. torch.optim's
    Adafactor, which is adafactor here, bounds the squares where this adds to them, and the learning
    rate by 1/√step.
    """
    square = g * g + eps1
    if exp_avg_sq_row is None:
        exp_avg_sq = lerp(exp_avg_sq, square, step**decay_rate)
        update = g * rsqrt(exp_avg_sq)
    else:
        exp_avg_sq_row = lerp(exp_avg_sq_row, mean(square, -1), step**decay_rate)
        exp_avg_sq_col = lerp(exp_avg_sq_col, mean(square, -2), step**decay_rate)
        # A root each: where row and column have no gradient, their product underflows.
        update = g * rsqrt(exp_avg_sq_row / mean(exp_avg_sq_row, -2)) * rsqrt(exp_avg_sq_col)
    relative = where(lr > 0, minimum(1e-2, 1 / sqrt(step)), 0)
    rate = (relative if relative_step else lr) * (maximum(eps2, rms(w)) if scale_parameter else 1)
    update = rate / maximum(1, rms(update) / clip_threshold) * update
    if exp_avg is not None:
        update = exp_avg = lerp(exp_avg, update, 1 - beta1)
    w = w * (1 - rate * weight_decay) if nonzero(weight_decay) else w
    return new_weight(w - update), exp_avg_sq_row, exp_avg_sq_col, exp_avg_sq, exp_avg
