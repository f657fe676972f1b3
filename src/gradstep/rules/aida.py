"""Aida."""

from __future__ import annotations

from gradstep.rule import Decay, NonNegative, Result, Value, dot, lerp, nonzero, rule, sqrt, where


@rule(lr=1e-3, class_name="Aida")
def aida(
    g: Value,
    exp_avg: Value,
    exp_avg_var: Value,
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """Aida: AdaBelief whose distance counts less, the more gradient and average differ in angle.

    Gradient and average are projected on each other twice before their difference is taken, which
    multiplies both by cos² of the angle between them, over the whole weight. So the rates of a
    weight's elements lie closer together.

    States:
        exp_avg: the moving average of the gradient.
        exp_avg_var: the moving average of the squared difference of the two projections.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared difference is kept at each step.
        eps: keeps the division from blowing up; it is added to the average as well, and stays.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Zhang, Niwa & Kleijn 2022, "On suppressing range of adaptive stepsizes of Adam to improve
        generalisation performance", arXiv:2203.13273 (first called "A DNN optimizer that improves
        over AdaBelief by suppression of the adaptive stepsize range").

    Agrees with pytorch_optimizer at its two projections (``k=2``), without its rectification.
    """
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    along, lengths = dot(g, exp_avg), dot(g, g) * dot(exp_avg, exp_avg)
    agreement = where(lengths > 0, along * along / lengths, 0.0)
    distance = agreement * (exp_avg - g)
    exp_avg_var = beta2 * exp_avg_var + (1 - beta2) * (distance * distance) + eps
    direction = exp_avg / (1 - beta1**step)
    direction = direction / ((sqrt(exp_avg_var) + eps) / sqrt(1 - beta2**step))
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, exp_avg, exp_avg_var
