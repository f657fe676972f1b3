"""Adam-mini."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Result,
    Value,
    lerp,
    maximum,
    mean,
    nonzero,
    number,
    per_row,
    rule,
    size,
    sqrt,
    sum,
)


@rule(lr=1e-3, class_name="AdamMini")
def adam_mini(
    g: Value,
    exp_avg: Value,
    row_exp_avg_sq: Value = per_row(when="by_rows"),
    exp_avg_sq: Value = number(0.0),
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    by_rows: bool = True,
) -> Result:
    """Adam-mini: AdamW with one second moment for each row of a matrix, which halves the memory.

    A row of a linear layer is what one of its neurons takes in. Weights without rows have one
    second moment as a whole.

    States:
        exp_avg: the moving average of the gradient.
        row_exp_avg_sq: the moving average of each row's mean squared gradient.
        exp_avg_sq: the same of the whole weight, where rows are not kept apart; 0 otherwise.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).
        by_rows: one second moment a row; if not, one for the whole weight, whatever its dimensions.

    Paper:
        Zhang et al. 2024, "Adam-mini: use fewer learning rates to gain more", arXiv:2406.16793.

    Agrees with the authors' adam-mini for embeddings, output and linear layers (by_rows=True) and
    for normalisation layers. Theirs tells layers apart by their names: queries and keys share one
    second moment for each attention head, and biases keep Adam's; for those, give parameter groups
    other rules. pytorch_optimizer has one second moment a matrix, as here with by_rows=False.
    Beyond two dimensions a row lies along the last one.
    """
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    if row_exp_avg_sq is not None:
        second = row_exp_avg_sq = lerp(row_exp_avg_sq, mean(g * g, -1), 1 - beta2)
    else:
        mean_sq = sum(g * g) / maximum(1, size(w))  # which is 0 of no elements
        second = exp_avg_sq = lerp(exp_avg_sq, mean_sq, 1 - beta2)
    correction1, correction2 = 1 - beta1**step, sqrt(1 - beta2**step)
    direction = correction2 / correction1 * (exp_avg / (sqrt(second) + eps * correction2))
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, exp_avg, row_exp_avg_sq, exp_avg_sq
