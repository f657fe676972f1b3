"""AdamP and SGDP."""

from __future__ import annotations

from typing import Any

from gradstep.rule import (
    Decay,
    NonNegative,
    Result,
    Value,
    abs,
    dot,
    lerp,
    max,
    maximum,
    nonzero,
    norm,
    rule,
    size,
    sqrt,
    where,
    zeros,
)


@rule(lr=1e-3, class_name="AdamP")
def adamp(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    *,
    w: Value,
    step: Value,
    is_matrix: bool,
    beta1: Decay = 0.9,
    beta2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    delta: NonNegative = 0.1,
    wd_ratio: NonNegative = 0.1,
) -> Result:
    """AdamP: Adam that keeps weights from growing where only their direction counts.

    Before a normalisation layer the size of weights does not matter, and their gradient stands at a
    right angle to them. Where it is seen to, the part of the step along the weights is taken out.

    States:
        exp_avg: the moving average of the gradient.
        exp_avg_sq: the moving average of the squared gradient.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        eps: keeps the divisions from blowing up where gradients or weights are tiny.
        weight_decay: shrinks the weight by lr · weight_decay (decoupled).
        delta: the largest cosine of gradient and weights that counts as a right angle, times the
            root of how many there are.
        wd_ratio: what share of the weight decay is left where something was taken out.

    Paper:
        Heo et al. 2020, "AdamP: slowing down the slowdown for momentum optimizers on
        scale-invariant weights", arXiv:2006.08217.

    Agrees with the authors' adamp and timm for weights of up to two dimensions: first the rows of a
    matrix are tried, then all of it; vectors are left alone. Beyond two dimensions only all of a
    weight is tried, where theirs first try what belongs to each output channel. pytorch_optimizer
    adds eps before the second average is corrected. The paper's Nesterov form is left out.
    """
    exp_avg = lerp(exp_avg, g, 1 - beta1)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (g * g)
    correction1, correction2 = 1 - beta1**step, sqrt(1 - beta2**step)
    direction = correction2 / correction1 * (exp_avg / (sqrt(exp_avg_sq) + eps * correction2))
    share = 1
    if is_matrix:
        direction, share = _projected(direction, g, w, delta, wd_ratio, eps)
    if nonzero(weight_decay):
        direction = direction + weight_decay * share * w
    return direction, exp_avg, exp_avg_sq


@rule(lr=0.1, class_name="SGDP")
def sgdp(
    g: Value,
    momentum_buffer: Value = zeros(when="momentum"),
    *,
    w: Value,
    is_matrix: bool,
    momentum: Decay = 0.9,
    weight_decay: NonNegative = 0.0,
    eps: NonNegative = 1e-8,
    delta: NonNegative = 0.1,
    wd_ratio: NonNegative = 0.1,
    nesterov: bool = False,
) -> Result:
    """SGDP: momentum that keeps weights from growing where only their direction counts.

    What AdamP is to Adam: where gradient and weights stand at a right angle, the part of the step
    along the weights is taken out.

    States:
        momentum_buffer: the velocity, a decaying sum of past directions.

    Hyperparameters:
        momentum: how much of the velocity is kept at each step.
        weight_decay: shrinks the weight by lr · weight_decay / (1 − momentum) (decoupled).
        eps: keeps the divisions from blowing up where gradients or weights are tiny.
        delta: the largest cosine of gradient and weights that counts as a right angle, times the
            root of how many there are.
        wd_ratio: what share of the weight decay is left where something was taken out.
        nesterov: look ahead: add the new velocity to the gradient once more.

    Paper:
        Heo et al. 2020, "AdamP: slowing down the slowdown for momentum optimizers on
        scale-invariant weights", arXiv:2006.08217.

    Agrees with the paper and timm for weights of up to two dimensions, see AdamP. The authors'
    adamp takes the part along the weights out of the velocity itself unless nesterov is set. The
    momentum is that of the paper's experiments, where both libraries have 0 unless told otherwise;
    both can also damp the velocity.
    """
    direction = g
    if nonzero(momentum):
        momentum_buffer = momentum * momentum_buffer + g
        direction = g + momentum * momentum_buffer if nesterov else momentum_buffer
    share = 1
    if is_matrix:
        direction, share = _projected(direction, g, w, delta, wd_ratio, eps)
    if nonzero(weight_decay):
        direction = direction + weight_decay / (1 - momentum) * share * w
    return direction, momentum_buffer


def _projected(
    direction: Value, g: Value, w: Value, delta: float, ratio: float, eps: float
) -> tuple[Value, Any]:
    """The direction without its part along the weights, where that is to go; the decay's share."""
    row_size, whole_size = norm(w, -1), norm(w)
    row_cosine = abs(dot(g, w, -1)) / (maximum(norm(g, -1), eps) * maximum(row_size, eps))
    whole_cosine = abs(dot(g, w)) / (maximum(norm(g), eps) * maximum(whole_size, eps))
    one_matrix = size(w) == size(w, -1) * size(w, -2)
    in_rows = max(row_cosine) < where(one_matrix, delta / sqrt(size(w, -1)), -1)
    in_whole = whole_cosine < delta / sqrt(size(w))
    row_part = dot(w, direction, -1) / (row_size + eps) ** 2
    whole_part = dot(w, direction) / (whole_size + eps) ** 2
    part = where(in_rows, row_part, where(in_whole, whole_part, 0))
    return direction - part * w, where(in_rows | in_whole, ratio, 1)
