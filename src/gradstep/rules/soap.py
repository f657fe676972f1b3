"""SOAP."""

from __future__ import annotations

from typing import Annotated, Any

from gradstep.linalg.blocks import blocked_length
from gradstep.linalg.eigenbases import (
    average,
    begin,
    rotate,
    rotate_back,
    told_from_rounding,
    turn,
)
from gradstep.linalg.turns import turn_of
from gradstep.rule import (
    Decay,
    Interval,
    NonNegative,
    Positive,
    Result,
    Value,
    lerp,
    new_weight,
    place,
    rule,
    shaped,
    sqrt,
    where,
)
from gradstep.rules.orthogonal import Adjustment, Coefficients, Precision, adjusted, orthogonal


@rule(lr=3e-3, class_name="SOAP")
def soap(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    GG: Value = shaped(blocked_length, "max_size", "block_size", only="matrix"),
    Q: Value = shaped(blocked_length, "max_size", "block_size", only="matrix"),
    place: Value = place(when="in_turn"),
    *,
    w: Value,
    step: Value,
    lr: Value,
    beta1: Decay = 0.95,
    beta2: Decay = 0.95,
    shampoo_beta: Decay = 0.95,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.01,
    precondition_frequency: Positive = 10,
    in_turn: bool = False,
    max_size: Positive = 10000,
    block_size: NonNegative = 0,
) -> Result:
    """SOAP: Adam in the basis of Shampoo's eigenvectors.

    The first step only finds the basis and changes no weight. A vector has no basis: for it this is
    Adam.

    Where the first gradient has nothing (along the longer side of a matrix always), eigenvectors
    are arbitrary, and the power method makes others of rounding. Here the basis hangs on the
    gradients alone: of the space where the first one has nothing it has the principal axes of the
    weight's own axes, it is turned only where the averages are more than rounding, and no step is
    made where the average square is rounding of the largest.

    States:
        exp_avg: the moving average of the gradient.
        exp_avg_sq: the moving average of the square of the gradient in the rotated basis.
        GG: for each dimension the moving average of ``G_i G_iᵀ``, one after the other.
        Q: for each dimension the basis, as columns.
        place: where the weight is among those of its group, the largest first.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        shampoo_beta: how much of the averages ``GG`` is kept at each step; the authors' code takes
            beta2 for it where none is given.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: shrinks the weight itself by lr · weight_decay, after the step.
        precondition_frequency: how many steps a basis is kept for.
        in_turn: each weight, and each block, turns its bases at steps of its own, so that no step
            does so for all; at the first step all begin.
        max_size: a larger dimension has no basis and is left as it is.
        block_size: weights are cut into blocks with sides of at most this, each with bases of its
            own, in proportion less work for large ones; 0 for weights as they are.

    Paper:
        Vyas et al. 2024, "SOAP: improving and stabilizing Shampoo using Adam", arXiv:2409.11321.

    Agrees with pytorch_optimizer's SOAP, which is the authors'.
    """
    direction, exp_avg, exp_avg_sq = adam_in_bases(
        g, exp_avg, exp_avg_sq, Q, step, beta1, beta2, eps, max_size, block_size
    )
    if Q is not None:
        Q = begin(g, Q, step, max_size, block_size)
        GG = average(g, GG, shampoo_beta, max_size, block_size)
        exp_avg_sq, Q = turn(
            exp_avg_sq, GG, Q, step, precondition_frequency, turn_of(place), max_size, block_size
        )
    moved = w - lr * corrections(step, beta1, beta2) * direction
    after = where(step > 1, moved * (1 - lr * weight_decay), w)
    return new_weight(after), exp_avg, exp_avg_sq, GG, Q, place


