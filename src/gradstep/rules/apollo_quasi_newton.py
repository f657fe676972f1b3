"""Apollo, the quasi-Newton method."""

from __future__ import annotations

from typing import Annotated

from gradstep.rule import (
    Decay,
    Interval,
    NonNegative,
    Result,
    Value,
    abs,
    dot,
    lerp,
    maximum,
    nonzero,
    rule,
    sum,
)


@rule(lr=0.01, class_name="ApolloQuasiNewton")
def apollo_quasi_newton(
    g: Value,
    exp_avg_grad: Value,
    approx_hessian: Value,
    update: Value,
    *,
    w: Value,
    step: Value,
    beta: Decay = 0.9,
    rebound: Annotated[float, Interval(0)] = 0.01,
    eps: NonNegative = 1e-4,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """Apollo: divides the average gradient by a guess at the curvature along each axis.

    The guess is corrected by how the gradient changed along the last step, as quasi-Newton methods
    do. Not to be confused with APOLLO, which saves memory by random projections.

    States:
        exp_avg_grad: the moving average of the gradient, without its bias towards zero.
        approx_hessian: the curvature along each axis, as guessed so far.
        update: the direction of the step before.

    Hyperparameters:
        beta: how much of the average gradient is kept at each step, after the first ones.
        rebound: the least curvature that the gradient is divided by.
        eps: added to the norm of the last direction, times the least curvature.
        weight_decay: adds this share of the weight to its gradient (an L2 penalty).

    Paper:
        Ma 2020, "Apollo: an adaptive parameter-wise diagonal quasi-Newton method for nonconvex
        stochastic optimization", arXiv:2009.13586.

    Agrees with the authors' code, torch_optimizer and pytorch_optimizer (all with the rebound
    "constant"). The paper warms the learning rate up over the first steps, pytorch_optimizer over
    500 unless told otherwise; here a scheduler does.
    """
    if nonzero(weight_decay):
        g = g + weight_decay * w
    share = (1 - beta) / (1 - beta**step)
    change = g - exp_avg_grad
    exp_avg_grad = lerp(exp_avg_grad, g, share)
    squares = update * update
    size = sum(squares * squares) ** 0.25 + eps / rebound
    along = update / size
    wanted = -share * dot(change, along) / size - dot(approx_hessian, along * along)
    approx_hessian = approx_hessian + wanted * (along * along)
    update = exp_avg_grad / maximum(abs(approx_hessian), rebound)
    return update, exp_avg_grad, approx_hessian, update
