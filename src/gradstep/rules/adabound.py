"""AdaBound and AdaMod: Adam with bounds on each weight's own learning rate."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Result,
    Value,
    clamp,
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


@rule(lr=1e-3, class_name="AdaBound")
def adabound(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    max_exp_avg_sq: Value = zeros(when="amsbound"),
    lr_max: Value = number(0.0),
    *,
    w: Value,
    step: Value,
    lr: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    final_lr: NonNegative = 0.1,
    gamma: NonNegative = 1e-3,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    amsbound: bool = False,
) -> Result:
    """AdaBound: Adam at first, and by and by gradient descent with momentum.

    Each weight's own learning rate is kept between two bounds that close in on final_lr.

    States:
        exp_avg: the moving average of the gradient.
        exp_avg_sq: the moving average of the squared gradient.
        max_exp_avg_sq: the largest exp_avg_sq so far.
        lr_max: the largest learning rate so far.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        final_lr: the learning rate that all weights have in the end.
        gamma: how soon the bounds close in.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: adds this share of the weight to its gradient (an L2 penalty).
        amsbound: divide by the largest average squared gradient so far, as AMSGrad does.

    Paper:
        Luo, Xiong, Liu & Sun 2019, "Adaptive gradient methods with dynamic bound of learning rate",
        arXiv:1902.09843.

    Agrees with the authors' adabound and torch-optimizer for a learning rate that never rises. As
    there final_lr falls with a schedule: by lr / lr_max, where theirs divides by the learning rate
    that the optimizer was made with. pytorch_optimizer decays decoupled.
    """
    if nonzero(weight_decay):
        g = g + weight_decay * w
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
    if max_exp_avg_sq is not None:
        max_exp_avg_sq = maximum(max_exp_avg_sq, exp_avg_sq)
    largest = exp_avg_sq if max_exp_avg_sq is None else max_exp_avg_sq
    lr_max = maximum(lr_max, stored(lr))
    final = final_lr * where(lr_max > 0, stored(lr) / lr_max, 0.0)
    low, high = final * (1 - 1 / (gamma * step + 1)), final * (1 + 1 / (gamma * step))
    size = lr * sqrt(1 - beta2**step) / (1 - beta1**step)
    rate = clamp(size / (sqrt(largest) + eps), low, where(lr_max > 0, high, 0.0))
    return new_weight(w - rate * exp_avg), exp_avg, exp_avg_sq, max_exp_avg_sq, lr_max


@rule(lr=1e-3, class_name="AdaMod")
def adamod(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    exp_avg_lr: Value,
    *,
    w: Value,
    step: Value,
    lr: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    beta3: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """AdaMod: Adam in which no weight's own learning rate is above its average so far.

    The average starts at zero, so that training begins with small steps, as with a warm-up.

    States:
        exp_avg: the moving average of the gradient.
        exp_avg_sq: the moving average of the squared gradient.
        exp_avg_lr: the moving average of the weight's own learning rate.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        beta3: how much of the average learning rate is kept at each step.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Ding, Ren, Luo & Sun 2019, "An adaptive and momental bound method for stochastic learning",
        arXiv:1910.12249.

    Agrees with torch-optimizer, which is the authors' code, and pytorch_optimizer, except for
    weights whose gradients were all 0 so far: here their own learning rate counts as 0, there as
    lr / eps, which is beyond float16.
    """
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
    size = lr * sqrt(1 - beta2**step) / (1 - beta1**step)
    rate = where(exp_avg_sq > 0, size / (sqrt(exp_avg_sq) + eps), 0.0)
    exp_avg_lr = lerp(exp_avg_lr, rate, 1 - beta3)
    w = w * (1 - lr * weight_decay) if nonzero(weight_decay) else w
    return new_weight(w - minimum(rate, exp_avg_lr) * exp_avg), exp_avg, exp_avg_sq, exp_avg_lr
