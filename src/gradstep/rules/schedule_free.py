"""Schedule-Free: gradient descent and AdamW with an average of the weights in place of a schedule.

The weight that is trained, and that gradients are taken at, is y. The average, to be evaluated and
kept, is x = lerp(y, z, 1 − 1/β), with β the momentum or beta1.
"""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Result,
    Value,
    copy_of_weight,
    lerp,
    maximum,
    minimum,
    new_weight,
    nonzero,
    number,
    rule,
    sqrt,
    stored,
    where,
    zeros,
)


@rule(lr=1.0, class_name="SGDScheduleFree")
def sgd_schedule_free(
    g: Value,
    z: Value = copy_of_weight(),
    weight_sum: Value = number(0.0),
    lr_max: Value = number(0.0),
    *,
    w: Value,
    step: Value,
    lr: Value,
    momentum: Decay = 0.9,
    warmup_steps: NonNegative = 0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """Schedule-Free SGD: gradients are taken between plain descent and the average of its points.

    The average does what a falling learning rate would do, and needs no last step to be known. For
    evaluation the weight has to be moved onto it: x = w + (1 − 1/momentum) · (z − w).

    States:
        z: the point that plain descent has come to.
        weight_sum: the sum of the shares that the points so far have in the average.
        lr_max: the largest learning rate so far.

    Hyperparameters:
        momentum: how near to the average, and how far from z, gradients are taken.
        warmup_steps: over how many steps the learning rate rises from 0 in a line.
        r: a point's share in the average grows with its step to this power.
        weight_lr_power: and with the largest learning rate so far to this power.
        weight_decay: adds this share of the weight to its gradient (an L2 penalty).

    Paper:
        Defazio et al. 2024, "The road less scheduled", arXiv:2405.15682.

    Agrees with the authors' schedulefree and pytorch_optimizer. Each weight has its own numbers, so
    that a weight whose first gradient comes late is no exception. optax wraps any rule so, without
    r, and its warm-up begins one step later.
    """
    if nonzero(weight_decay):
        g = g + weight_decay * w
    rate = lr * minimum(step / warmup_steps, 1)
    lr_max = stored(maximum(lr_max, rate))
    share = step**r * lr_max**weight_lr_power
    weight_sum = stored(weight_sum + share)
    share = where(weight_sum > 0, share / weight_sum, 0.0)
    y = lerp(w, z, share) - rate * (1 - momentum * (1 - share)) * g
    return new_weight(y), z - rate * g, weight_sum, lr_max


@rule(lr=2.5e-3, class_name="AdamWScheduleFree")
def adamw_schedule_free(
    g: Value,
    z: Value = copy_of_weight(),
    exp_avg_sq: Value = zeros(),
    weight_sum: Value = number(0.0),
    lr_max: Value = number(0.0),
    *,
    w: Value,
    step: Value,
    lr: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    warmup_steps: NonNegative = 0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """Schedule-Free AdamW: Adam's scale, with an average of the weights for momentum and schedule.

    For evaluation the weight has to be moved onto the average: x = w + (1 − 1/beta1) · (z − w).

    States:
        z: the point that descent without momentum has come to.
        exp_avg_sq: the moving average of the squared gradient.
        weight_sum: the sum of the shares that the points so far have in the average.
        lr_max: the largest learning rate so far.

    Hyperparameters:
        beta1: how near to the average, and how far from z, gradients are taken.
        beta2: how much of the average squared gradient is kept at each step.
        eps: keeps the division from blowing up where gradients are tiny.
        warmup_steps: over how many steps the learning rate rises from 0 in a line.
        r: a point's share in the average grows with its step to this power.
        weight_lr_power: and with the largest learning rate so far to this power.
        weight_decay: shrinks z and the weight by a share of the weight (decoupled).

    Paper:
        Defazio et al. 2024, "The road less scheduled", arXiv:2405.15682.

    Agrees with the authors' schedulefree. Each weight has its own numbers, so that a weight whose
    first gradient comes late is no exception. pytorch_optimizer adds 1e-15 under the root; optax
    wraps any rule so, without r, and its warm-up begins one step later.
    """
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
    direction = g / (sqrt(exp_avg_sq / (1 - beta2**step)) + eps)
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    rate = lr * minimum(step / warmup_steps, 1)
    lr_max = stored(maximum(lr_max, rate))
    share = step**r * lr_max**weight_lr_power
    weight_sum = stored(weight_sum + share)
    share = where(weight_sum > 0, share / weight_sum, 0.0)
    y = lerp(w, z, share) - rate * (1 - beta1 * (1 - share)) * direction
    return new_weight(y), z - rate * direction, exp_avg_sq, weight_sum, lr_max
