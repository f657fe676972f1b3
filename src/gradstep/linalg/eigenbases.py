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
from gradstep.linalg.turns import TOGETHER, block_numbers, has_turn
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


@opaque(returns=("Q",), due=lambda step, *_: step == 1)
def begin(g: Tensor, Q: Tensor, step: float, max_size: float, block_size: float) -> Tensor:
    """At the first step the bases: the eigenvectors of the averages.

    Which are the gradient's singular vectors; taken from the gradient itself they have twice the
    digits. Of each block by itself.
    """

    def of_block(g: Tensor, Q: Tensor) -> tuple[Tensor, ...]:
        return g, pack(first_bases(g, unpack(Q, g, max_size)), Q)

    return in_blocks(of_block, g, (Q,), max_size, block_size)[1]


@opaque(returns=("GG",))
def average(
    g: Tensor, GG: Tensor, shampoo_beta: float, max_size: float, block_size: float
) -> Tensor:
    """The moving averages of ``G_i G_iᵀ``, with dimension i of the gradient as its rows."""

    def of_block(g: Tensor, GG: Tensor) -> tuple[Tensor, ...]:
        made = [
            None if before is None else before.lerp(gram(g, i), 1 - shampoo_beta)
            for i, before in enumerate(unpack(GG, g, max_size))
        ]
        return g, pack(made, GG)

    return in_blocks(of_block, g, (GG,), max_size, block_size)[1]


def first_bases(g: Tensor, bases: list[Tensor | None]) -> list[Tensor | None]:
    """The gradient's singular vectors along each dimension that has a matrix."""
    return [
        None
        if basis is None
        else each(lambda x: singular_basis(x, len(x)).to(x.dtype), as_rows(g, i))
        for i, basis in enumerate(bases)
    ]


def _is_due(
    step: float, precondition_frequency: float, place: float, max_size: float, block_size: float
) -> bool:
    if step == 1:
        return False
    any_block = place != TOGETHER and block_size > 0
    return any_block or has_turn(step - 1, precondition_frequency, place)


@opaque(returns=("exp_avg_sq", "Q"), due=_is_due)
def turn(
    exp_avg_sq: Tensor,
    GG: Tensor,
    Q: Tensor,
    step: float,
    precondition_frequency: float,
    place: float,
    max_size: float,
    block_size: float,
) -> tuple[Tensor, ...]:
    """Every few steps, turn the bases towards the eigenvectors of the averages.

    By one step of the power method, for which the columns are brought in the order of their
    eigenvalues, and the averages of squares with them. Where weights have places, each block of
    each is turned at steps of its own.
    """
    numbers = block_numbers()

    def of_block(x: Tensor, GG: Tensor, Q: Tensor) -> tuple[Tensor, ...]:
        if not has_turn(step - 1, precondition_frequency, place, next(numbers)):
            return x, Q
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
