"""PID."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Result,
    Value,
    nonzero,
    rule,
    where,
    zeros,
)


@rule(class_name="PID")
def pid(
    g: Value,
    last_grad: Value,
    integral_buffer: Value = zeros(),
    derivative_buffer: Value = zeros(),
    *,
    w: Value,
    first: Value,
    momentum: Decay = 0.9,
    dampening: NonNegative = 0.0,
    derivative: NonNegative = 10.0,
    integral: NonNegative = 5.0,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """PID: a controller's three parts: the gradient, its running sum, and how it changes.

    States:
        last_grad: the gradient of the step before.
        integral_buffer: the running sum of the gradients.
        derivative_buffer: the moving average of their changes.

    Hyperparameters:
        momentum: how much of running sum and average is kept at each step.
        dampening: how much of each new gradient is left out of the running sum.
        derivative: the weight of the change.
        integral: the weight of the running sum.
        weight_decay: adds this share of the weight to its gradient (an L2 penalty).

    Paper:
        An et al. 2018, "A PID controller approach for stochastic optimization of deep networks".

    Agrees with pytorch_optimizer, whose momentum is 0 by default, and which then has neither sum
    nor change.
    """
    if nonzero(weight_decay):
        g = g + weight_decay * w
    integral_buffer = momentum * integral_buffer + (1 - dampening) * g
    change = where(first, 0, g - last_grad)
    derivative_buffer = momentum * derivative_buffer + (1 - momentum) * change
    direction = g + integral * integral_buffer + derivative * derivative_buffer
    return direction, g, integral_buffer, derivative_buffer
