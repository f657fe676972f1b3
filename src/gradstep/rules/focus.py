"""FOCUS."""

from __future__ import annotations

from gradstep.rule import Decay, NonNegative, Result, Value, lerp, new_weight, rule, sign


@rule(lr=0.01, class_name="FOCUS")
def focus(
    g: Value,
    exp_avg: Value,
    weight_avg: Value,
    *,
    w: Value,
    step: Value,
    lr: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.99,
    gamma: NonNegative = 0.1,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """FOCUS: Signum that is also drawn to the average of the weights so far.

    States:
        exp_avg: the moving average of the gradient, whose sign counts.
        weight_avg: the moving average of the weight.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average weight is kept at each step.
        gamma: how strong it is drawn, beside the sign of the gradient.
        weight_decay: shrinks the weight by lr · weight_decay times the average (decoupled).

    Paper:
        Liu et al. 2025, "FOCUS: first order concentrated updating scheme", arXiv:2501.12243.

    Agrees with pytorch_optimizer.
    """
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    weight_avg = lerp(weight_avg, w, 1 - beta2)
    centre = weight_avg / (1 - beta2**step)
    w = w - lr * weight_decay * centre
    w = w - lr * (sign(exp_avg) + gamma * sign(w - centre))
    return new_weight(w), exp_avg, weight_avg
