"""Clipping: directions that are too large, made smaller."""

from __future__ import annotations

from gradstep.rule import (
    NonNegative,
    Result,
    Value,
    clamp,
    global_norm,
    maximum,
    minimum,
    norm,
    rms,
    rule,
    where,
)
from gradstep.rules.units import unit_norm


@rule
def clip_by_value(g: Value, *, limit: NonNegative = 1.0) -> Result:
    """Keeps every element of the direction between −limit and limit.

    Hyperparameters:
        limit: the largest size that an element may have.

    Agrees with torch.nn.utils.clip_grad_value_ and optax's clip, but leaves the gradient itself as
    it is.
    """
    return clamp(g, -limit, limit)


@rule
def clip_by_norm(g: Value, *, max_norm: NonNegative = 1.0) -> Result:
    """Scales each weight's direction down to a norm of at most max_norm, each on its own.

    Not to be confused with clip_by_global_norm, which takes the norm over all weights together.

    Hyperparameters:
        max_norm: the largest Euclidean norm that a weight's direction may have.

    Paper:
        Pascanu et al. 2012, "On the difficulty of training recurrent neural networks",
        arXiv:1211.5063.

    Agrees with the clipnorm of Keras.
    """
    length = norm(g)
    return g * where(length > max_norm, max_norm / length, 1)


@rule
def clip_by_block_rms(g: Value, *, threshold: NonNegative = 1.0) -> Result:
    """Scales each weight's direction down to a root mean square of at most threshold.

    Behind another rule this is the update clipping of Adafactor.

    Not to be confused with StableAdamW's, which looks at the gradient over the root of the second
    moment in place of the direction, and divides the learning rate.

    Hyperparameters:
        threshold: the largest root mean square that a weight's direction may have.

    Paper:
        Shazeer & Stern 2018, "Adafactor: adaptive learning rates with sublinear memory cost",
        arXiv:1804.04235.

    Agrees with optax's clip_by_block_rms.
    """
    size = rms(g)
    return g * where(size > threshold, threshold / size, 1)


@rule
def clip_by_global_norm(g: Value, *, max_norm: NonNegative = 1.0) -> Result:
    """Scales the directions of all parameters down together, to a norm of at most max_norm.

    Hyperparameters:
        max_norm: the largest Euclidean norm that all directions may have together.

    Paper:
        Pascanu et al. 2012, "On the difficulty of training recurrent neural networks",
        arXiv:1211.5063.

    Agrees with torch.nn.utils.clip_grad_norm_, which also adds 1e-6 to the norm, but leaves the
    gradients themselves as they are.
    """
    return g * minimum(1, max_norm / (global_norm(g) + 1e-6))


@rule
def adaptive_grad_clip(
    g: Value, *, w: Value, clipping: NonNegative = 0.01, eps: NonNegative = 1e-3
) -> Result:
    """Adaptive gradient clipping: each unit's gradient to a share of the norm of its weights.

    A unit is what feeds one output: a row of a matrix, one filter of a convolution; a weight of
    one dimension or none is one unit.

    Hyperparameters:
        clipping: the largest norm of a unit's gradient, as a share of the norm of its weights.
        eps: the smallest norm that a unit's weights are taken to have.

    Paper:
        Brock, De, Smith & Simonyan 2021, "High-performance large-scale image recognition without
        normalization", arXiv:2102.06171.

    Agrees with timm's adaptive_clip_grad. optax's adaptive_grad_clip is the same for its own order
    of dimensions, in which the outputs come last. The paper leaves out the last layer: give it to
    another rule, by partition.
    """
    allowed = clipping * maximum(unit_norm(w), eps)
    found = unit_norm(g)
    return where(found > allowed, g * (allowed / maximum(found, 1e-6)), g)
