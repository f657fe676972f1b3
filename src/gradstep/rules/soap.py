"""SOAP."""

from __future__ import annotations

from torch import Tensor

from gradstep.linalg.bases import rounding_as_inf, singular_basis, turned
from gradstep.linalg.batches import each
from gradstep.linalg.kronecker import along, as_rows, gram, pack, packed_length, unpack
from gradstep.rule import (
    Decay,
    NonNegative,
    Positive,
    Result,
    Value,
    lerp,
    new_weight,
    opaque,
    rule,
    shaped,
    sqrt,
    where,
)


@opaque
def rotate(x: Tensor, Q: Tensor, max_size: float) -> Tensor:
    """x in the bases of its dimensions: ``Q₁ᵀ X Q₂`` of a matrix."""
    return along(x, [None if q is None else q.mT for q in unpack(Q, x, max_size)])


@opaque
def rotate_back(x: Tensor, Q: Tensor, max_size: float) -> Tensor:
    """The inverse: ``Q₁ X Q₂ᵀ`` of a matrix."""
    return along(x, unpack(Q, x, max_size))


@opaque
def told_from_rounding(size: Tensor) -> Tensor:
    """Sizes in the bases, infinite where the bases have made them of nothing but rounding."""
    return rounding_as_inf(size)


@opaque(returns=("GG", "Q"))
def begin_and_average(
    g: Tensor, GG: Tensor, Q: Tensor, step: float, shampoo_beta: float, max_size: float
) -> tuple[Tensor, Tensor]:
    """The moving averages of ``G_i G_iᵀ``, with dimension i of the gradient as its rows.

    And at the first step the bases: the eigenvectors of these, which are the gradient's singular
    vectors. Taken from the gradient itself they have twice the digits.
    """
    averages = unpack(GG, g, max_size)
    if step == 1:
        bases = [
            None
            if average is None
            else each(lambda x: singular_basis(x, len(x)).to(x.dtype), as_rows(g, i))
            for i, average in enumerate(averages)
        ]
        Q = pack(bases, Q)
    made = [
        None if average is None else average.lerp(gram(g, i), 1 - shampoo_beta)
        for i, average in enumerate(averages)
    ]
    return pack(made, GG), Q


@opaque(returns=("exp_avg_sq", "Q"))
def turn(
    exp_avg_sq: Tensor,
    GG: Tensor,
    Q: Tensor,
    step: float,
    precondition_frequency: float,
    max_size: float,
) -> tuple[Tensor, Tensor]:
    """Every few steps, turn the bases towards the eigenvectors of the averages.

    By one step of the power method, for which the columns are brought in the order of their
    eigenvalues, and the averages of squares with them.
    """
    if step == 1 or (step - 1) % precondition_frequency:
        return exp_avg_sq, Q
    averages, bases = unpack(GG, exp_avg_sq, max_size), unpack(Q, exp_avg_sq, max_size)
    for i, (average, basis) in enumerate(zip(averages, bases, strict=True)):
        if average is None or basis is None:
            continue
        bases[i], order = each(turned, average, basis)
        shape = [1] * exp_avg_sq.dim()
        shape[0], shape[i + 1] = order.shape
        exp_avg_sq = exp_avg_sq.take_along_dim(order.view(shape), i + 1)
    return exp_avg_sq, pack(bases, Q)


@rule(lr=3e-3, class_name="SOAP")
def soap(
    g: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    GG: Value = shaped(packed_length, "max_size", only="matrix"),
    Q: Value = shaped(packed_length, "max_size", only="matrix"),
    *,
    w: Value,
    step: Value,
    lr: Value,
    is_matrix: bool,
    beta1: Decay = 0.95,
    beta2: Decay = 0.95,
    shampoo_beta: Decay = 0.95,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.01,
    precondition_frequency: Positive = 10,
    max_size: Positive = 10000,
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

    Hyperparameters:
        beta1: how much of the average gradient is kept at each step.
        beta2: how much of the average squared gradient is kept at each step.
        shampoo_beta: how much of the averages ``GG`` is kept at each step; the authors' code takes
            beta2 for it where none is given.
        eps: keeps the division from blowing up where gradients are tiny.
        weight_decay: shrinks the weight itself by lr · weight_decay, after the step.
        precondition_frequency: how many steps a basis is kept for.
        max_size: a larger dimension has no basis and is left as it is.

    Paper:
        Vyas et al. 2024, "SOAP: improving and stabilizing Shampoo using Adam", arXiv:2409.11321.

    Agrees with pytorch_optimizer's SOAP, which is the authors'.
    """
    t, moves = step - 1, step > 1
    exp_avg = where(moves, lerp(exp_avg, g, 1 - beta1), exp_avg)
    rotated = rotate(g, Q, max_size) if is_matrix else g
    average = rotate(exp_avg, Q, max_size) if is_matrix else exp_avg
    exp_avg_sq = where(moves, lerp(exp_avg_sq, rotated * rotated, 1 - beta2), exp_avg_sq)
    correction = sqrt(1 - beta2**t) / (1 - beta1**t)
    size = told_from_rounding(sqrt(exp_avg_sq)) if is_matrix else sqrt(exp_avg_sq)
    direction = where(moves, average / (size + eps), 0 * g)
    if is_matrix:
        direction = rotate_back(direction, Q, max_size)
        GG, Q = begin_and_average(g, GG, Q, step, shampoo_beta, max_size)
        exp_avg_sq, Q = turn(exp_avg_sq, GG, Q, step, precondition_frequency, max_size)
    moved = w - lr * where(moves, correction, 0) * direction
    after = where(moves, moved * (1 - lr * weight_decay), w)
    return new_weight(after), exp_avg, exp_avg_sq, GG, Q
