"""M-SVAG."""

from __future__ import annotations

from gradstep.rule import Decay, Result, Value, clamp, lerp, minimum, rule, where


@rule(lr=0.01, class_name="MSVAG")
def msvag(g: Value, exp_avg: Value, exp_avg_sq: Value, *, step: Value, beta: Decay = 0.9) -> Result:
    """M-SVAG: momentum, each element of which is damped by how uncertain it is.

    States:
        exp_avg: the moving average of the gradient.
        exp_avg_sq: the moving average of the squared gradient.

    Hyperparameters:
        beta: how much of either average is kept at each step.

    Paper:
        Balles & Hennig 2017, "Dissecting Adam: the sign, magnitude and variance of stochastic
        gradients", arXiv:1705.07774.

    Agrees with pytorch_optimizer: rho is at most 0.9999, and an element that never moved stays.
    """
    kept = beta**step
    exp_avg = lerp(exp_avg, g, 1 - beta)
    exp_avg_sq = beta * exp_avg_sq + (1 - beta) * (g * g)
    m, v = exp_avg / (1 - kept), exp_avg_sq / (1 - kept)
    rho = (1 - kept * kept) * (1 - beta) * (1 - beta)
    rho = minimum(rho / ((1 - beta * beta) * (1 - kept) * (1 - kept)), 0.9999)
    square = m * m
    total = square + rho / (1 - rho) * (v - square)
    share = where(total == 0, 0, square / where(total == 0, 1, total))
    return clamp(share, 0, 1) * m, exp_avg, exp_avg_sq
