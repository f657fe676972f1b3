"""SWATS."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Result,
    Value,
    abs,
    global_dot,
    lerp,
    rule,
    shared,
    sqrt,
    where,
)


@rule(lr=1e-3, class_name="SWATS")
def swats(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    momentum_buffer: Value,
    count: Value = shared(0.0),
    ratio_avg: Value = shared(0.0),
    sgd_ratio: Value = shared(0.0),
    *,
    lr: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-9,
    tolerance: NonNegative = 1e-6,
) -> Result:
    """SWATS: Adam, until it is known how fast SGD would go; from then on SGD.

    How fast is found from Adam's own steps: that of SGD whose part along Adam's step is Adam's step
    is ``(step · step) / (step · gradient)`` long. Once the average of this settles, SGD takes over.

    States:
        exp_avg: the moving average of the gradient; stands still once SGD has taken over.
        exp_avg_sq: the moving average of the squared gradient; as well.
        momentum_buffer: SGD's running sum of gradients; 0 before.
        count: the steps so far.
        ratio_avg: the moving average of SGD's learning rate, as a multiple of lr.
        sgd_ratio: the multiple that was found; 0 as long as Adam makes the steps.

    Hyperparameters:
        beta1: how much of the average gradient, and of SGD's sum, is kept at each step.
        beta2: how much of the average squared gradient and of ratio_avg is kept at each step.
        eps: added to the denominator.
        tolerance: how near the multiple and its average must be for SGD to take over.

    Paper:
        Keskar & Socher 2017, "Improving generalization performance by switching from Adam to SGD",
        arXiv:1712.07628.

    Follows the paper: all weights together are one vector, and switch together. What it finds is
    kept as a multiple of lr, so that a schedule of lr goes on through the switch, and so is the
    tolerance: the paper's is 1e-9 for the rate itself, at lr = 1e-3. A rate below 0 is not switched
    to. pytorch_optimizer and torch_optimizer measure each layer by itself and give the rate of one
    to its whole group; the first agrees until it switches.
    """
    adam = where(sgd_ratio > 0, 0, 1)
    count = count + 1
    exp_avg = lerp(exp_avg, g, adam * (1 - beta1))
    exp_avg_sq = lerp(exp_avg_sq, g * g, adam * (1 - beta2))
    momentum_buffer = (1 - adam) * (beta1 * momentum_buffer + g)
    correction = sqrt(1 - beta2**count) / (1 - beta1**count)
    direction = correction * exp_avg / (sqrt(exp_avg_sq) + eps)
    along = global_dot(lr * direction, lr * g)
    ratio = where(along == 0, 0, global_dot(lr * direction, lr * direction) / along)
    ratio_avg = where(adam * abs(along) > 0, lerp(ratio_avg, ratio, 1 - beta2), ratio_avg)
    found = ratio_avg / (1 - beta2**count)
    settled = (adam > 0) & (along != 0) & (found > 0) & (abs(found - ratio) < tolerance)
    chosen = where(sgd_ratio > 0, (1 - beta1) * sgd_ratio * momentum_buffer, direction)
    sgd_ratio = where((count > 1) & settled, found, sgd_ratio)
    return chosen, exp_avg, exp_avg_sq, momentum_buffer, count, ratio_avg, sgd_ratio
