"""FTRL-Proximal."""

from __future__ import annotations

from gradstep.rule import NonNegative, Result, Value, clamp, new_weight, rule, sqrt, where


@rule(
    lr=0.1,
    class_name="FTRL",
    against_codes="its weight is made of its states anew at each step, "
    "and has no more digits than they",
)
def ftrl(
    g: Value,
    z: Value,
    n: Value,
    *,
    w: Value,
    lr: Value,
    first: Value,
    beta: NonNegative = 1.0,
    lambda_1: NonNegative = 0.0,
    lambda_2: NonNegative = 0.0,
) -> Result:
    """FTRL-Proximal: the weight that would have done best so far, held near all earlier weights.

    With lambda_1 above 0 it makes weights exactly 0 that matter little.

    States:
        z: what the gradients and earlier weights pull, times the learning rate.
        n: the sum of the squared gradients.

    Hyperparameters:
        beta: added to the root of the sum of squares, so that first steps are not all of one size.
        lambda_1: how strongly small weights are pulled onto 0 (an L1 penalty).
        lambda_2: how strongly all weights are pulled towards 0 (an L2 penalty).

    Paper:
        McMahan et al. 2013, "Ad click prediction: a view from the trenches", KDD.

    Agrees with pytorch_optimizer and Keras for a constant learning rate, where the starting weight
    is 0 as in the paper's algorithm 1. Another one is held as if it had been there before: there
    beta pulls weights from their start to 0, and those that never had a gradient are set to 0.
    The paper's z is z / lr here, which makes a learning rate of 0 a step, and of a schedule one as
    in gradient descent. The paper tunes the learning rate; 0.1 is ours.
    """
    z = where(first, -beta * w, z)
    before, n = n, n + g * g
    z = z + lr * g - (sqrt(n) - sqrt(before)) * w
    size = beta + sqrt(n) + lr * lambda_2
    found = (clamp(z, -(lr * lambda_1), lr * lambda_1) - z) / size
    return new_weight(where(size > 0, found, w)), z, n
