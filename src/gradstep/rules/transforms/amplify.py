"""Stages before a rule that add to the gradient what the gradients before it tell."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Result,
    Value,
    lerp,
    maximum,
    norm,
    rule,
    where,
)


@rule
def grokfast(
    g: Value,
    slow_gradient: Value,
    *,
    first: Value,
    grokfast_alpha: Decay = 0.98,
    grokfast_lamb: NonNegative = 2.0,
) -> Result:
    """Grokfast: adds to the gradient its own slow part, a few times over.

    Before AdamW it is what Hugging Face and pytorch_optimizer call GrokAdamW.

    States:
        slow_gradient: the moving average of the gradient.

    Hyperparameters:
        grokfast_alpha: how much of the average is kept at each step.
        grokfast_lamb: how many times the average is added.

    Paper:
        Lee, Kang, Kim & Lee 2024, "Grokfast: accelerated grokking by amplifying slow gradients",
        arXiv:2405.20233.

    Agrees with the authors' gradfilter_ema, whose average starts as the first gradient. The package
    grokadamw also lets alpha fall with a signal of the training, and beta1 from layer to layer.
    """
    slow_gradient = lerp(where(first, g, slow_gradient), g, 1 - grokfast_alpha)
    return g + grokfast_lamb * slow_gradient, slow_gradient


@rule
def mars_correction(
    g: Value,
    last_gradient: Value,
    *,
    first: Value,
    mars_beta: Decay = 0.95,
    mars_gamma: NonNegative = 0.025,
    mars_norm: NonNegative = 1.0,
) -> Result:
    """MARS's correction, for any rule: the gradient, and a share of how it changed since the last.

    What comes of it is clipped to a norm of 1 for each weight. Before adam it is mars.

    States:
        last_gradient: the gradient of the step before.

    Hyperparameters:
        mars_beta: the share that the rule behind keeps of its average, which scales the change.
        mars_gamma: what share of the change, times mars_beta/(1 − mars_beta), is added.
        mars_norm: the largest norm of what comes of it.

    Paper:
        Yuan et al. 2024, "MARS: unleashing the power of variance reduction for training large
        models", arXiv:2411.10438.

    The paper's approximate form. heavyball has it as a flag of every rule. At the first step
    nothing is corrected.
    """
    change = where(first, 0, g - last_gradient)
    corrected = g + mars_gamma * mars_beta / (1 - mars_beta) * change
    length = norm(corrected)
    return corrected / where(mars_norm > 0, maximum(1, length / mars_norm), 1), g
