"""Sophia."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Positive,
    Result,
    Value,
    clamp,
    lerp,
    maximum,
    nonzero,
    rule,
)


@rule(lr=1e-4, class_name="Sophia")
def sophia(
    g: Value,
    exp_avg: Value,
    hessian: Value,
    *,
    w: Value,
    beta1: Decay = 0.965,
    beta2: Decay = 0.99,
    rho: NonNegative = 0.04,
    eps: Positive = 1e-12,
    weight_decay: NonNegative = 0.1,
) -> Result:
    """Sophia: an average gradient over the curvature, and no step of a weight larger than lr.

    Every ten steps or so an estimate of the Hessian's diagonal has to be taken into the average,
    between two steps: optimizer.update_hessian(), with one of gradstep.hutchinson (Sophia-H) or
    after a backward pass from gradstep.sampled_loss (Sophia-G). A step leaves the average as it is.
    As long as there is none, every weight moves by the sign of its average gradient.

    States:
        exp_avg: the moving average of the gradient.
        hessian: the moving average of the estimates of the Hessian's diagonal.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average Hessian is kept at each estimate.
        rho: scales the Hessian: the smaller, the more weights move as far as they may.
        eps: the smallest curvature; where there is less, or it is negative, the sign counts.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Liu, Li, Hall, Liang & Ma 2023, "Sophia: a scalable stochastic second-order optimizer for
        language model pre-training", arXiv:2305.14342.

    Agrees with the paper, whose γ is rho: it has beta1 = 0.96 and takes rho = 0.01 for Sophia-H and
    0.05 for Sophia-G. The defaults are those of the authors' SophiaG, which adds 1e-15 where the
    paper has the larger of two, and scales by the batch size at each step, not at the estimate. So
    does pytorch_optimizer with lr · rho for its lr and rho for its p; optax corrects the average
    gradient for its start, and takes a new estimate in behind the step.
    """
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    direction = clamp(exp_avg / maximum(rho * hessian, eps), -1, 1)
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, exp_avg, hessian
