"""Rules that take nothing but signs: signSGD, Signum and Tiger. Lion has a file of its own."""

from __future__ import annotations

from gradstep.rule import Decay, NonNegative, Result, Value, lerp, nonzero, rule, sign


@rule(lr=1e-4, class_name="SignSGD")
def signsgd(g: Value, *, w: Value, weight_decay: NonNegative = 0.0) -> Result:
    """signSGD: only the sign of the gradient, so every weight moves alike.

    Hyperparameters:
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Bernstein, Wang, Azizzadenesheli & Anandkumar 2018, "signSGD: compressed optimisation for
        non-convex problems", arXiv:1802.04434.

    Agrees with optax and pytorch_optimizer. The paper's vote among machines is no part of it.
    """
    direction = sign(g)
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction


@rule(lr=1e-4, class_name="Signum")
def signum(
    g: Value,
    momentum_buffer: Value,
    *,
    w: Value,
    momentum: Decay = 0.9,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """Signum: only the sign of the average gradient, so every weight moves alike.

    Not to be confused with Lion, which takes the sign of a quicker average than it keeps.

    States:
        momentum_buffer: the moving average of the gradient.

    Hyperparameters:
        momentum: how much of the average gradient is kept at each step.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Bernstein, Wang, Azizzadenesheli & Anandkumar 2018, "signSGD: compressed optimisation for
        non-convex problems", arXiv:1802.04434.

    Agrees with optax and pytorch_optimizer (there SignSGD with momentum).
    """
    momentum_buffer = lerp(momentum_buffer, g, 1 - momentum)
    direction = sign(momentum_buffer)
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, momentum_buffer


@rule(lr=1e-3, class_name="Tiger")
def tiger(
    g: Value, exp_avg: Value, *, w: Value, beta: Decay = 0.965, weight_decay: NonNegative = 0.01
) -> Result:
    """Tiger: Lion with one average in place of two, which spares memory where gradients add up.

    The same formula as Signum with weight decay.

    States:
        exp_avg: the moving average of the gradient.

    Hyperparameters:
        beta: how much of the average gradient is kept at each step.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Su 2023, "Tiger: a tight-fisted optimizer" (weblog, in Chinese: kexue.fm/archives/9512).

    Agrees with pytorch_optimizer. The author's code also scales the learning rate by the kind of
    layer and its size, and decays no biases; that is for parameter groups here.
    """
    exp_avg = lerp(exp_avg, g, 1 - beta)
    direction = sign(exp_avg)
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, exp_avg
