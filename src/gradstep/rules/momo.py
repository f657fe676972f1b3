"""MoMo and MoMo-Adam."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Positive,
    Result,
    Value,
    global_dot,
    lerp,
    maximum,
    minimum,
    new_weight,
    nonzero,
    rule,
    shared,
    sqrt,
    where,
    zeros,
)


@rule(lr=1.0, class_name="Momo")
def momo(
    g: Value,
    grad_avg: Value,
    loss_avg: Value = shared(0.0),
    grad_dot_w: Value = shared(0.0),
    steps: Value = shared(0.0),
    *,
    w: Value,
    lr: Value,
    loss: Value,
    beta: Decay = 0.9,
    weight_decay: NonNegative = 0.0,
    lb: float = 0.0,
) -> Result:
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


@rule(lr=0.01, class_name="MomoAdam")
def momo_adam(
    g: Value,
    grad_avg: Value = zeros(),
    grad_avg_sq: Value = zeros(),
    loss_avg: Value = shared(0.0),
    grad_dot_w: Value = shared(0.0),
    steps: Value = shared(0.0),
    *,
    w: Value,
    step: Value,
    lr: Value,
    loss: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.0,
    lb: float = 0.0,
) -> Result:
    """MoMo-Adam: Adam whose step goes just as far as to the lowest loss, but lr at most.

    A plane through the averages of loss and gradient is followed down to lb, along Adam's scale.
    Needs the loss of each step: call step(lambda: loss). In several processes give each the mean
    of their losses.

    States:
        grad_avg: the moving average of the gradient.
        grad_avg_sq: the moving average of the squared gradient.
        loss_avg: the moving average of the loss.
        grad_dot_w: the moving average of the product of all gradients and weights.
        steps: how many steps were made.

    Hyperparameters:
        beta1: how much of the averages of gradient and loss is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: divides the weight by 1 + lr · weight_decay after the step.
        lb: a bound that the loss does not go below; 0 is often a good one.

    Paper:
        Schaipp, Ohana, Eickenberg, Defazio & Gower 2023, "MoMo: momentum models for adaptive
        learning rates", arXiv:2305.07583.

    Agrees with momo-opt without its estimate of lb, which is off by default. optax does not divide
    the step by 1 + lr · weight_decay.
    """
    steps, shrink = steps + 1, 1 + lr * weight_decay
    correction = 1 - beta1**steps
    loss_avg = lerp(loss_avg, loss, 1 - beta1)
    grad_dot_w = lerp(grad_dot_w, global_dot(g, w), 1 - beta1)
    grad_avg = lerp(grad_avg, g, 1 - beta1)
    grad_avg_sq = beta2 * grad_avg_sq + (1 - beta2) * (g * g)
    update = grad_avg / (sqrt(grad_avg_sq) / sqrt(1 - beta2**step) + eps)
    square = global_dot(grad_avg, update)
    height = shrink * (loss_avg - correction * lb - grad_dot_w) + global_dot(grad_avg, w)
    w = w - where(square > 0, minimum(lr / correction, maximum(height, 0) / square), 0) * update
    w = w / shrink if nonzero(weight_decay) else w
    return new_weight(w), grad_avg, grad_avg_sq, loss_avg, grad_dot_w, steps
