"""What is taken of a unit as a whole: of all weights that feed one output."""

from __future__ import annotations

import torch
from torch import Tensor

from gradstep.rule import opaque


@opaque(cost=lambda shape: torch.Size(shape).numel())
def unit_norm(x: Tensor) -> Tensor:
    """The Euclidean norm of each unit, at each of its elements.

    Args:
        x: (batch, outputs, …); of a weight of one dimension or none all is one unit.
    """
    dims = tuple(range(2 if x.dim() > 2 else 1, x.dim()))
    length = torch.linalg.vector_norm(x, dim=dims, keepdim=True) if dims else x.abs()
    return length.expand_as(x)


@opaque(cost=lambda shape: torch.Size(shape).numel())
def unit_mean(x: Tensor) -> Tensor:
    """The mean of each unit, at each of its elements; 0 for weights of one dimension or none.

    Args:
        x: (batch, outputs, …).
    """
    if x.dim() < 3:
        return torch.zeros_like(x)
    return x.mean(dim=tuple(range(2, x.dim())), keepdim=True).expand_as(x)
