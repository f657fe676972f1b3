"""BCOS."""

from __future__ import annotations

from gradstep.rule import Decay, NonNegative, Result, Value, lerp, nonzero, rule, sqrt


@rule(class_name="BCOS")
def bcos(
    g: Value,
    exp_avg: Value,
    *,
    w: Value,
    beta: Decay = 0.9,
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.1,
) -> Result:
    """BCOS: a momentum over the root of its own expected square, for which no state is needed.

    That square is foretold from the last momentum and the present gradient.

    States:
        exp_avg: the moving average of the gradient.

    Hyperparameters:
        beta: how much of the average is kept at each step.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Jiang & Xiao 2025, "Stochastic approximation with block coordinate optimal stepsizes",
        arXiv:2507.08963.

    Agrees with pytorch_optimizer in its mode "c", the paper's with a conditional estimator; the
    momentum starts as 0.
    """
    kept, new = (3 - 2 * beta) * beta * beta, (1 - beta) * (1 - beta)
    square = kept * (exp_avg * exp_avg) + new * (g * g) + 2 * beta * new * (exp_avg * g)
    exp_avg = lerp(exp_avg, g, 1 - beta)
    direction = exp_avg / (sqrt(square) + eps)
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, exp_avg
