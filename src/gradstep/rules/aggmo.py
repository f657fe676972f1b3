"""AggMo."""

from __future__ import annotations

from gradstep.rule import Decay, NonNegative, Result, Value, nonzero, rule, zeros


@rule(lr=1e-2, class_name="AggMo")
def aggmo(
    g: Value,
    momentum_buffer1: Value = zeros(when="beta1"),
    momentum_buffer2: Value = zeros(when="beta2"),
    momentum_buffer3: Value = zeros(when="beta3"),
    *,
    w: Value,
    beta1: Decay = 0.0,
    beta2: Decay = 0.9,
    beta3: Decay = 0.99,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """AggMo: the mean of three momenta, from none at all to a very long one.

    The quick ones damp the swings that the slow one would make.

    States:
        momentum_buffer1: the first running sum of the gradients; with beta1 = 0 there is none.
        momentum_buffer2: the second running sum of the gradients.
        momentum_buffer3: the third running sum of the gradients.

    Hyperparameters:
        beta1: how much of the first running sum is kept at each step.
        beta2: how much of the second running sum is kept at each step.
        beta3: how much of the third running sum is kept at each step.
        weight_decay: adds this share of the weight to its gradient (an L2 penalty).

    Paper:
        Lucas, Sun, Zemel & Grosse 2018, "Aggregated momentum: stability through passive damping",
        arXiv:1804.00325.

    Agrees with the authors' code, pytorch_optimizer and torch-optimizer, but for the number of
    momenta: three, as the paper advises, where those take any. The authors have no default for the
    learning rate; 0.01 is ours.
    """
    if nonzero(weight_decay):
        g = g + weight_decay * w
    sum1 = g if momentum_buffer1 is None else beta1 * momentum_buffer1 + g
    sum2 = g if momentum_buffer2 is None else beta2 * momentum_buffer2 + g
    sum3 = g if momentum_buffer3 is None else beta3 * momentum_buffer3 + g
    momentum_buffer1 = None if momentum_buffer1 is None else sum1
    momentum_buffer2 = None if momentum_buffer2 is None else sum2
    momentum_buffer3 = None if momentum_buffer3 is None else sum3
    return (sum1 + sum2 + sum3) / 3, momentum_buffer1, momentum_buffer2, momentum_buffer3
