"""VSGD."""

from __future__ import annotations

from gradstep.rule import (
    NonNegative,
    Positive,
    Result,
    Value,
    lerp,
    nonzero,
    rule,
    sqrt,
    where,
)


@rule(
    lr=0.1,
    class_name="VSGD",
    against_codes={"int4": "16 numbers are too few for it, and it was seen to learn far less"},
)
def vsgd(
    g: Value,
    mug: Value,
    bg: Value,
    bhg: Value,
    *,
    w: Value,
    step: Value,
    ghattg: Positive = 30.0,
    ps: Positive = 1e-8,
    tau1: NonNegative = 0.81,
    tau2: NonNegative = 0.9,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """VSGD: stochastic descent by variational inference, with the true gradient as what is hidden.

    States:
        mug: the mean of the gradient's posterior.
        bg: the rate of the posterior of how the gradient wanders.
        bhg: the rate of the posterior of its noise.

    Hyperparameters:
        ghattg: how much more noise than wandering is expected.
        ps: the strength of the prior.
        tau1: how fast the posterior of the wandering forgets: by step^−tau1.
        tau2: how fast the posterior of the noise forgets: by step^−tau2.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Chen et al. 2024, "Variational stochastic gradient descent for deep neural networks",
        arXiv:2404.06549.

    Agrees with pytorch_optimizer.
    """
    shape, prior = 2 * ps + 1.0 + 1e-4, 2 * ps
    sg = where(step == 1, prior / (shape - 1), bg / shape)
    shg = where(step == 1, ghattg * prior / (shape - 1), bhg / shape)
    mean = (shg * mug + sg * g) / (sg + shg)
    square = mean * mean + sg * shg / (sg + shg)
    wandered = prior + square - 2 * mean * mug + mug * mug
    noise = ghattg * prior + square - 2 * g * mean + g * g
    direction = mean / (sqrt(square) + eps)
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, mean, lerp(bg, wandered, step**-tau1), lerp(bhg, noise, step**-tau2)
