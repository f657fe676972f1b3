"""Matrices for the dimensions of a weight, as Shampoo and SOAP keep them.

A weight of the shape (d₁, d₂, …) has a matrix of d₁ × d₁ for its first dimension, one of d₂ × d₂
for its second, and so on; none for a dimension larger than ``max_size``, which is left alone. They
lie one after the other in one state. All is for functions with ``@opaque`` above them: ``x`` and
the matrices come in batches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradstep.linalg.batches import each, product
from gradstep.linalg.gram import gram as gram_of_one


def packed_length(shape: tuple[int, ...], max_size: float) -> tuple[int]:
    """The shape of the state that holds the matrices of a weight; never empty."""
    return (max(1, sum(d * d for d in shape if d <= max_size)),)


def stacked_length(shape: tuple[int, ...], max_size: float) -> tuple[int, int]:
    """The shape of such a state where a weight is a stack of matrices, its last two dimensions."""
    return torch.Size(shape[:-2]).numel(), packed_length(shape[-2:], max_size)[0]


def unpack(state: Tensor, x: Tensor, max_size: float) -> list[Tensor | None]:
    """The matrices in a state: views, one for each dimension; None for one without."""
    found: list[Tensor | None] = []
    start = 0
    for d in x.shape[1:]:
        if d > max_size:
            found.append(None)
            continue
        found.append(state[:, start : start + d * d].view(-1, d, d))
        start += d * d
    return found


def pack(matrices: list[Tensor | None], state: Tensor) -> Tensor:
    """The matrices as one state, of the shape of ``state``."""
    flat = [m.reshape(len(m), -1) for m in matrices if m is not None]
    return torch.cat(flat, dim=1) if flat else state


def gram(x: Tensor, dimension: int) -> Tensor:
    """``X Xᵀ``, with a dimension of x as X's rows."""
    made: Tensor = each(gram_of_one, as_rows(x, dimension))
    return made


def as_rows(x: Tensor, dimension: int) -> Tensor:
    """x as matrices, with a dimension (counted from 0, without the batch's) as their rows."""
    return x.movedim(dimension + 1, 1).reshape(len(x), x.shape[dimension + 1], -1)


def along(x: Tensor, matrices: list[Tensor | None]) -> Tensor:
    """x with each of its dimensions multiplied by its matrix: ``M₁ X M₂ᵀ`` of a matrix."""
    last = len(matrices) - 1
    for place, matrix in enumerate(matrices):
        if matrix is None:
            continue
        if place and place == last:  # so that what comes lies in the order of rows
            x = product(x.reshape(len(x), -1, x.shape[-1]), matrix.mT).view(x.shape)
        else:
            shape = x.movedim(place + 1, 1).shape
            x = product(matrix, as_rows(x, place)).view(shape).movedim(1, place + 1)
    return x


def symmetric_power(matrices: Tensor, eps: float, power: float) -> Tensor:
    """Powers of symmetric matrices, ``eps`` added to their eigenvalues first."""

    def of_one(matrix: Tensor) -> Tensor:
        # What is no number would be an error in the midst of a step.
        values, vectors = _eigenvectors(matrix.nan_to_num(0.0, 0.0, 0.0))
        values = values + 0 * matrix.sum()
        return gram_of_one(vectors * (values.clamp(min=0) + eps).pow(power / 2))

    made: Tensor = each(of_one, matrices)
    return made


def _eigenvectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of a symmetric matrix, in its own dtype.

    The matrix has been rounded to that already, so that more digits would be those of its rounding,
    and take 2.4 times as long. But in float32 LAPACK does not always come to an end with sums of a
    network's gradients, whose eigenvalues are mostly 0.
    """
    try:
        return torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:
        values, vectors = torch.linalg.eigh(matrix.double())
        return values.to(matrix.dtype), vectors.to(matrix.dtype)
