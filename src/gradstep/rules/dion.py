"""Dion and Dion2: a part of the momentum made orthogonal, the rest left for later."""

from __future__ import annotations

from typing import Annotated

from gradstep.linalg.power_steps import (
    decay_slices,
    orthogonal_slices,
    power_step,
    right_shape,
    whole,
)
from gradstep.rule import (
    Interval,
    NonNegative,
    Result,
    Share,
    Value,
    new_weight,
    rule,
    shaped,
    size,
    sqrt,
)
from gradstep.rules.orthogonal import MUON, Adjustment, Coefficients, Precision, adjusted


@rule(lr=0.01, class_name="Dion")
def dion(
    g: Value,
    momentum_buffer: Value = shaped(whole),
    right: Value = shaped(right_shape, "rank_fraction"),
    *,
    w: Value,
    lr: Value,
    step: Value,
    momentum: Share = 0.95,
    weight_decay: NonNegative = 0.01,
    rank_fraction: Annotated[float, Interval(1e-9, 1, closed=True)] = 1.0,
    seed: NonNegative = 0,
) -> Result:
    """Dion: Muon of low rank, by one step of the power method and with what it leaves kept.

    The gradient is added to M. P is an orthonormal basis of ``M Q``, R is ``Mᵀ P``; the direction
    is ``√(rows / columns) · P Q̂ᵀ`` with R's columns at the norm 1 as Q̂, the next Q, and M loses
    ``(1 − momentum) · P Rᵀ``. Where a matrix is wider than tall it is taken on its side. For
    weights of two dimensions.

    States:
        momentum_buffer: M, the sum of the gradients less what has gone into steps.
        right: Q, at first random.

    Hyperparameters:
        momentum: how much is kept of what goes into a step.
        weight_decay: shrinks the weight itself by lr · weight_decay, before its step.
        rank_fraction: how many columns Q has, as a share of the shorter side.
        seed: chooses the first Q.

    Paper:
        Ahn, Xu, Abreu & Langford 2025, "Dion: distributed orthonormalized updates",
        arXiv:2504.05295.

    Agrees with the authors' dion_reference, given the same first Q, with qr_method="qr" and epsilon
    0; that lays only matrices of a low rank on their side. Where M makes nothing but rounding of a
    column of Q, no step is made of it.
    """
    direction, momentum_buffer, right = power_step(g, momentum_buffer, right, step, momentum, seed)
    scale = sqrt(size(w, -2) / size(w, -1))
    return new_weight(w * (1 - lr * weight_decay) - lr * scale * direction), momentum_buffer, right


@rule(lr=0.01, class_name="Dion2")
def dion2(
    g: Value,
    momentum_buffer: Value,
    *,
    w: Value,
    lr: Value,
    fraction: Annotated[float, Interval(1e-9, 1, closed=True)] = 0.25,
    ef_decay: Share = 0.95,
    weight_decay: NonNegative = 0.01,
    ns_steps: Annotated[float, Interval(0, 100)] = 5,
    adjust_lr_fn: Adjustment | None = "unit_rms",
    coefficients: Coefficients = "fixed",
    precision: Precision = "bfloat16",
) -> Result:
    """Dion2: Muon of the largest rows alone, while the others wait and gather.

    The gradient is added to M. Of M's rows, or its columns where it is taller than wide, the
    fraction with the largest sums of absolute values is made orthogonal and moves the weight; of
    these M keeps the share ef_decay, of all others everything. For weights of two dimensions.

    States:
        momentum_buffer: M, the sum of the gradients less what has gone into steps.

    Hyperparameters:
        fraction: the share of rows or columns that moves.
        ef_decay: how much of M is kept of what has moved.
        weight_decay: shrinks the weight itself by lr · weight_decay, before its step.
        ns_steps: how many Newton–Schulz iterations.
        adjust_lr_fn: as in muon.
        coefficients: as in muon.
        precision: of the iteration, "bfloat16" or "float32".

    Paper:
        Ahn, Amsel & Langford 2025, "Dion2: a simple method to shrink matrix in Muon",
        arXiv:2512.16928.

    Takes the rows that the authors' Dion2 takes where one process has the whole matrix, and keeps
    what that keeps (read, not run beside it); their polynomial is that of
    coefficients="polar_express".
    """
    momentum_buffer = momentum_buffer + g
    direction = orthogonal_slices(
        momentum_buffer, *MUON, fraction, ns_steps, coefficients=coefficients, precision=precision
    )
    momentum_buffer = decay_slices(momentum_buffer, fraction, ef_decay)
    w = w * (1 - lr * weight_decay)
    return new_weight(w - lr * adjusted(direction, w, adjust_lr_fn)), momentum_buffer
