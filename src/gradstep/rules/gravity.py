"""Gravity."""

from __future__ import annotations

from gradstep.rule import Decay, Result, Value, abs, lerp, max, rule


@rule(lr=0.1, class_name="Gravity")
def gravity(g: Value, v: Value, *, step: Value, beta: Decay = 0.9) -> Result:
    """Gravity: momentum that takes in little of the layer's largest gradients.

    States:
        v: the velocity, a moving average of the gradients so made smaller.

    Hyperparameters:
        beta: how much of the velocity is kept at each step, after many of them; half at first.

    Paper:
        Bahrami & Pousti Zadeh 2021, "Gravity optimizer: a kinematic approach on optimization in
        deep learning", arXiv:2101.09192.

    Agrees with pytorch_optimizer, and with the authors' code, but for the start: there the velocity
    begins at random, of the size alpha/lr; here it begins at 0, as with alpha = 0.
    """
    smaller = g / (1 + (g * max(abs(g))) * (g * max(abs(g))))
    v = lerp(v, smaller, 1 - (beta * step + 1) / (step + 2))
    return v, v
