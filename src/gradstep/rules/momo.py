"""MoMo."""

from __future__ import annotations

from typing import Any

from gradstep.rule import (
    Decay,
    NonNegative,
    global_dot,
    lerp,
    maximum,
    minimum,
    new_weight,
    nonzero,
    rule,
    shared,
    where,
)


@rule(lr=1.0, class_name="Momo")
def momo(
    g: Any,
    grad_avg: Any,
    loss_avg: Any = shared(0.0),
    grad_dot_w: Any = shared(0.0),
    steps: Any = shared(0.0),
    *,
    w: Any,
    lr: Any,
    loss: Any,
    beta: Decay = 0.9,
    weight_decay: NonNegative = 0.0,
    lb: float = 0.0,
) -> Any:
    """MoMo: SGD with momentum, whose step goes just as far as to the lowest loss, but lr at most.

    A plane through the averages of loss and gradient is followed down to lb. Needs the loss of each
    step: call step(lambda: loss). In several processes give each the mean of their losses.

    States:
        grad_avg: the moving average of the gradient.
        loss_avg: the moving average of the loss.
        grad_dot_w: the moving average of the product of all gradients and weights.
        steps: how many steps were made.

    Hyperparameters:
        beta: how much of the averages is kept at each step; the first values are taken whole.
        weight_decay: divides the weight by 1 + lr · weight_decay after the step.
        lb: a bound that the loss does not go below; 0 is often a good one.

    Paper:
        Schaipp, Ohana, Eickenberg, Defazio & Gower 2023, "MoMo: momentum models for adaptive
        learning rates", arXiv:2305.07583.

    Agrees with momo-opt without its correction of the bias, which is off by default, and without
    its estimate of lb. optax does not divide the step by 1 + lr · weight_decay.
    """
    share = where(steps > 0, 1 - beta, 1)
    loss_avg = lerp(loss_avg, loss, share)
    grad_dot_w = lerp(grad_dot_w, global_dot(g, w), share)
    grad_avg = lerp(grad_avg, g, share)
    square, shrink = global_dot(grad_avg, grad_avg), 1 + lr * weight_decay
    height = shrink * (loss_avg - lb - grad_dot_w) + global_dot(grad_avg, w)
    w = w - where(square > 0, minimum(lr, maximum(height, 0) / square), 0) * grad_avg
    w = w / shrink if nonzero(weight_decay) else w
    return new_weight(w), grad_avg, loss_avg, grad_dot_w, steps + 1
