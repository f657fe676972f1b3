"""Steps by the loss: Polyak's step size, and ALI-G."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Result,
    Value,
    global_dot,
    minimum,
    new_weight,
    rule,
    zeros,
)


@rule(lr=1.0, class_name="PolyakSGD")
def polyak_sgd(
    g: Value,
    *,
    w: Value,
    lr: Value,
    loss: Value,
    f_min: float = 0.0,
    eps: NonNegative = 1e-8,
) -> Result:
    """Polyak SGD: the step at which the loss would be the least one if it fell on in a line.

    The learning rate is the largest step size. A step asks for the loss: step(closure).

    Hyperparameters:
        f_min: the least loss that there is, or an estimate of it.
        eps: added to the squared norm of all gradients.

    Papers:
        Polyak 1964, "Some methods of speeding up the convergence of iteration methods".
        Loizou et al. 2020, "Stochastic Polyak step-size for SGD", arXiv:2002.10542.

    Agrees with optax's polyak_sgd, whose eps is 0.
    """
    rate = minimum((loss - f_min) / (global_dot(g, g) + eps), lr)
    return new_weight(w - rate * g)


@rule(lr=0.1, class_name="AliG")
def alig(
    g: Value,
    momentum_buffer: Value = zeros(when="momentum"),
    *,
    w: Value,
    lr: Value,
    loss: Value,
    momentum: Decay = 0.0,
    eps: NonNegative = 1e-6,
) -> Result:
    """ALI-G: Polyak's step size for nets that can fit all data, so that the least loss is 0.

    The learning rate is the largest step size. A step asks for the loss: step(closure).

    States:
        momentum_buffer: the running sum of the steps, kept only with momentum.

    Hyperparameters:
        momentum: how much of the running sum is kept at each step (Nesterov's).
        eps: added to the squared norm of all gradients.

    Paper:
        Berrada, Zisserman & Kumar 2019, "Training neural networks for and by interpolation",
        arXiv:1906.05661.

    Agrees with pytorch_optimizer, without its projections.
    """
    rate = minimum(loss / (global_dot(g, g) + eps), lr)
    w = w - rate * g
    if momentum_buffer is not None:
        momentum_buffer = momentum * momentum_buffer - rate * g
        w = w + momentum * momentum_buffer
    return new_weight(w), momentum_buffer
