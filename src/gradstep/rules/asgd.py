"""ASGD: averaged stochastic gradient descent."""

from __future__ import annotations

from gradstep.rule import (
    NonNegative,
    Result,
    Value,
    maximum,
    new_weight,
    nonzero,
    number,
    rule,
    where,
)


@rule
def asgd(
    g: Value,
    ax: Value,
    eta: Value = number("lr"),
    mu: Value = number(1.0),
    *,
    w: Value,
    step: Value,
    lr: Value,
    lambd: NonNegative = 1e-4,
    alpha: NonNegative = 0.75,
    t0: float = 1e6,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """ASGD: plain descent with a falling learning rate, and an average of the weights beside it.

    The average is for use after training; the weights themselves do not see it.

    States:
        ax: the average of the weights since step t0; before that the weight itself.
        eta: the learning rate of the next step.
        mu: the share of the next weight in the average.

    Hyperparameters:
        lambd: how fast the learning rate falls, and how much the weight decays.
        alpha: the power by which the learning rate falls.
        t0: the step at which averaging begins.
        weight_decay: adds this share of the weight to its gradient (an L2 penalty).

    Paper:
        Polyak & Juditsky 1992, "Acceleration of stochastic approximation by averaging".
        Bottou 2010, "Large-scale machine learning with stochastic gradient descent" (the schedule).

    Agrees with torch.optim.ASGD.
    """
    if nonzero(weight_decay):
        g = g + weight_decay * w
    w = w * (1 - lambd * eta) - eta * g
    ax = where(mu == 1, w, ax + mu * (w - ax))
    eta = lr / (1 + lambd * lr * step) ** alpha
    mu = 1 / maximum(1, step - t0)
    return new_weight(w), ax, eta, mu
