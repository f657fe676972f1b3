"""NAdamW."""

from __future__ import annotations

from gradstep.rule import Decay, NonNegative, Result, Value, lerp, nonzero, rule, sqrt


@rule(lr=1e-3, class_name="NAdamW")
def nadamw(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 1e-2,
) -> Result:
    """NAdamW: AdamW whose average takes the gradient in once more, as Nesterov's momentum does.

    Not to be confused with NAdam with decoupled weight decay, whose momentum has a schedule.

    States:
        exp_avg: the moving average of the gradient.
        exp_avg_sq: the moving average of the squared gradient.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Papers:
        Dozat 2016, "Incorporating Nesterov momentum into Adam", ICLR workshop.
        Dahl et al. 2023, "Benchmarking neural network training algorithms", arXiv:2306.07179 (this
        form of it).

    Agrees with timm. optax's nadamw corrects the average with the next step's number, and the
    gradient with this one's.
    """
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
    ahead = lerp(exp_avg, g, 1 - beta1) / (1 - beta1**step)
    direction = ahead / (sqrt(exp_avg_sq) / sqrt(1 - beta2**step) + eps)
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, exp_avg, exp_avg_sq
