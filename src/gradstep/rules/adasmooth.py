"""AdaSmooth."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Positive,
    Result,
    Value,
    abs,
    lerp,
    nonzero,
    rule,
    sqrt,
)


@rule(
    lr=1e-3,
    class_name="AdaSmooth",
    against_codes={"int4": "16 numbers are too few for it, and it was seen not to learn"},
)
def adasmooth(
    g: Value,
    s: Value,
    n: Value,
    exp_avg_sq: Value,
    *,
    w: Value,
    lr: Value,
    beta1: Decay = 0.5,
    beta2: Decay = 0.99,
    eps: Positive = 1e-6,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """AdaSmooth: RMSprop that forgets faster where a weight goes one way than where it wavers.

    How much a weight goes one way is the length of its whole move over that of all its steps.

    States:
        s: how far the weight has been moved by all steps together.
        n: the sum of the lengths of these steps.
        exp_avg_sq: the moving average of the squared gradient.

    Hyperparameters:
        beta1: how much is kept of the average where the weight goes straight on.
        beta2: how much is kept of it where the weight gets nowhere.
        eps: keeps the divisions from blowing up where gradients or steps are tiny.
        weight_decay: adds this share of the weight to its gradient (an L2 penalty).

    Paper:
        Lu 2022, "AdaSmooth: an adaptive learning rate method based on effective ratio",
        arXiv:2204.00825.

    Agrees with pytorch_optimizer, whose decay is decoupled and counts as a move of the weight. Both
    sum over all steps so far; the paper begins anew with each epoch. What is kept of the average is
    1 − (1 − β)², as in the paper.
    """
    if nonzero(weight_decay):
        g = g + weight_decay * w
    share = (beta2 - beta1) * abs(s) / (n + eps) + (1 - beta2)
    exp_avg_sq = lerp(exp_avg_sq, g * g, share * share)
    direction = g / sqrt(exp_avg_sq + eps)
    return direction, s - lr * direction, n + abs(lr * direction), exp_avg_sq
