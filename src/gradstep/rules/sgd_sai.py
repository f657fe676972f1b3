"""SGD-SaI."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Result,
    Value,
    lerp,
    maximum,
    mean,
    nonzero,
    norm,
    number,
    rule,
    size,
    sqrt,
    sum,
    where,
)


@rule(lr=0.01, class_name="SGDSaI")
def sgd_sai(
    g: Value,
    momentum_buffer: Value,
    gsnr: Value = number(0.0),
    *,
    w: Value,
    first: Value,
    is_matrix: bool,
    momentum: Decay = 0.9,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.01,
) -> Result:
    """SGD-SaI: momentum with a learning rate for each weight, from its first gradient for good.

    That is the norm of the gradient over the standard deviation of its elements.

    States:
        momentum_buffer: the moving average of the gradient.
        gsnr: the ratio of the first gradient's signal and noise.

    Hyperparameters:
        momentum: how much of the average gradient is kept at each step.
        eps: added to the standard deviation.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Xu et al. 2024, "No more Adam: learning rate scaling at initialization is all you need",
        arXiv:2412.11768.

    Agrees with pytorch_optimizer: of weights without rows and columns, and where all elements are
    equal, the norm counts alone.
    """
    count, apart = size(g), g - mean(g)
    variance = sum(apart * apart) / maximum(count - 1, 1)
    deviation = where(count > 1, sqrt(variance), 0)
    ratio = where(deviation > 0, norm(g) / (deviation + eps), norm(g)) if is_matrix else norm(g)
    gsnr = where(first, ratio, gsnr)
    momentum_buffer = lerp(momentum_buffer, g, 1 - momentum)
    direction = gsnr * momentum_buffer
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, momentum_buffer, gsnr
