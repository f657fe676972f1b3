"""Adadelta."""

from __future__ import annotations

from gradstep.rule import NonNegative, Result, Share, Value, nonzero, rule, sqrt


@rule
def adadelta(
    g: Value,
    square_avg: Value,
    acc_delta: Value,
    *,
    w: Value,
    step: Value,
    rho: Share = 0.9,
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """Adadelta: the gradient, scaled by the average size of past steps over that of gradients.

    States:
        square_avg: the moving average of the squared gradient.
        acc_delta: the moving average of the squared step.

    Hyperparameters:
        rho: how much of both averages is kept at each step.
        eps: starts the steps off, and keeps the division from blowing up.
        weight_decay: adds this share of the weight to its gradient (an L2 penalty).

    Paper:
        Zeiler 2012, "ADADELTA: an adaptive learning rate method", arXiv:1212.5701.

    Agrees with torch.optim.Adadelta: the paper has no learning rate, which is lr = 1. ``step`` is
    counted because torch's checkpoints hold it.
    """
    if nonzero(weight_decay):
        g = g + weight_decay * w
    square_avg = rho * square_avg + (1 - rho) * (g * g)
    direction = sqrt(acc_delta + eps) / sqrt(square_avg + eps) * g
    return direction, square_avg, rho * acc_delta + (1 - rho) * (direction * direction)
