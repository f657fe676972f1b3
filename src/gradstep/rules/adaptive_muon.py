"""NorMuon and AdaMuon: Muon with a second moment of what is orthogonal."""

from __future__ import annotations

from typing import Annotated, Any

from gradstep.rule import (
    Decay,
    Interval,
    NonNegative,
    Result,
    Value,
    lerp,
    mean,
    new_weight,
    norm,
    per_row,
    rule,
    sign,
    size,
    sqrt,
    where,
)
from gradstep.rules.orthogonal import Adjustment, Coefficients, Precision, adjusted, orthogonal


@rule(lr=0.02, class_name="NorMuon")
def normuon(
    g: Value,
    momentum_buffer: Value,
    row_sq: Value = per_row(),
    *,
    w: Value,
    lr: Value,
    momentum: Decay = 0.95,
    beta2: Decay = 0.95,
    nesterov: bool = True,
    weight_decay: NonNegative = 0.0,
    eps: NonNegative = 1e-10,
    ns_steps: Annotated[float, Interval(0, 100)] = 5,
    adjust_lr_fn: Adjustment | None = None,
    coefficients: Coefficients = "fixed",
    split: Any = None,
    precision: Precision = "bfloat16",
) -> Result:
    """NorMuon: Muon whose rows, which are neurons, are brought to one size by what they have seen.

    The orthogonal direction O is divided by √r + eps, with the average r of each row's mean square
    of O, and given back its norm. For weights of two dimensions, and of more as stacks of matrices.

    States:
        momentum_buffer: the moving average of the gradient.
        row_sq: the moving average r.

    Hyperparameters:
        momentum: how much of the average gradient is kept at each step.
        beta2: how much of the average of the rows is kept at each step.
        nesterov: look ahead: mix the gradient in once more.
        weight_decay: shrinks the weight itself by lr · weight_decay, before its step.
        eps: is added to √r.
        ns_steps: how many Newton–Schulz iterations.
        adjust_lr_fn: as in muon; "match_rms_adamw" is the scale of the paper.
        coefficients: as in muon.
        split: as in muon: parts that are made orthogonal each by itself.
        precision: of the iteration, "bfloat16" or "float32".

    Paper:
        Li et al. 2025, "NorMuon: making Muon more efficient and scalable", arXiv:2510.05491.

    Agrees with pytorch_optimizer's NorMuon. Emerging-Optimizers' averages along the longer side,
    and r is at least eps to it. No average is corrected for its start at 0, as nowhere.
    """
    momentum_buffer = lerp(momentum_buffer, g, 1 - momentum)
    average = lerp(g, momentum_buffer, momentum) if nesterov else momentum_buffer
    direction = orthogonal(average, ns_steps, coefficients, precision, split, adjust_lr_fn)
    length = norm(direction)
    if row_sq is not None:  # a vector, which has no rows, is refused
        row_sq = lerp(row_sq, mean(direction * direction, -1), 1 - beta2)
        direction = direction / (sqrt(row_sq) + eps)
    even = direction * where(norm(direction) > 0, length / norm(direction), 0)
    w = w * (1 - lr * weight_decay)
    return new_weight(w - lr * adjusted(even, w, adjust_lr_fn, split)), momentum_buffer, row_sq


@rule(lr=1e-3, class_name="AdaMuon")
def adamuon(
    g: Value,
    momentum_buffer: Value,
    exp_avg_sq: Value,
    *,
    w: Value,
    lr: Value,
    step: Value,
    momentum: Decay = 0.95,
    beta2: Decay = 0.95,
    nesterov: bool = True,
    of_signs: bool = True,
    weight_decay: NonNegative = 0.0,
    eps: NonNegative = 1e-8,
    scale: NonNegative = 0.2,
    ns_steps: Annotated[float, Interval(0, 100)] = 5,
    coefficients: Coefficients = "fixed",
    flatten: bool = False,
    split: Any = None,
    precision: Precision = "bfloat16",
) -> Result:
    """AdaMuon: Muon with Adam's second moment of each element of what is orthogonal.

    The orthogonal direction O is divided by √v + eps, with the average v of O², corrected for its
    start at 0, and made as long as that each element is of the size ``scale``, as with AdamW. For
    weights of two dimensions, and of more as stacks of matrices.

    States:
        momentum_buffer: the moving average of the gradient.
        exp_avg_sq: the moving average v.

    Hyperparameters:
        momentum: how much of the average gradient is kept at each step.
        beta2: how much of the average square is kept at each step.
        nesterov: look ahead: mix the gradient in once more.
        of_signs: make the signs of the average gradient orthogonal, not itself.
        weight_decay: shrinks the weight itself by lr · weight_decay, before its step.
        eps: is added to √v.
        scale: the root mean square of the direction.
        ns_steps: how many Newton–Schulz iterations.
        coefficients: as in muon.
        flatten: as in muon: all dimensions behind the first are columns, as of filters.
        split: as in muon: parts that are made orthogonal each by itself.
        precision: of the iteration, "bfloat16" or "float32".

    Paper:
        Si, Zhang & Shen 2025, "AdaMuon: adaptive Muon optimizer", arXiv:2507.11005.

    Follows the paper's formula. pytorch_optimizer's AdaMuon takes no signs and does not look ahead;
    with of_signs=False, nesterov=False and momentum=0.9 it has these numbers, but that it goes on
    in bfloat16 behind the iteration, which leaves two digits of each step.
    Emerging-Optimizers' does not correct v.
    """
    momentum_buffer = lerp(momentum_buffer, g, 1 - momentum)
    average = lerp(g, momentum_buffer, momentum) if nesterov else momentum_buffer
    average = sign(average) if of_signs else average
    direction = orthogonal(average, ns_steps, coefficients, precision, split, flatten=flatten)
    exp_avg_sq = lerp(exp_avg_sq, direction * direction, 1 - beta2)
    direction = direction / (sqrt(exp_avg_sq / (1 - beta2**step)) + eps)
    length = norm(direction)
    direction = scale * sqrt(size(w)) * where(length > 0, 1 / length, 0) * direction
    return new_weight(w * (1 - lr * weight_decay) - lr * direction), momentum_buffer, exp_avg_sq
