"""A number a row and a number a column whose products are nearest to a matrix of squares.

A weight of more than two dimensions is a stack of matrices, its last two dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradstep.linalg.batches import each
from gradstep.rule import opaque


def a_row(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a number for each row of a stack of matrices."""
    return tuple(shape[:-1])


def a_column(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a number for each column."""
    return (*shape[:-2], shape[-1])


@opaque(returns=("rows", "columns"))
def average_scales(
    g: Tensor, rows: Tensor, columns: Tensor, beta: float, iterations: float
) -> tuple[Tensor, Tensor]:
    """The moving averages of q and s with ``q sᵀ ≈ G²``, by the power method.

    ``s = (G²)ᵀ q / |q|²`` and ``q = G² s / |s|²`` from q = 1, each a number of times.

    Args:
        g: (batch, …, rows, columns): the gradient.
        rows, columns: (batch, …, rows) and (batch, …, columns): the averages.
        beta: how much of them is kept.
        iterations: how many times.
    """

    def of_one(x: Tensor) -> tuple[Tensor, Tensor]:
        largest, tiny = x.abs().max(), torch.finfo(x.dtype).tiny
        square = (x / largest.clamp(min=tiny)).square()
        q = torch.ones_like(square[:, 0])
        for _ in range(int(iterations)):
            s = square.mT @ q / (q @ q).clamp(min=tiny)
            q = square @ s / (s @ s).clamp(min=tiny)
        return q, s * largest.square()

    q, s = each(of_one, g.reshape(-1, *g.shape[-2:]))
    return rows.lerp(q.view(rows.shape), 1 - beta), columns.lerp(s.view(columns.shape), 1 - beta)


@opaque
def scale_by_root(x: Tensor, rows: Tensor, columns: Tensor, eps: float) -> Tensor:
    """``x / (√(rows · columns) + eps)``.

    Args:
        x: (batch, …, rows, columns).
        rows, columns: (batch, …, rows) and (batch, …, columns).
        eps: is added to the root.
    """
    return x / (rows.sqrt().unsqueeze(-1) * columns.sqrt().unsqueeze(-2) + eps)
