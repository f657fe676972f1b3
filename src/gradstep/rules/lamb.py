"""LAMB."""

from __future__ import annotations

from gradstep.rule import Decay, NonNegative, Result, Value, lerp, nonzero, norm, rule, sqrt, where


@rule(lr=1e-3, class_name="LAMB")
def lamb(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    *,
    w: Value,
    step: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 0.01,
    bias_correction: bool = True,
) -> Result:
    """LAMB: Adam's direction, scaled for each layer to the size of the layer's weights.

    So each step changes a layer by the same share, which lets batches be very large. Not to be
    confused with LARS, which scales the plain gradient.

    States:
        exp_avg: the moving average of the gradient.
        exp_avg_sq: the moving average of the squared gradient.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: adds this share of the weight to Adam's direction, before it is scaled.
        bias_correction: divide both averages by 1 − βᵗ, as they start at zero.

    Paper:
        You et al. 2019, "Large batch optimization for deep learning: training BERT in 76 minutes",
        arXiv:1904.00962.

    Agrees with the paper with φ(z) = z, and with optax. Where all weights or the whole direction
    are 0, the direction is left as it is. timm agrees with always_adapt=True and
    max_grad_norm=None: by default it clips the global norm of all gradients to 1 first (for which
    there is clip_by_global_norm), and leaves layers without weight decay unscaled.
    pytorch_optimizer differs: it takes norms of weights to be at most 10, corrects the first
    average only, and that behind the scaling, and decays weights outside of it.
    """
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
    correction1 = 1 - beta1**step if bias_correction else 1
    correction2 = sqrt(1 - beta2**step) if bias_correction else 1
    update = correction2 / correction1 * (exp_avg / (sqrt(exp_avg_sq) + eps * correction2))
    if nonzero(weight_decay):
        update = update + weight_decay * w
    weight_norm, update_norm = norm(w), norm(update)
    scaled = (weight_norm > 0) & (update_norm > 0)
    return where(scaled, weight_norm / update_norm, 1) * update, exp_avg, exp_avg_sq
