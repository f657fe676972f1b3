"""Stages before a rule that take out what is far from usual: spikes, and what is no number."""

from __future__ import annotations

from typing import Annotated

from gradstep.rule import (
    Decay,
    Interval,
    NonNegative,
    Result,
    Value,
    abs,
    global_norm,
    lerp,
    max,
    maximum,
    minimum,
    norm,
    number,
    rule,
    sign,
    sqrt,
    where,
)


@rule
def zero_nans(g: Value) -> Result:
    """Sets to 0 what is nan, element by element; inf stays.

    A nan mostly says that a training is broken: gradstep.SkipNonFinite leaves out such a step, and
    counts.

    Paper:
        Babuschkin et al. 2020, "The DeepMind JAX ecosystem" (optax).

    Agrees with optax's zero_nans, which also counts them.
    """
    return where(g == g, g, 0)


@rule
def adagc(
    g: Value,
    norm_avg: Value = number(0.0),
    *,
    step: Value,
    lambda_abs: NonNegative = 1.0,
    lambda_rel: NonNegative = 1.05,
    gc_beta: Decay = 0.98,
    gc_warmup: NonNegative = 100,
    gc_eps: NonNegative = 1e-8,
) -> Result:
    """AdaGC: scales each weight's gradient down to little more than its usual norm.

    Until it knows what is usual, the norm over all weights is clipped, and the smallest of a
    weight's norms counts.

    States:
        norm_avg: the moving average of the norm of the weight's gradient, as clipped.

    Hyperparameters:
        lambda_abs: the largest norm over all weights during the warm-up.
        lambda_rel: how many times its average norm a gradient may have behind it.
        gc_beta: how much of the average norm is kept at each step.
        gc_warmup: from which step on the average counts.
        gc_eps: the smallest norm that is divided by.

    Paper:
        Wang et al. 2025, "AdaGC: improving training stability for large language model
        pretraining", arXiv:2502.11034.

    Agrees with pytorch_optimizer, where it is an AdamW; before any other rule here.
    """
    early = minimum(lambda_abs / (global_norm(g) + gc_eps), 1.0)
    late = minimum(lambda_rel * maximum(norm_avg, gc_eps) / maximum(norm(g), gc_eps), 1.0)
    share = where(step < gc_warmup, early, where(step == 1, early, late))
    clipped = share * norm(g)
    smallest = where(step == 1, clipped, minimum(norm_avg, clipped))
    average = where(step == 1, clipped, lerp(norm_avg, clipped, 1 - gc_beta))
    return g * share, where(step < gc_warmup, smallest, average)


@rule
def clip_spikes(
    g: Value,
    spike_avg_sq: Value,
    *,
    step: Value,
    threshold: NonNegative = 5000.0,
    spike_beta: Decay = 0.999,
    spike_warmup: NonNegative = 20,
) -> Result:
    """SPAM's clipping: elements whose square is thousands of times the usual are cut to that.

    States:
        spike_avg_sq: the moving average of the squared gradient, as clipped.

    Hyperparameters:
        threshold: how many times its average an element's square may be.
        spike_beta: how much of the average is kept at each step.
        spike_warmup: from which step on elements are clipped.

    Paper:
        Huang et al. 2025, "SPAM: spike-aware Adam with momentum reset for stable LLM training",
        arXiv:2501.06842.

    Agrees with the paper's spike-aware clipping, with an average of its own, so that it goes before
    any rule; the paper also forgets Adam's moments every 500 steps.
    """
    most = sqrt(threshold * spike_avg_sq)
    cut = where(g * g > threshold * spike_avg_sq, sign(g) * most, g)
    clipped = where(step >= spike_warmup, cut, g)
    return clipped, lerp(spike_avg_sq, clipped * clipped, 1 - spike_beta)


@rule
def stable_spam(
    g: Value,
    max_avg: Value = number(0.0),
    gradient_norm_avg: Value = number(0.0),
    gradient_norm_avg_sq: Value = number(0.0),
    *,
    step: Value,
    gamma1: Decay = 0.7,
    gamma2: Decay = 0.9,
    theta: Decay = 0.999,
    spam_eps: Annotated[float, Interval(0)] = 1e-8,
) -> Result:
    """StableSPAM's two clippings: no element far above the usual largest, and a norm as usual.

    What stands out of the average largest element is scaled down to it; then each weight's gradient
    gets a norm of its average norm over the root of its average square.

    States:
        max_avg: the moving average of the largest size of an element.
        gradient_norm_avg: the moving average of the norm of the weight's gradient.
        gradient_norm_avg_sq: the moving average of the square of that norm.

    Hyperparameters:
        gamma1: how much of the average norm is kept at each step.
        gamma2: how much of the average squared norm is kept at each step.
        theta: how much of the average largest size is kept at each step.
        spam_eps: keeps the division from blowing up where norms are tiny.

    Paper:
        Huang et al. 2025, "Stable-SPAM: how to train in 4-bit more stably than 16-bit Adam",
        arXiv:2502.17055.

    Agrees with pytorch_optimizer's StableSPAM without its scale of beta1 and the reset of Adam's
    moments every 1000 steps; a gradient of 0 stays.
    """
    largest = max(abs(g))
    max_avg = lerp(max_avg, largest, 1 - theta)
    usual = max_avg / (1 - theta**step)
    g = where(abs(g) > usual, g * (usual / where(largest > 0, largest, 1)), g)
    length = norm(g)
    average = lerp(gradient_norm_avg, length, 1 - gamma1)
    square = lerp(gradient_norm_avg_sq, length * length, 1 - gamma2)
    wanted = average / (1 - gamma1**step) / (sqrt(square / (1 - gamma2**step)) + spam_eps)
    scale = where(length > 0, wanted / where(length > 0, length, 1), 0)
    return g * scale, max_avg, average, square
