"""FAdam."""

from __future__ import annotations

from typing import Annotated

from gradstep.rule import (
    Decay,
    Interval,
    NonNegative,
    Positive,
    Result,
    Value,
    lerp,
    maximum,
    nonzero,
    pow,
    rms,
    rule,
    where,
)


@rule(class_name="FAdam")
def fadam(
    g: Value,
    momentum: Value,
    fim: Value,
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    clip: Positive = 1.0,
    p: Annotated[float, Interval(0)] = 0.5,
    eps: NonNegative = 1e-8,
    eps2: NonNegative = 0.01,
    weight_decay: NonNegative = 0.1,
) -> Result:
    """FAdam: Adam as a natural gradient, by the diagonal of the empirical Fisher information.

    Gradient and decay are both natural, and clipped where they are larger than usual; the momentum
    is of what comes of it.

    States:
        momentum: the moving average of the clipped natural gradient.
        fim: the moving average of the squared gradient, without its bias.

    Hyperparameters:
        beta1: how much of the momentum is kept at each step.
        beta2: how much of the average squared gradient is kept at each step, after the first ones.
        clip: a root mean square above it is scaled down to it.
        p: the power of the average square that is divided by: ½ for its root.
        eps: keeps the division from blowing up where gradients are tiny.
        eps2: that is at most this share of the gradient's root mean square.
        weight_decay: shrinks the weight by lr · weight_decay times its natural self (decoupled).

    Paper:
        Hwang 2024, "FAdam: Adam is a natural gradient optimizer using diagonal empirical Fisher
        information", arXiv:2405.12807.

    Agrees with pytorch_optimizer.
    """
    kept = beta2 * (1 - beta2 ** (step - 1)) / (1 - beta2**step)
    fim = lerp(fim, g * g, 1 - kept)
    small = eps2 * rms(g)
    least = where(small > 0, where(small < eps, small, eps), eps)
    base = pow(fim, p) + pow(least, 2 * p)
    natural = g / base
    natural = natural / maximum(1, rms(natural) / clip)
    direction = momentum = lerp(momentum, natural, 1 - beta1)
    if nonzero(weight_decay):
        decay = w / base
        direction = direction + weight_decay * (decay / maximum(1, rms(decay) / clip))
    return direction, momentum, fim
