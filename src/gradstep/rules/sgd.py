"""Stochastic gradient descent, with momentum or without."""

from __future__ import annotations

from gradstep.rule import NonNegative, Result, Value, nonzero, rule, where, zeros


@rule
def sgd(
    g: Value,
    momentum_buffer: Value = zeros(when="momentum"),
    *,
    w: Value,
    first: Value,
    momentum: NonNegative = 0.0,
    dampening: float = 0.0,
    weight_decay: NonNegative = 0.0,
    nesterov: bool = False,
) -> Result:
    """Stochastic gradient descent: weight = weight − learning rate · gradient.

    With momentum the weight follows a running sum of the gradients, as a ball rolls; Nesterov's
    form looks one step ahead along it.

    States:
        momentum_buffer: the running sum of the gradients.

    Hyperparameters:
        momentum: how much of the running sum is kept at each step; 0 for plain descent.
        dampening: how much of each new gradient is left out of the running sum.
        weight_decay: adds this share of the weight to its gradient (an L2 penalty).
        nesterov: step along the running sum as it will be, not as it is.

    Papers:
        Robbins & Monro 1951, "A stochastic approximation method".
        Polyak 1964, "Some methods of speeding up the convergence of iteration methods".
        Sutskever, Martens, Dahl & Hinton 2013, "On the importance of initialization and momentum
        in deep learning".

    Agrees with torch.optim.SGD: the running sum starts as the first gradient, undamped, and the
    learning rate stands outside of it, where Sutskever et al. have it inside.
    """
    if nonzero(weight_decay):
        g = g + weight_decay * w
    if momentum_buffer is None:
        return g, None
    momentum_buffer = where(first, g, momentum * momentum_buffer + (1 - dampening) * g)
    direction = g + momentum * momentum_buffer if nesterov else momentum_buffer
    return direction, momentum_buffer
