"""MADGRAD."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Result,
    Value,
    cbrt,
    copy_of_weight,
    lerp,
    new_weight,
    nonzero,
    rule,
    sqrt,
    where,
)


@rule(lr=1e-2, class_name="MADGRAD")
def madgrad(
    g: Value,
    grad_sum_sq: Value,
    s: Value,
    x0: Value = copy_of_weight(),
    *,
    w: Value,
    step: Value,
    lr: Value,
    momentum: Decay = 0.9,
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """MADGRAD: one long step from the starting weight, along the sum of all gradients.

    Later gradients count more, by the root of their step; the sum is divided by the cube root of
    the squares' sum, and the weight is an average of the points that this gives.

    States:
        grad_sum_sq: the weighted sum of the squared gradients.
        s: the weighted sum of the gradients.
        x0: the weight at the start.

    Hyperparameters:
        momentum: how much of the weight is kept at each step, in its average.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: adds this share of the weight to its gradient (an L2 penalty).

    Paper:
        Defazio & Jelassi 2021, "Adaptivity without compromise: a momentumized, adaptive, dual
        averaged gradient method for stochastic optimization", arXiv:2101.11075.

    Agrees with the authors' madgrad, timm, optax, pytorch_optimizer and torch-optimizer: as in all
    of them, a learning rate other than 0 has eps added. They may decay decoupled too, each in its
    own way. Without momentum the authors keep no x0 but work it out anew.
    """
    if nonzero(weight_decay):
        g = g + weight_decay * w
    rate = where(lr > 0, lr + eps, 0.0) * sqrt(step)
    s = s + rate * g
    grad_sum_sq = grad_sum_sq + rate * (g * g)
    z = x0 - s / (cbrt(grad_sum_sq) + eps)
    return new_weight(lerp(w, z, 1 - momentum)), grad_sum_sq, s, x0
