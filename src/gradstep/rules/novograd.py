"""NovoGrad."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Result,
    Value,
    lerp,
    nonzero,
    number,
    rule,
    sqrt,
    sum,
    where,
)


@rule(lr=0.01, class_name="NovoGrad")
def novograd(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value = number(0.0),
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.95,
    beta2: Decay = 0.98,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    grad_averaging: bool = False,
) -> Result:
    """NovoGrad: momentum on gradients that are divided by the average size of their layer's.

    The second moment is one number for each layer, so it takes half of the memory of Adam.

    States:
        exp_avg: the sum of the past directions, the older the smaller; with grad_averaging their
            moving average.
        exp_avg_sq: the moving average of the squared norm of the layer's gradient.

    Hyperparameters:
        beta1: how much of exp_avg is kept at each step.
        beta2: how much of exp_avg_sq is kept at each step.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: adds this share of the weight to the divided gradient.
        grad_averaging: take a moving average of the directions in place of their sum.

    Paper:
        Ginsburg et al. 2019, "Stochastic gradient methods with layer-wise adaptive moments for
        training of deep networks", arXiv:1905.11286.

    Agrees with the paper, timm and pytorch_optimizer; optax has other betas, 0.9 and 0.25, those of
    the paper's first version. With grad_averaging timm scales the first direction as well, as here,
    and pytorch_optimizer does not. timm starts exp_avg_sq anew where it is 0.
    """
    norm_sq = sum(g * g)
    exp_avg_sq = where(step == 1, norm_sq, lerp(exp_avg_sq, norm_sq, 1 - beta2))
    direction = g / (sqrt(exp_avg_sq) + eps)
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    if grad_averaging:
        direction = (1 - beta1) * direction
    exp_avg = beta1 * exp_avg + direction
    return exp_avg, exp_avg, exp_avg_sq
