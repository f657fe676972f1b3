"""Lion."""

from __future__ import annotations

from gradstep.rule import Decay, NonNegative, Result, Value, lerp, nonzero, rule, sign


@rule(lr=1e-4, class_name="Lion")
def lion(
    g: Value,
    exp_avg: Value,
    *,
    w: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.99,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """Lion: only the sign of an average of old and new gradients, so every weight moves alike.

    Not to be confused with Signum, which takes the sign of the average that it keeps; Lion takes
    that of a quicker average and keeps a slower one.

    States:
        exp_avg: the moving average of the gradient.

    Hyperparameters:
        beta1: the share of the kept average in the direction.
        beta2: how much of the kept average is kept at each step.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Chen et al. 2023, "Symbolic discovery of optimization algorithms", arXiv:2302.06675.

    Agrees with timm, optax, and lion-pytorch. The paper advises a learning rate 3 to 10 times
    smaller than AdamW's, and a weight decay as much larger.
    """
    direction = sign(lerp(exp_avg, g, 1 - beta1))
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, lerp(exp_avg, g, 1 - beta2)
