"""RMSprop, centred or not, with momentum or without."""

from __future__ import annotations

from gradstep.rule import NonNegative, Result, Value, lerp, nonzero, rule, sqrt, zeros


@rule
def rmsprop(
    g: Value,
    square_avg: Value,
    grad_avg: Value = zeros(when="centered"),
    momentum_buffer: Value = zeros(when="momentum"),
    *,
    w: Value,
    step: Value,
    alpha: NonNegative = 0.99,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    momentum: NonNegative = 0.0,
    centered: bool = False,
) -> Result:
    """RMSprop: the gradient, divided by the root of its average square.

    States:
        square_avg: the moving average of the squared gradient.
        grad_avg: the moving average of the gradient.
        momentum_buffer: the running sum of the divided gradients.

    Hyperparameters:
        alpha: how much of the averages is kept at each step.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: adds this share of the weight to its gradient (an L2 penalty).
        momentum: how much of the running sum is kept at each step; 0 for none.
        centered: divide by the standard deviation: the average square less the squared average.

    Papers:
        Tieleman & Hinton 2012, Coursera, "Neural networks for machine learning", lecture 6.5.
        Graves 2013, "Generating sequences with recurrent neural networks", arXiv:1308.0850
        (centred).

    Agrees with torch.optim.RMSprop, where eps stands outside of the root; Graves and TensorFlow
    have it inside. ``step`` is counted because torch's checkpoints hold it.
    """
    if nonzero(weight_decay):
        g = g + weight_decay * w
    square_avg = alpha * square_avg + (1 - alpha) * (g * g)
    variance = square_avg
    if grad_avg is not None:
        grad_avg = lerp(grad_avg, g, 1 - alpha)
        variance = square_avg - grad_avg * grad_avg
    direction = g / (sqrt(variance) + eps)
    if momentum_buffer is not None:
        direction = momentum_buffer = momentum * momentum_buffer + direction
    return direction, square_avg, grad_avg, momentum_buffer
