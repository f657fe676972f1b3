"""Torque-aware momentum: TAM and AdaTAM."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    NonNegative,
    Result,
    Value,
    dot,
    lerp,
    nonzero,
    norm,
    number,
    rule,
    sqrt,
    where,
)


@rule(class_name="TAM")
def tam(
    g: Value,
    momentum_buffer: Value,
    similarity: Value = number(0.0),
    *,
    w: Value,
    momentum: Decay = 0.9,
    decay_rate: Decay = 0.9,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """TAM: momentum that takes in less of a gradient the more that turns away from it.

    States:
        momentum_buffer: the running sum of the damped gradients.
        similarity: the moving average of the cosine between running sum and gradient.

    Hyperparameters:
        momentum: how much of the running sum is kept at each step.
        decay_rate: how much of the average cosine is kept at each step.
        eps: the least of a gradient that is taken in.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Malviya et al. 2024, "Torque-aware momentum", arXiv:2412.18790.

    As the paper has it, with one cosine for each weight; pytorch_optimizer has the products of
    numbers that are normalized along the first dimension in its place.
    """
    lengths = norm(momentum_buffer) * norm(g)
    cosine = where(lengths > 0, dot(momentum_buffer, g) / where(lengths > 0, lengths, 1), 0)
    similarity = lerp(similarity, cosine, 1 - decay_rate)
    momentum_buffer = momentum * momentum_buffer + ((1 + similarity) / 2 + eps) * g
    direction = momentum_buffer
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, momentum_buffer, similarity


@rule(class_name="AdaTAM")
def adatam(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    similarity: Value = number(0.0),
    *,
    w: Value,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    decay_rate: Decay = 0.9,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> Result:
    """AdaTAM: torque-aware momentum over the root of Adam's average square.

    States:
        exp_avg: the running sum of the damped gradients.
        exp_avg_sq: the moving average of the squared gradient.
        similarity: the moving average of the cosine between running sum and gradient.

    Hyperparameters:
        beta1: how much of the running sum is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        decay_rate: how much of the average cosine is kept at each step.
        eps: the least of a gradient that is taken in, and keeps the division from blowing up.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).

    Paper:
        Malviya et al. 2024, "Torque-aware momentum", arXiv:2412.18790.

    As the paper has it, with one cosine for each weight and without corrections of bias;
    pytorch_optimizer has the products of numbers that are normalized along the first dimension.
    """
    lengths = norm(exp_avg) * norm(g)
    cosine = where(lengths > 0, dot(exp_avg, g) / where(lengths > 0, lengths, 1), 0)
    similarity = lerp(similarity, cosine, 1 - decay_rate)
    exp_avg = beta1 * exp_avg + ((1 + similarity) / 2 + eps) * g
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
    direction = exp_avg / (sqrt(exp_avg_sq) + eps)
    if nonzero(weight_decay):
        direction = direction + weight_decay * w
    return direction, exp_avg, exp_avg_sq, similarity
