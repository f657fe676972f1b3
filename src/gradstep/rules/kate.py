"""KATE."""

from __future__ import annotations

from gradstep.rule import NonNegative, Result, Value, nonzero, rule, sqrt


@rule(
    lr=1e-5,
    class_name="Kate",
    against_codes={"int4": "16 numbers are too few for it, and it was seen not to learn"},
)
def kate(
    g: Value,
    sum_b: Value,
    sum_m: Value,
    *,
    w: Value,
    eta: NonNegative = 1e-3,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """KATE: Adagrad without its root, so that the scale of a weight's gradients does not matter.

    States:
        sum_b: the sum of all squared gradients.
        sum_m: the sum of the squared gradients' shares in it, and of eta of them.

    Hyperparameters:
        eta: the share of each squared gradient that is added to sum_m.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Choudhury et al. 2024, "Remove that square root: a new efficient scale-invariant version of
        AdaGrad", arXiv:2403.02648.

    Agrees with the authors' code, whose eta and eps it has. Their learning rate of 1 is for
    logistic regression; 1e-5 is ours: a first step is as long as one over the gradient.
    pytorch_optimizer adds eps to the sum of squares at each step, where it stays; its eta is called
    delta and is 0.
    """
    square = g * g
    sum_b = sum_b + square
    scale = sum_b + eps
    sum_m = sum_m + (eta * square + square / scale)
    direction = sqrt(sum_m) * g / scale
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, sum_b, sum_m
