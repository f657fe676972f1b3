"""Amos."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Result,
    Value,
    lerp,
    maximum,
    new_weight,
    nonzero,
    number,
    rule,
    size,
    sqrt,
    sum,
    zeros,
)


@rule(lr=1e-3, class_name="Amos")
def amos(
    g: Value,
    exp_avg: Value = zeros(when="momentum"),
    exp_avg_sq: Value = number(0.0),
    decay: Value = number(0.0),
    *,
    w: Value,
    step: Value,
    lr: Value,
    is_matrix: bool,
    beta: Decay = 0.999,
    momentum: Decay = 0.0,
    scale: float | None = None,
    c_coef: NonNegative = 0.25,
    d_coef: NonNegative = 0.25,
    eps: NonNegative = 1e-18,
) -> Result:
    """Amos: steps and weight decay that fall by themselves, by the scale that weights will have.

    The second moment is one number for each layer. Weight decay and learning rate need no schedule
    and no tuning beyond lr.

    States:
        exp_avg: the moving average of the step.
        exp_avg_sq: the moving average of the layer's mean squared gradient.
        decay: how much has been decayed so far, from which the factors of the next step follow.

    Hyperparameters:
        beta: how much of exp_avg_sq is kept at each step.
        momentum: how much of the average step is kept; 0 for no average.
        scale: the size that the weights of the layer will have; None for 0.5 in vectors, and for
            √(2/columns) otherwise.
        c_coef: how fast the weight decay falls.
        d_coef: how fast the steps fall.
        eps: keeps the divisions from blowing up where gradients are tiny.

    Paper:
        Tian & Parikh 2022, "Amos: an Adam-style optimizer with adaptive weight decay towards
        model-oriented scale", arXiv:2210.11693.

    Agrees with pytorch_optimizer for weights of up to two dimensions; beyond, it has √(1/inputs)
    for the scale. The paper gives each kind of layer a scale of its own: give parameter groups
    theirs. The extra L2 term is left out.
    """
    mean_sq = sum(g * g) / maximum(1, size(w))  # which is 0 of no elements
    exp_avg_sq = lerp(exp_avg_sq, mean_sq, 1 - beta)
    inverse = (1 - beta**step) / (exp_avg_sq + eps)
    if scale is None:
        scale = sqrt(2 / size(w, -1)) if is_matrix else 0.5
    gamma = lr * lr * inverse * mean_sq / sqrt(1 + c_coef * sqrt(lr) * decay)
    moved = gamma / 2 * w + lr * scale * sqrt(inverse) * g
    moved = moved / (1 + d_coef * sqrt(lr * scale) * decay)
    decay = decay * (1 + gamma) + gamma
    if nonzero(momentum):
        moved = exp_avg = lerp(exp_avg, moved, 1 - momentum)
    return new_weight(w - moved), exp_avg, exp_avg_sq, decay
