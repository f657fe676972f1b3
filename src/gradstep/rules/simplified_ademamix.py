"""Simplified AdEMAMix."""

from __future__ import annotations

from gradstep.rule import Decay, NonNegative, Result, Value, lerp, nonzero, rule, sqrt


@rule(
    lr=1e-4,
    class_name="SimplifiedAdEMAMix",
    against_codes={"dynamic8": "small squares become 0 in it, and it was seen to learn far less"},
)
def simplified_ademamix(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.99,
    beta2: Decay = 0.95,
    alpha: NonNegative = 0.0,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """Simplified AdEMAMix: one running sum of gradients and the gradient itself, over Adam's root.

    The sum takes in each gradient whole, so that a step is up to 1 / (1 − beta1) times Adam's, and
    the learning rate accordingly smaller.

    States:
        exp_avg: the running sum of the gradients.
        exp_avg_sq: the moving average of the squared gradient.

    Hyperparameters:
        beta1: how much of the running sum is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        alpha: the weight of the present gradient beside the sum.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Morwani, Vyas, Zhang & Kakade 2025, "Connections between schedule-free optimizers, AdEMAMix,
        and accelerated SGD variants", arXiv:2502.02431.

    Agrees with optax, which has an alpha of 0 by default. Emerging-Optimizers divides the sum by
    its bias, and pytorch_optimizer takes an average in its place and corrects the second moment's
    bias the other way round.
    """
    exp_avg = beta1 * exp_avg + g
    exp_avg_sq = lerp(exp_avg_sq, g * g, 1 - beta2)
    root = sqrt(exp_avg_sq / (1 - beta2**step))
    direction = (alpha * g + exp_avg) / (root + eps)
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, exp_avg, exp_avg_sq
