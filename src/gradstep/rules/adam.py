"""Adam, AMSGrad and AdamW."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Result,
    Value,
    lerp,
    maximum,
    new_weight,
    nonzero,
    rule,
    sqrt,
    zeros,
)


@rule
def adam(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    max_exp_avg_sq: Value = zeros(when="amsgrad"),
    *,
    w: Value,
    step: Value,
    lr: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    amsgrad: bool = False,
    decoupled_weight_decay: bool = False,
) -> Result:
    """Adam: the average gradient, divided by the root of the average squared gradient.

    Both averages start at zero; dividing by 1 − βᵗ undoes that. Here the two corrections are
    gathered into one number, as in section 2 of the paper, with eps corrected alike.

    States:
        exp_avg: the moving average of the gradient.
        exp_avg_sq: the moving average of the squared gradient.
        max_exp_avg_sq: the largest exp_avg_sq so far.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: adds this share of the weight to its gradient (an L2 penalty), or, decoupled,
            shrinks the weight itself by lr · weight_decay.
        amsgrad: divide by the largest average squared gradient so far (AMSGrad).
        decoupled_weight_decay: the weight decay of AdamW.

    Papers:
        Kingma & Ba 2014, "Adam: a method for stochastic optimization", arXiv:1412.6980.
        Reddi, Kale & Kumar 2018, "On the convergence of Adam and beyond", arXiv:1904.09237.
        Loshchilov & Hutter 2017, "Decoupled weight decay regularization", arXiv:1711.05101.

    Agrees with torch.optim.Adam and AdamW: AMSGrad takes the largest average before its
    correction, where the paper has none.
    """
    if nonzero(weight_decay) and not decoupled_weight_decay:
        g = g + weight_decay * w
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
    if max_exp_avg_sq is not None:
        max_exp_avg_sq = maximum(max_exp_avg_sq, exp_avg_sq)
    largest = exp_avg_sq if max_exp_avg_sq is None else max_exp_avg_sq
    correction1, correction2 = 1 - beta1**step, sqrt(1 - beta2**step)
    direction = correction2 / correction1 * (exp_avg / (sqrt(largest) + eps * correction2))
    if nonzero(weight_decay) and decoupled_weight_decay:
        shrunk = w * (1 - lr * weight_decay)
        return new_weight(shrunk - lr * direction), exp_avg, exp_avg_sq, max_exp_avg_sq
    return direction, exp_avg, exp_avg_sq, max_exp_avg_sq
