"""Momentum as a stage."""

from __future__ import annotations

from gradstep.rule import NonNegative, Result, Value, rule


@rule
def trace(
    g: Value, momentum_buffer: Value, *, decay: NonNegative = 0.9, nesterov: bool = False
) -> Result:
    """Heavy ball: a running sum of directions, of which each step keeps a share.

    States:
        momentum_buffer: the running sum.

    Hyperparameters:
        decay: how much of the running sum is kept at each step.
        nesterov: step along the running sum as it will be, not as it is.

    Papers:
        Polyak 1964, "Some methods of speeding up the convergence of iteration methods".
        Sutskever, Martens, Dahl & Hinton 2013, "On the importance of initialization and momentum
        in deep learning".

    Agrees with optax's trace, and with torch.optim.SGD without dampening.
    """
    momentum_buffer = g + decay * momentum_buffer
    return (g + decay * momentum_buffer if nesterov else momentum_buffer), momentum_buffer
