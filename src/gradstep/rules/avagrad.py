"""AvaGrad."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Positive,
    Result,
    Value,
    global_sum,
    lerp,
    nonzero,
    rule,
    shared,
    sqrt,
    where,
)


@rule(lr=0.1, class_name="AvaGrad")
def avagrad(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    gamma: Value = shared(0.0),
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: Positive = 0.1,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """AvaGrad: Adam whose rates of all weights together have one size, whatever eps is.

    So a learning rate keeps its meaning when eps goes from Adam's to SGD's. The second moment is
    that before the gradient, so that a gradient does not weigh itself; the first step makes none.

    States:
        exp_avg: the moving average of the gradient.
        exp_avg_sq: the moving average of the squared gradient.
        gamma: 1 / the root of the mean square of all weights' rates, for the next step.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        eps: how far the rule is from Adam: a large one makes it SGD.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Savarese, McAllester, Babu & Maire 2019, "Domain-independent dominance of adaptive
        methods", arXiv:1912.01823.

    Agrees with the authors' code (AvaGradW) and pytorch_optimizer. There the size of all rates is
    that of the step before; the paper's is of the same step.
    """
    before = step - 1
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    root = sqrt(exp_avg_sq)
    scale = where(before > 0, gamma / (1 - beta1**step), 0.0)
    correction = sqrt(where(before > 0, 1 - beta2**before, 1.0))
    direction = scale * (exp_avg / (root / correction + eps))
    width = root / sqrt(1 - beta2**step) + eps
    squares, count = global_sum(1 / (width * width)), global_sum(where(width > 0, 1, 0))
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, exp_avg, lerp(exp_avg_sq, g * g, 1 - beta2), 1 / sqrt(squares / count)
