"""Positive–negative momentum: PNM and AdaPNM."""

from __future__ import annotations

from typing import Annotated

from gradstep.rule import (
    Decay,
    Interval,
    NonNegative,
    Result,
    Value,
    lerp,
    maximum,
    nonzero,
    number,
    rule,
    sqrt,
    where,
    zeros,
)


@rule(class_name="PNM")
def pnm(
    g: Value,
    odd_momentum: Value,
    even_momentum: Value,
    turn: Value = number(0.0),
    *,
    w: Value,
    beta1: Decay = 0.9,
    beta2: Annotated[float, Interval(0)] = 1.0,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """PNM: two momenta, of every other gradient each; one is taken more than once, one negatively.

    That leaves the mean gradient as it is, and makes its noise larger.

    States:
        odd_momentum: the momentum of the first gradient and every other behind it.
        even_momentum: the momentum of the gradients between.
        turn: which of the two the last gradient came to: 1 for the odd one.

    Hyperparameters:
        beta1: the square of it is how much of a momentum is kept when a gradient comes to it.
        beta2: how much of the one is taken away, and added of the other.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Xie, Yuan, Zhu & Sugiyama 2021, "Positive-negative momentum: manipulating stochastic
        gradient noise to improve generalization", arXiv:2103.17182.

    Agrees with pytorch_optimizer.
    """
    turn, share = 1 - turn, 1 - beta1 * beta1
    odd_momentum = where(turn > 0, lerp(odd_momentum, g, share), odd_momentum)
    even_momentum = where(turn > 0, even_momentum, lerp(even_momentum, g, share))
    new = where(turn > 0, odd_momentum, even_momentum)
    older = where(turn > 0, even_momentum, odd_momentum)
    noise = sqrt((1 + beta2) * (1 + beta2) + beta2 * beta2)
    direction = ((1 + beta2) * new - beta2 * older) / noise
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, odd_momentum, even_momentum, turn


@rule(class_name="AdaPNM")
def adapnm(
    g: Value,
    odd_momentum: Value,
    even_momentum: Value,
    exp_avg_sq: Value,
    max_exp_avg_sq: Value = zeros(when="amsgrad"),
    turn: Value = number(0.0),
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    beta3: Annotated[float, Interval(0)] = 1.0,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    amsgrad: bool = True,
) -> Result:
    """AdaPNM: positive–negative momentum over Adam's root of the average square.

    States:
        odd_momentum: the momentum of the first gradient and every other behind it.
        even_momentum: the momentum of the gradients between.
        exp_avg_sq: the moving average of the squared gradient.
        max_exp_avg_sq: the largest of those so far, kept only with amsgrad.
        turn: which of the two the last gradient came to: 1 for the odd one.

    Hyperparameters:
        beta1: the square of it is how much of a momentum is kept when a gradient comes to it.
        beta2: how much of the average squared gradient is kept at each step.
        beta3: how much of the one momentum is taken away, and added of the other.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).
        amsgrad: divide by the largest average square so far.

    Paper:
        Xie, Yuan, Zhu & Sugiyama 2021, "Positive-negative momentum: manipulating stochastic
        gradient noise to improve generalization", arXiv:2103.17182.

    As the paper has it; pytorch_optimizer adds 1e-15 under the root, and eps before the root's bias
    is corrected.
    """
    turn, share = 1 - turn, 1 - beta1 * beta1
    odd_momentum = where(turn > 0, lerp(odd_momentum, g, share), odd_momentum)
    even_momentum = where(turn > 0, even_momentum, lerp(even_momentum, g, share))
    new = where(turn > 0, odd_momentum, even_momentum)
    older = where(turn > 0, even_momentum, odd_momentum)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
    largest = exp_avg_sq
    if max_exp_avg_sq is not None:
        largest = max_exp_avg_sq = maximum(max_exp_avg_sq, exp_avg_sq)
    noise = sqrt((1 + beta3) * (1 + beta3) + beta3 * beta3) * (1 - beta1**step)
    root = sqrt(largest) / sqrt(1 - beta2**step) + eps
    direction = ((1 + beta3) * new - beta3 * older) / noise / root
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, odd_momentum, even_momentum, exp_avg_sq, max_exp_avg_sq, turn
