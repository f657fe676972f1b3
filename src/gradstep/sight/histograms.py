"""How the elements of a tensor are spread."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradstep.backends.update import in_pairs
from gradstep.program.shards import local

#: Bins of a histogram. An odd number, so that zero lies in the middle of one.
BINS = 41


@dataclass(frozen=True)
class Histogram:
    """How the elements of a tensor are spread from ``-limit`` to ``limit``, in bins of one width.

    Attributes:
        limit: the largest absolute value, 0 where all elements are 0.
        counts: elements in each bin; those that are nan or infinite are in none.
    """

    limit: float
    counts: tuple[int, ...]


@torch.no_grad()
def histogram(tensor: Tensor, largest: float) -> Histogram:
    """How a tensor's elements are spread.

    Args:
        tensor: real or complex, strided or sparse; of a DTensor this process's part.
        largest: its largest absolute value, nan if it is not known or not finite.
    """
    tensor = local(tensor.detach())
    if tensor.layout is not torch.strided:
        tensor = tensor.coalesce().values()
    tensor = in_pairs(tensor)
    elements = tensor.float() if tensor.dtype != torch.float64 else tensor
    if not math.isfinite(largest):
        elements = elements[elements.isfinite()]
        largest = float(elements.abs().max()) if elements.numel() else 0.0
    limit = largest or 1.0
    counts = torch.histc(elements, BINS, -limit, limit)
    return Histogram(largest, tuple(map(int, counts.tolist())))
