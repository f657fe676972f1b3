"""SPlus."""

from __future__ import annotations

from gradstep.linalg.kronecker import stacked_length
from gradstep.linalg.sign_bases import average, find, sign_in_bases
from gradstep.linalg.turns import turn_of
from gradstep.rule import (
    Decay,
    NonNegative,
    Positive,
    Result,
    Value,
    lerp,
    maximum,
    new_weight,
    place,
    rule,
    shaped,
    sign,
    size,
    where,
)


@rule(lr=0.1, class_name="SPlus")
def splus(
    g: Value,
    exp_avg: Value,
    GG: Value = shaped(stacked_length, "max_size", only="matrix"),
    Q: Value = shaped(stacked_length, "max_size", only="matrix"),
    place: Value = place(when="in_turn"),
    *,
    w: Value,
    step: Value,
    lr: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    weight_decay: NonNegative = 0.01,
    inverse_steps: Positive = 100,
    in_turn: bool = False,
    nonstandard_constant: NonNegative = 1e-3,
    max_size: Positive = 10000,
) -> Result:
    """SPlus: the sign of the average gradient, taken in the basis of Shampoo's eigenvectors.

    ``Q_L sign(Q_Lᵀ M Q_R) Q_Rᵀ``, of which all singular values are bounded as long as a basis is
    kept. The learning rate is multiplied by 2 / (rows + columns). A weight of more than two
    dimensions is a stack of matrices, its last two; a vector goes by the plain sign.

    States:
        exp_avg: the moving average M of the gradient.
        GG: the moving averages of ``G Gᵀ`` and ``Gᵀ G``, one after the other.
        Q: their eigenvectors, as columns.
        place: where the weight is among those of its group, the largest first.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the averages ``GG`` is kept at each step.
        weight_decay: shrinks the weight itself by the length of its step · weight_decay, after it.
        inverse_steps: how many steps the eigenvectors are kept for.
        in_turn: each weight's eigenvectors are found at steps of its own, and not all at one.
        nonstandard_constant: multiplies the learning rate of vectors, and of matrices with a
            dimension above max_size.
        max_size: a larger dimension has no eigenvectors and is left as it is.

    Paper:
        Frans, Levine & Abbeel 2025, "A stable whitening optimizer for efficient neural network
        training", arXiv:2506.07254.

    Agrees with pytorch_optimizer's SPlus on gradients of full rank; it gives weights of more than
    two dimensions the plain sign. Where a gradient has nothing, its signs are those of rounding;
    here they are 0, and the basis hangs on the gradients alone. The average of the weights that the
    paper evaluates (0.999) is that of EMA, around any optimizer.
    """
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    direction, scale = sign(exp_avg), nonstandard_constant
    if Q is not None:
        direction = where(step > 1, sign_in_bases(exp_avg, Q, max_size), direction)
        GG = average(g, GG, beta2, max_size)
        Q = find(g, GG, Q, step, inverse_steps, turn_of(place), max_size)
        rows, columns = size(w, -2), size(w, -1)
        scale = where(maximum(rows, columns) > max_size, scale, 2 / (rows + columns))
    after = (w - lr * scale * direction) * (1 - lr * scale * weight_decay)
    return new_weight(after), exp_avg, GG, Q, place