def adam_in_bases(
    g: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    Q: Any,
    step: Any,
    beta1: Any,
    beta2: Any,
    eps: Any,
    max_size: Any,
    block_size: Any = 0,
) -> tuple[Any, Any, Any]:
    """Adam's direction in the bases Q, without the corrections, and its averages.

    At the first step, which only finds the bases, the direction is 0 and averages stay.
    """
    moves = step > 1
    exp_avg = where(moves, lerp(exp_avg, g, 1 - beta1), exp_avg)
    rotated = g if Q is None else rotate(g, Q, max_size, block_size)
    average = exp_avg if Q is None else rotate(exp_avg, Q, max_size, block_size)
    exp_avg_sq = where(moves, lerp(exp_avg_sq, rotated * rotated, 1 - beta2), exp_avg_sq)
    size = sqrt(exp_avg_sq) if Q is None else told_from_rounding(sqrt(exp_avg_sq))
    direction = where(moves, average / (size + eps), 0 * g)
    if Q is not None:
        direction = rotate_back(direction, Q, max_size, block_size)
    return direction, exp_avg, exp_avg_sq


def corrections(step: Any, beta1: Any, beta2: Any) -> Any:
    """Of Adam's averages, which begin with the second step."""
    t, moves = step - 1, step > 1
    correction = sqrt(1 - beta2**t) / (1 - beta1**t)
    return where(moves, correction, 0)


@rule(lr=3e-3, class_name="SOAPMuon")
def soap_muon(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    GG: Value = shaped(blocked_length, "max_size", "block_size", only="matrix"),
    Q: Value = shaped(blocked_length, "max_size", "block_size", only="matrix"),
    place: Value = place(when="in_turn"),
    *,
    w: Value,
    step: Value,
    lr: Value,
    beta1: Decay = 0.95,
    beta2: Decay = 0.95,
    shampoo_beta: Decay = 0.95,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.01,
    precondition_frequency: Positive = 10,
    in_turn: bool = False,
    max_size: Positive = 10000,
    block_size: NonNegative = 0,
    ns_steps: Annotated[float, Interval(0, 100)] = 5,
    adjust_lr_fn: Adjustment | None = "match_rms_adamw",
    coefficients: Coefficients = "fixed",
    flatten: bool = False,
    split: Any = None,
    precision: Precision = "bfloat16",
) -> Result:
    """SOAP with Muon's step: SOAP's direction with all its singular values brought near 1.

    All else is as in SOAP: the first step only finds the bases. For weights of two
    dimensions; of more with ``flatten``.

    States:
        exp_avg: the moving average of the gradient.
        exp_avg_sq: the moving average of the square of the gradient in the rotated basis.
        GG: for each dimension the moving average of ``G_i G_iᵀ``, one after the other.
        Q: for each dimension the basis, as columns.
        place: where the weight is among those of its group, the largest first.

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        shampoo_beta: how much of the averages ``GG`` is kept at each step.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: shrinks the weight itself by lr · weight_decay, after the step.
        precondition_frequency: how many steps a basis is kept for.
        in_turn: each weight, and each block, turns its bases at steps of its own, so that no step
            does so for all; at the first step all begin.
        max_size: a larger dimension has no basis and is left as it is.
        block_size: weights are cut into blocks with sides of at most this, each with bases of its
            own, in proportion less work for large ones; 0 for weights as they are.
        ns_steps: how many Newton–Schulz iterations.
        adjust_lr_fn: as in muon.
        coefficients: as in muon.
        flatten: as in muon: all dimensions behind the first are columns, as of filters.
        split: as in muon: parts that are made orthogonal each by itself.
        precision: of the iteration, "bfloat16" or "float32".

    Paper:
        None; a record of the speed runs of nanoGPT of 2026 in the fewest steps.
    """
    direction, exp_avg, exp_avg_sq = adam_in_bases(
        g, exp_avg, exp_avg_sq, Q, step, beta1, beta2, eps, max_size, block_size
    )
    direction = orthogonal(
        direction, ns_steps, coefficients, precision, split, adjust_lr_fn, flatten
    )
    direction = adjusted(direction, w, adjust_lr_fn, split, flatten)
    if Q is not None:
        Q = begin(g, Q, step, max_size, block_size)
        GG = average(g, GG, shampoo_beta, max_size, block_size)
        exp_avg_sq, Q = turn(
            exp_avg_sq, GG, Q, step, precondition_frequency, turn_of(place), max_size, block_size
        )
    after = where(step > 1, (w - lr * direction) * (1 - lr * weight_decay), w)
    return new_weight(after), exp_avg, exp_avg_sq, GG, Q, place
