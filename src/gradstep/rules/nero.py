"""Nero."""

from __future__ import annotations

from gradstep.rule import (
    Decay,
    Positive,
    Result,
    Value,
    abs,
    lerp,
    maximum,
    mean,
    new_weight,
    norm,
    number,
    rule,
    size,
    sqrt,
    sum,
    where,
    zeros,
)


@rule(lr=0.01, class_name="Nero")
def nero(
    g: Value,
    exp_avg_sq: Value = zeros(),
    scale: Value = number(0.0),
    *,
    w: Value,
    step: Value,
    lr: Value,
    first: Value,
    is_matrix: bool,
    beta: Decay = 0.999,
    eps: Positive = 1e-8,
    constraints: bool = True,
) -> Result:
    """Nero: each neuron turns by the same angle, and its weights keep a mean of 0 and a norm of 1.

    A neuron is what feeds one output: a row of a matrix, one filter of a convolution; of a weight
    of one dimension, such as a bias, each element by itself. Neurons of one input alone have a mean
    of 0 and nothing else: leave constraints out for them.

    States:
        exp_avg_sq: the moving average of the squared norm of the neuron's gradient, at each of its
            elements.
        scale: the mean norm of the layer's neurons at the start, or 0.01 where that is 0.

    Hyperparameters:
        beta: how much of the average squared norm is kept at each step.
        eps: keeps the divisions from blowing up where gradients or weights are tiny.
        constraints: bring each neuron to a mean of 0 and a norm of 1, before the first step and
            after each.

    Paper:
        Liu, Bernstein, Meister & Yue 2021, "Learning by turning: neural architecture aware
        optimisation", arXiv:2102.07227.

    Agrees with pytorch_optimizer. The authors' code brings neurons to their norm when the optimizer
    is made, and adds no eps; here it is done at the first step, as a part of it. A step with a
    learning rate of 0 changes nothing.
    """
    held = is_matrix and constraints
    start = where(first, _unit(w, eps), w) if held else w
    length = norm(start, "unit") if is_matrix else abs(w)
    scale = where(first, where(mean(length) > 0, mean(length), 0.01), scale)
    turn = norm(g, "unit") if is_matrix else abs(g)
    exp_avg_sq = lerp(exp_avg_sq, turn * turn, 1 - beta)
    moved = start - lr * scale * (g / (sqrt(exp_avg_sq / (1 - beta**step)) + eps))
    if held:  # both sums in one reading: a mean that was 0 before the step is small behind it
        middle = mean(moved, "unit")
        square = sum(moved * moved, "unit") - size(w, "unit") * middle * middle
        moved = (moved - middle) / (sqrt(maximum(square, 0)) + eps)
    return new_weight(where(lr > 0, moved, w)), exp_avg_sq, scale


def _unit(w: Value, eps: float) -> Value:
    """Each neuron with a mean of 0 and a norm of 1."""
    centred = w - mean(w, "unit")
    return centred / (norm(centred, "unit") + eps)
