"""AdamG."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Result,
    Value,
    lerp,
    minimum,
    new_weight,
    pow,
    rule,
    sqrt,
)


@rule(lr=1.0, class_name="AdamG")
def adamg(
    g: Value,
    m: Value,
    v: Value,
    r: Value,
    *,
    w: Value,
    step: Value,
    lr: Value,
    beta1: Decay = 0.95,
    beta2: Decay = 0.999,
    beta3: Decay = 0.95,
    p: NonNegative = 0.2,
    q: NonNegative = 0.24,
    eps: NonNegative = 1e-8,
) -> Result:
    """AdamG: Adam without a learning rate to be found, by AdaGrad-Norm's golden step size.

    The learning rate is a bound, and mostly 1: the step is at most 1/√step.

    States:
        m: the moving average of the scaled gradient.
        v: the moving average of the squared gradient.
        r: the moving average of the golden step size.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        beta3: how much of the average step size is kept at each step.
        p: what the golden step size is multiplied by.
        q: the power of the average square in the golden step size.
        eps: keeps the division from blowing up where gradients are tiny.

    Paper:
        Pan et al. 2024, "Towards stability of parameter-free optimization", arXiv:2405.04376.

    Agrees with pytorch_optimizer.
    """
    v = beta2 * v + (1 - beta2) * (g * g)
    r = lerp(r, p * pow(v, q), 1 - beta3)
    m = beta1 * m + (1 - beta1) * (r * g)
    rate = minimum(lr, 1 / sqrt(step)) / (1 - beta1**step)
    w = w - rate * (m / (sqrt(v / (1 - beta2**step)) + eps))
    return new_weight(w), m, v, r
