"""Adagrad."""

from __future__ import annotations

from gradstep.rule import NonNegative, Result, Value, full, nonzero, rule, sqrt


@rule(sparse="rows")
def adagrad(
    g: Value,
    sum: Value = full("initial_accumulator_value"),
    *,
    w: Value,
    step: Value,
    lr_decay: NonNegative = 0.0,
    eps: NonNegative = 1e-10,
    weight_decay: NonNegative = 0.0,
    initial_accumulator_value: NonNegative = 0.0,
) -> Result:
    """Adagrad: the gradient, divided by the root of the sum of all its squares.

    A weight whose gradients are rare or small keeps a large step. For a sparse gradient only the
    rows that it names are updated.

    States:
        sum: the sum of the squared gradients.

    Hyperparameters:
        lr_decay: the learning rate is divided by 1 + (step − 1) · lr_decay.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: adds this share of the weight to its gradient (an L2 penalty).
        initial_accumulator_value: what the sum starts with.

    Paper:
        Duchi, Hazan & Singer 2011, "Adaptive subgradient methods for online learning and
        stochastic optimization", JMLR 12.

    Agrees with torch.optim.Adagrad; lr_decay is torch's addition.
    """
    if nonzero(weight_decay):
        g = g + weight_decay * w
    sum = sum + g * g
    return 1 / (1 + (step - 1) * lr_decay) * (g / (sqrt(sum) + eps)), sum
