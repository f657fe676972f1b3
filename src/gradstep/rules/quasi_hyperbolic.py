"""QHM and QHAdam: momentum and Adam, mixed with the gradient itself."""

from __future__ import annotations

from gradstep.rule import Decay, NonNegative, Result, Value, lerp, nonzero, rule, sqrt


@rule(
    lr=1.0,
    class_name="QHM",
    against_codes="its momentum is an average of a thousand steps, "
    "each of which moves it by less than a code",
)
def qhm(
    g: Value,
    momentum_buffer: Value,
    *,
    w: Value,
    momentum: Decay = 0.999,
    nu: float = 0.7,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """QHM: a mean of the gradient and of its moving average.

    With nu = 0 it is plain descent, with nu = 1 momentum, with nu = momentum that of Nesterov.

    States:
        momentum_buffer: the moving average of the gradient.

    Hyperparameters:
        momentum: how much of the average gradient is kept at each step.
        nu: the average's share in the step.
        weight_decay: adds this share of the weight to its gradient (an L2 penalty).

    Paper:
        Ma & Yarats 2018, "Quasi-hyperbolic momentum and Adam for deep learning", arXiv:1810.06801.

    Agrees with the authors' qhoptim, pytorch_optimizer and torch-optimizer; the defaults are those
    that the authors advise. The average is a mean and no sum, so a learning rate for SGD with
    momentum 0.9 has to be ten times as large here.
    """
    if nonzero(weight_decay):
        g = g + weight_decay * w
    momentum_buffer = lerp(momentum_buffer, g, 1 - momentum)
    return lerp(g, momentum_buffer, nu), momentum_buffer


@rule(lr=1e-3, class_name="QHAdam")
def qhadam(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.995,
    beta2: Decay = 0.999,
    nu1: float = 0.7,
    nu2: NonNegative = 1.0,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """QHAdam: Adam whose two averages are mixed with the gradient and its square.

    States:
        exp_avg: the moving average of the gradient.
        exp_avg_sq: the moving average of the squared gradient.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        nu1: the average gradient's share beside the gradient.
        nu2: the average square's share beside the square.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: adds this share of the weight to its gradient (an L2 penalty).

    Paper:
        Ma & Yarats 2018, "Quasi-hyperbolic momentum and Adam for deep learning", arXiv:1810.06801.

    Agrees with the authors' qhoptim, pytorch_optimizer and torch-optimizer while the betas stay as
    they are: those keep averages that are corrected already. The defaults are those that the
    authors advise; the libraries' are Adam's.
    """
    if nonzero(weight_decay):
        g = g + weight_decay * w
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
    average = nu1 / (1 - beta1**step) * exp_avg + (1 - nu1) * g
    square = nu2 / (1 - beta2**step) * exp_avg_sq + (1 - nu2) * (g * g)
    return average / (sqrt(square) + eps), exp_avg, exp_avg_sq
