"""Adam for sparse gradients."""

from __future__ import annotations

from gradstep.rule import Decay, NonNegative, Result, Value, lerp, rule, sqrt


@rule(sparse="only")
def sparse_adam(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    *,
    step: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-8,
) -> Result:
    """SparseAdam: Adam that touches only the rows that a sparse gradient names.

    Not the same as Adam with zeros in the other rows: there the averages would fade and the
    weights move on.

    States:
        exp_avg: the moving average of the gradient, over the steps that named the row.
        exp_avg_sq: the moving average of the squared gradient, likewise.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        eps: keeps the division from blowing up where gradients are tiny.

    Paper:
        Kingma & Ba 2014, "Adam: a method for stochastic optimization", arXiv:1412.6980.

    Agrees with torch.optim.SparseAdam: eps is added before the bias correction, and the correction
    counts every step of the parameter, not those of the row.
    """
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    exp_avg_sq = lerp(exp_avg_sq, g * g, 1 - beta2)
    scale = sqrt(1 - beta2**step) / (1 - beta1**step)
    return scale * (exp_avg / (sqrt(exp_avg_sq) + eps)), exp_avg, exp_avg_sq
