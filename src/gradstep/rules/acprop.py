"""ACProp."""

from __future__ import annotations

from gradstep.rule import Decay, NonNegative, Result, Value, lerp, nonzero, rule, sqrt, where


@rule(class_name="ACProp")
def acprop(
    g: Value,
    exp_avg: Value,
    exp_avg_var: Value,
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-16,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """ACProp: the gradient over AdaBelief's root, of the step before, so that the two do not agree.

    States:
        exp_avg: the moving average of the gradient, which only foretells the next.
        exp_avg_var: the moving average of the squared error of that.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared error is kept at each step.
        eps: keeps the division from blowing up, and is added to each squared error.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Zhuang et al. 2021, "Momentum centering and asynchronous update for adaptive gradient
        methods", arXiv:2110.05454.

    Agrees with optax: the first step is plain descent, and the error is that of the average before.
    """
    known = sqrt(exp_avg_var / where(step == 1, 1, 1 - beta2 ** (step - 1)))
    direction = g / (where(step == 1, 1, known) + eps)
    error = g - exp_avg
    exp_avg_var = beta2 * exp_avg_var + (1 - beta2) * (error * error) + eps
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, exp_avg, exp_avg_var
