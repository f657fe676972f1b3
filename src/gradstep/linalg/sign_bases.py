"""Signs of matrices in their eigenbases, as SPlus has them.

A weight of more than two dimensions is a stack of matrices, its last two dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradstep.linalg.bases import eigenbasis, rounding_as_inf, singular_basis
from gradstep.linalg.batches import each
from gradstep.linalg.kronecker import along, as_rows, gram, pack, unpack
from gradstep.linalg.turns import has_turn
from gradstep.rule import opaque


@opaque
def sign_in_bases(x: Tensor, Q: Tensor, max_size: float) -> Tensor:
    """``Q₁ sign(Q₁ᵀ X Q₂) Q₂ᵀ``, the sign of what is rounding of the largest 0.

    Args:
        x: (batch, …, rows, columns).
        Q: (batch, matrices, length): the bases of each.
        max_size: a larger dimension has none.
    """
    matrices = x.reshape(-1, *x.shape[-2:])
    bases = unpack(Q.flatten(0, 1), matrices, max_size)
    rotated = along(matrices, [None if q is None else q.mT for q in bases])
    there = rounding_as_inf(rotated.abs()).isfinite()
    return along(torch.where(there, rotated.sign(), 0), bases).view(x.shape)


@opaque(returns=("GG",))
def average(g: Tensor, GG: Tensor, beta2: float, max_size: float) -> Tensor:
    """The averages of ``G Gᵀ`` and ``Gᵀ G``.

    Args:
        g: (batch, …, rows, columns): the gradient.
        GG: (batch, matrices, length): the averages.
        beta2: how much of the averages is kept.
        max_size: a larger dimension has none.
    """
    x, averages = g.reshape(-1, *g.shape[-2:]), GG.flatten(0, 1)
    made = [
        None if before is None else before.lerp(gram(x, i), 1 - beta2)
        for i, before in enumerate(unpack(averages, x, max_size))
    ]
    return pack(made, averages).view(GG.shape)


def _is_due(step: float, inverse_steps: float, place: float, max_size: float) -> bool:
    return step == 1 or has_turn(step, inverse_steps, place)


@opaque(returns=("Q",), due=_is_due)
def find(
    g: Tensor,
    GG: Tensor,
    Q: Tensor,
    step: float,
    inverse_steps: float,
    place: float,
    max_size: float,
) -> Tensor:
    """Every few steps the eigenvectors of the averages.

    At the first step these are the gradient's singular vectors; from it they have twice the digits.

    Args:
        g: (batch, …, rows, columns): the gradient.
        GG, Q: (batch, matrices, length): the averages and the bases.
        step: 1 at the first.
        inverse_steps: how many steps bases are kept for.
        place: whose turn it is, see :func:`gradstep.linalg.turns.has_turn`.
        max_size: a larger dimension has neither.
    """
    x, bases = g.reshape(-1, *g.shape[-2:]), Q.flatten(0, 1)
    found = [
        None if average is None else _basis(as_rows(x, i) if step == 1 else average, step == 1)
        for i, average in enumerate(unpack(GG.flatten(0, 1), x, max_size))
    ]
    return pack(found, bases).view(Q.shape)


def _basis(matrices: Tensor, singular: bool) -> Tensor:
    def of_one(matrix: Tensor) -> Tensor:
        found = singular_basis(matrix, len(matrix)) if singular else eigenbasis(matrix)
        return found.to(matrix.dtype)

    basis: Tensor = each(of_one, matrices)
    return basis
