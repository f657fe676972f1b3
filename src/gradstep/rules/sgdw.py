"""SGDW."""

from __future__ import annotations

from gradstep.rule import NonNegative, Result, Value, nonzero, rule


@rule(lr=1e-2, class_name="SGDW")
def sgdw(
    g: Value,
    momentum_buffer: Value,
    *,
    w: Value,
    momentum: NonNegative = 0.9,
    weight_decay: NonNegative = 1e-2,
    nesterov: bool = False,
) -> Result:
    """SGDW: gradient descent with momentum, and a weight decay that the momentum does not see.

    Not to be confused with SGD with a weight decay, which adds it to the gradient.

    States:
        momentum_buffer: the running sum of the gradients.

    Hyperparameters:
        momentum: how much of the running sum is kept at each step.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).
        nesterov: step along the running sum as it will be, not as it is.

    Paper:
        Loshchilov & Hutter 2017, "Decoupled weight decay regularization", arXiv:1711.05101.

    Agrees with timm and pytorch_optimizer. Deviates from the paper's algorithm 1, which has the
    learning rate inside of the running sum and scales the decay by the schedule alone: here, as in
    AdamW, both are scaled by the learning rate. The paper tunes both; 0.01 is ours.
    """
    momentum_buffer = momentum * momentum_buffer + g
    direction = g + momentum * momentum_buffer if nesterov else momentum_buffer
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, momentum_buffer
