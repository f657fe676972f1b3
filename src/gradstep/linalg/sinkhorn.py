"""Matrices with rows of one norm and columns of one norm."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradstep.linalg.batches import each
from gradstep.rule import opaque


@opaque(cost=math.prod)
def sinkhorn(x: Tensor, iterations: float) -> Tensor:
    """Scale rows to the norm √columns, then columns to √rows, again and again.

    What is 0 in a whole row or column stays 0.

    Args:
        x: (batch, …, rows, columns).
        iterations: how many times.
    """
    rows, columns = x.shape[-2:]

    def of_one(matrix: Tensor) -> Tensor:
        for _ in range(int(iterations)):
            matrix = _with_norm(matrix, columns**0.5, -1)
            matrix = _with_norm(matrix, rows**0.5, -2)
        return matrix

    scaled: Tensor = each(of_one, x.reshape(-1, rows, columns))
    return scaled.view(x.shape)


def _with_norm(x: Tensor, wanted: float, dim: int) -> Tensor:
    # Squares of small numbers are 0 in float32.
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.float64)
    return x * torch.where(norm > 0, wanted / norm, 0).to(x.dtype)
