"""NAdam."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Result,
    Value,
    lerp,
    new_weight,
    nonzero,
    number,
    rule,
    sqrt,
    stored,
)


@rule
def nadam(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    mu_product: Value = number(1.0),
    *,
    w: Value,
    step: Value,
    lr: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    momentum_decay: NonNegative = 4e-3,
    decoupled_weight_decay: bool = False,
) -> Result:
    """NAdam: Adam whose momentum looks one step ahead, as Nesterov's does.

    Not to be confused with NAdamW of timm, nor with optax's nadam: three different rules.

    States:
        exp_avg: the moving average of the gradient.
        exp_avg_sq: the moving average of the squared gradient.
        mu_product: the product of all momenta so far, which corrects the average's start.

    Hyperparameters:
        beta1: the momentum that is reached in the end.
        beta2: how much of the average squared gradient is kept at each step.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: adds this share of the weight to its gradient (an L2 penalty), or, decoupled,
            shrinks the weight itself by lr · weight_decay.
        momentum_decay: how soon the momentum is reached; larger is sooner.
        decoupled_weight_decay: the weight decay of AdamW.

    Paper:
        Dozat 2016, "Incorporating Nesterov momentum into Adam", ICLR workshop.

    Agrees with torch.optim.NAdam: the paper's schedule for the momentum, 1 − ½ · 0.96^(t · 0.004).
    """
    if nonzero(weight_decay) and not decoupled_weight_decay:
        g = g + weight_decay * w
    mu = beta1 * (1 - 0.5 * 0.96 ** (step * momentum_decay))
    mu_next = beta1 * (1 - 0.5 * 0.96 ** ((step + 1) * momentum_decay))
    mu_product = stored(mu_product * stored(mu))
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
    ahead = (1 - mu) / (1 - mu_product) * g + mu_next / (1 - mu_product * mu_next) * exp_avg
    direction = ahead / (sqrt(exp_avg_sq / (1 - beta2**step)) + eps)
    if nonzero(weight_decay) and decoupled_weight_decay:
        direction = new_weight(w * (1 - lr * weight_decay) - lr * direction)
    return direction, exp_avg, exp_avg_sq, mu_product
