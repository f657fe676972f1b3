"""Last stages that move the weight beyond the step that the rules before them make."""

from __future__ import annotations

from typing import Annotated

from gradstep.rule import (
    Decay,
    Interval,
    NonNegative,
    Result,
    Value,
    copy_of_weight,
    lerp,
    maximum,
    new_weight,
    number,
    rule,
    stored,
    where,
    zeros,
)


@rule
def ema_nesterov(
    g: Value,
    update_avg: Value,
    last_lookahead: Value = number(0.0),
    *,
    w: Value,
    next_w: Value,
    update_beta: Decay = 0.99,
    lookahead_rate: NonNegative = 0.3,
) -> Result:
    """EMA-Nesterov: gradients are taken a little further along the average of past updates.

    The weight that is trained stands ahead; the one to be evaluated and kept is
    w − last_lookahead · update_avg. Records let lookahead_rate be 0 at the start and at the end of
    a training, and follow the learning rate between: as a schedule.

    States:
        update_avg: the moving average of how the weight itself moves.
        last_lookahead: how many times that average the weight stands ahead.

    Hyperparameters:
        update_beta: how much of the average is kept at each step.
        lookahead_rate: how many times the average the weight stands ahead after this step.

    Paper:
        Yau et al. 2026, arXiv:2605.25395 (EMA-Nesterov).

    Agrees with the algorithm that its authors give: a base step from the point ahead, and the
    average of the way from where the last one ended to where this one does.
    """
    came_from = w - last_lookahead * update_avg
    update_avg = lerp(update_avg, next_w - came_from, 1 - update_beta)
    ahead = maximum(lookahead_rate, 0)
    return new_weight(next_w + ahead * update_avg), update_avg, ahead


@rule
def outer_nesterov(
    g: Value,
    outer_weight: Value = copy_of_weight(),
    outer_velocity: Value = zeros(),
    since_outer: Value = number(0.0),
    *,
    next_w: Value,
    outer_steps: Annotated[float, Interval(1)] = 10,
    outer_lr: NonNegative = 0.7,
    outer_momentum: Decay = 0.9,
) -> Result:
    """Outer Nesterov: every few steps, the way since the last time is the gradient of another step.

    DiLoCo's outer optimizer; its workers would take the mean of their ways first.

    States:
        outer_weight: the weight behind the last outer step.
        outer_velocity: the running sum of the ways, as SGD with momentum keeps it.
        since_outer: how many steps have been made from there.

    Hyperparameters:
        outer_steps: how many steps are made before an outer one.
        outer_lr: the learning rate of the outer step; 1, without momentum, leaves all as it is.
        outer_momentum: how much of the running sum is kept at each outer step.

    Paper:
        Douillard et al. 2023, "DiLoCo: distributed low-communication training of language models",
        arXiv:2311.08105.

    Agrees with torch.optim.SGD(nesterov=True) on the ways.
    """
    since_outer = where(since_outer + 1 >= outer_steps, 0, since_outer + 1)
    way = outer_weight - next_w
    velocity = outer_momentum * outer_velocity + way
    moved = outer_weight - outer_lr * (way + outer_momentum * velocity)
    velocity = where(since_outer == 0, velocity, outer_velocity)
    outer_weight = where(since_outer == 0, moved, outer_weight)
    return new_weight(where(since_outer == 0, moved, next_w)), outer_weight, velocity, since_outer


@rule
def schedule_free(
    g: Value,
    z: Value = copy_of_weight(),
    weight_sum: Value = number(0.0),
    lr_max: Value = number(0.0),
    *,
    w: Value,
    next_w: Value,
    step: Value,
    lr: Value,
    momentum: Decay = 0.9,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
) -> Result:
    """Schedule-Free around any rule: its steps move z, and gradients are taken near z's average.

    The rule before it should have no momentum of its own. For evaluation the weight has to be moved
    onto the average: gradstep.AveragedWeights does it.

    States:
        z: the point that the rule's steps have come to.
        weight_sum: the sum of the shares that the points so far have in the average.
        lr_max: the largest learning rate so far.

    Hyperparameters:
        momentum: how near to the average, and how far from z, gradients are taken.
        r: a point's share in the average grows with its step to this power.
        weight_lr_power: and with the largest learning rate so far to this power.

    Paper:
        Defazio et al. 2024, "The road less scheduled", arXiv:2405.15682.

    Agrees with the authors' ScheduleFreeWrapper, whose momentum is 0.9, where decay is taken at the
    weight, and with optax's schedule_free; behind sgd and rmsprop-like rules it is what the classes
    SGDScheduleFree and AdamWScheduleFree are.
    """
    moved = next_w - w
    lr_max = stored(maximum(lr_max, lr))
    share = step**r * lr_max**weight_lr_power
    weight_sum = stored(weight_sum + share)
    share = where(weight_sum > 0, share / weight_sum, 0.0)
    y = lerp(w, z, share) + (1 - momentum * (1 - share)) * moved
    return new_weight(y), z + moved, weight_sum, lr_max
