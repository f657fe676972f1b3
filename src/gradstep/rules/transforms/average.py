"""Stages behind the step: what is made of the weight that a step has reached."""

from __future__ import annotations

from typing import Annotated

from gradstep.rule import (
    Interval,
    Result,
    Share,
    Value,
    clamp,
    copy_of_weight,
    lerp,
    new_weight,
    number,
    rule,
    where,
)


@rule
def average_weights(
    g: Value, average: Value = copy_of_weight(), *, next_w: Value, average_decay: Share = 0.999
) -> Result:
    """EMA of the weights: a moving average of them, beside the training, which it leaves alone.

    Stands last. gradstep.AveragedWeights puts the averages in the place of the weights, and back.

    States:
        average: the moving average of the weight, which starts as the weight.

    Hyperparameters:
        average_decay: how much of the average is kept at each step.

    Paper:
        Polyak & Juditsky 1992, "Acceleration of stochastic approximation by averaging".

    Agrees with optax's incremental_update with a step size of 1 − average_decay, and with torch's
    get_ema_multi_avg_fn.
    """
    return g, lerp(average, next_w, 1 - average_decay)


@rule
def lookahead(
    g: Value,
    slow: Value = copy_of_weight(),
    since: Value = number(0.0),
    *,
    next_w: Value,
    la_steps: Annotated[float, Interval(1)] = 5,
    la_alpha: Share = 0.8,
) -> Result:
    """Lookahead: every few steps the weight goes back, part of the way to where it was before.

    Stands last, behind the rule that makes the steps between.

    States:
        slow: the weight at the last time that it went back.
        since: how many steps have been made from there.

    Hyperparameters:
        la_steps: how many steps are made before the weight goes back.
        la_alpha: how much of the way is kept.

    Paper:
        Zhang, Lucas, Hinton & Ba 2019, "Lookahead optimizer: k steps forward, 1 step back",
        arXiv:1907.08610.

    Agrees with the authors' code, whose defaults these are, and leaves the inner rule's states as
    they are (its pullback_momentum="none").
    """
    since = where(since + 1 >= la_steps, 0, since + 1)
    slow = where(since == 0, lerp(slow, next_w, la_alpha), slow)
    return new_weight(where(since == 0, slow, next_w)), slow, since


@rule
def keep_in_range(
    g: Value, *, next_w: Value, lr: Value, low: float = -1.0, high: float = 1.0
) -> Result:
    """Keeps the weight itself between two bounds, after each step.

    Stands last.

    Hyperparameters:
        low: the smallest value that a weight may have.
        high: the largest value that a weight may have.

    Paper:
        Arjovsky, Chintala & Bottou 2017, "Wasserstein GAN", arXiv:1701.07875.

    Agrees with optax's keep_params_nonnegative for low=0 and high=inf. A step with a learning rate
    of 0 changes nothing.
    """
    return new_weight(where(lr == 0, next_w, clamp(next_w, low, high)))
