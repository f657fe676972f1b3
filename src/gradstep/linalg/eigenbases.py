"""Weights in bases of eigenvectors, one basis for each dimension, as SOAP and its kin have them.

The averages ``GG`` and the bases ``Q`` of all dimensions lie one after the other in a state each,
as :mod:`gradstep.linalg.kronecker` says.
"""

from __future__ import annotations

import math

from torch import Tensor

from gradstep.linalg.bases import rounding_as_inf, singular_basis, turned
from gradstep.linalg.batches import each
from gradstep.linalg.blocks import in_blocks
from gradstep.linalg.kronecker import along, as_rows, gram, pack, unpack
from gradstep.rule import opaque


@opaque
def rotate(x: Tensor, Q: Tensor, max_size: float, block_size: float) -> Tensor:
    """x in the bases of its dimensions: ``Q₁ᵀ X Q₂`` of a matrix, or of each of its blocks."""

    def of_block(x: Tensor, Q: Tensor) -> tuple[Tensor]:
        return (along(x, [None if q is None else q.mT for q in unpack(Q, x, max_size)]),)

    return in_blocks(of_block, x, (Q,), max_size, block_size)[0]


@opaque
def rotate_back(x: Tensor, Q: Tensor, max_size: float, block_size: float) -> Tensor:
    """The inverse: ``Q₁ X Q₂ᵀ`` of a matrix, or of each of its blocks."""

    def of_block(x: Tensor, Q: Tensor) -> tuple[Tensor]:
        return (along(x, unpack(Q, x, max_size)),)

    return in_blocks(of_block, x, (Q,), max_size, block_size)[0]


@opaque(cost=math.prod)
def told_from_rounding(size: Tensor) -> Tensor:
    """Sizes in the bases, infinite where the bases have made them of nothing but rounding."""
    return rounding_as_inf(size)


@opaque(returns=("GG", "Q"))
def begin_and_average(
    g: Tensor,
    GG: Tensor,
    Q: Tensor,
    step: float,
    shampoo_beta: float,
    max_size: float,
    block_size: float,
) -> tuple[Tensor, Tensor]:
    """The moving averages of ``G_i G_iᵀ``, with dimension i of the gradient as its rows.

    And at the first step the bases: the eigenvectors of these, which are the gradient's singular
    vectors. Taken from the gradient itself they have twice the digits. Of each block by itself.
    """

    def of_block(g: Tensor, GG: Tensor, Q: Tensor) -> tuple[Tensor, ...]:
        averages = unpack(GG, g, max_size)
        if step == 1:
            Q = pack(first_bases(g, averages), Q)
        made = [
            None if average is None else average.lerp(gram(g, i), 1 - shampoo_beta)
            for i, average in enumerate(averages)
        ]
        return g, pack(made, GG), Q

    _, GG, Q = in_blocks(of_block, g, (GG, Q), max_size, block_size)
    return GG, Q


def first_bases(g: Tensor, averages: list[Tensor | None]) -> list[Tensor | None]:
    """The gradient's singular vectors along each dimension that has a matrix."""
    return [
        None
        if average is None
        else each(lambda x: singular_basis(x, len(x)).to(x.dtype), as_rows(g, i))
        for i, average in enumerate(averages)
    ]


@opaque(returns=("exp_avg_sq", "Q"))
def turn(
    exp_avg_sq: Tensor,
    GG: Tensor,
    Q: Tensor,
    step: float,
    precondition_frequency: float,
    max_size: float,
    block_size: float,
) -> tuple[Tensor, ...]:
    """Every few steps, turn the bases towards the eigenvectors of the averages.

    By one step of the power method, for which the columns are brought in the order of their
    eigenvalues, and the averages of squares with them.
    """
    if step == 1 or (step - 1) % precondition_frequency:
        return exp_avg_sq, Q

    def of_block(x: Tensor, GG: Tensor, Q: Tensor) -> tuple[Tensor, ...]:
        averages, bases = unpack(GG, x, max_size), unpack(Q, x, max_size)
        for i, (average, basis) in enumerate(zip(averages, bases, strict=True)):
            if average is None or basis is None:
                continue
            bases[i], order = each(turned, average, basis)
            shape = [1] * x.dim()
            shape[0], shape[i + 1] = order.shape
            x = x.take_along_dim(order.view(shape), i + 1)
        return x, pack(bases, Q)

    return in_blocks(of_block, exp_avg_sq, (GG, Q), max_size, block_size)
