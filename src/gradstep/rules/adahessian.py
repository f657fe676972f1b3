"""AdaHessian."""

from __future__ import annotations

from typing import Annotated

from gradstep.rule import (
    Decay,
    Interval,
    NonNegative,
    Result,
    Value,
    full,
    lerp,
    nonzero,
    pow,
    rule,
)


@rule(lr=0.1, class_name="AdaHessian")
def adahessian(
    g: Value,
    exp_avg: Value,
    exp_hessian_diag_sq: Value,
    hessian: Value = full(1.0),
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    hessian_power: Annotated[float, Interval(0, 1, closed=True)] = 1.0,
    hessian_decay: Decay = 0.0,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """AdaHessian: Adam with the diagonal of the Hessian in the place of the gradient's square.

    The optimizer takes in an estimate where it is given one, mostly before each step; between them
    the last one counts again.

    States:
        exp_avg: the moving average of the gradient.
        exp_hessian_diag_sq: the moving average of the squared diagonal of the Hessian.
        hessian: the last estimate of the diagonal, which no step changes; 1 before the first.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared diagonal is kept at each step.
        eps: keeps the division from blowing up where the curvature is tiny.
        hessian_power: of the root of the average square: 1 as Newton's, 0 for none.
        hessian_decay: how much of the estimates before is kept at a new one.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Yao et al. 2020, "ADAHESSIAN: an adaptive second order optimizer for machine learning",
        arXiv:2006.00719.

    Agrees with timm and the authors' code given the same estimates, from gradstep.hutchinson.
    The paper takes means of them over the kernels of convolutions, which timm leaves out by default
    and this has not: estimates may be given as means.
    """
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    exp_hessian_diag_sq = lerp(exp_hessian_diag_sq, hessian * hessian, 1 - beta2)
    root = pow(exp_hessian_diag_sq / (1 - beta2**step), hessian_power / 2)
    direction = exp_avg / (1 - beta1**step) / (root + eps)
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, exp_avg, exp_hessian_diag_sq, hessian
