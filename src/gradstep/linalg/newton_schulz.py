"""The Newton–Schulz iteration: matrices with their singular values brought near 1."""

from __future__ import annotations

import torch
from torch import Tensor

from gradstep.linalg.batches import plus_product, product
from gradstep.rule import opaque


@opaque(dtype=torch.bfloat16, dimensions=2)
def newton_schulz(x: Tensor, a: float, b: float, c: float, eps: float, ns_steps: float) -> Tensor:
    """Bring the singular values of matrices near 1: ``x ← a·x + (b·xxᵀ + c·(xxᵀ)²)·x``, repeated.

    Args:
        x: (batch, rows, columns), bfloat16.
        a, b, c: the coefficients of the polynomial.
        eps: the smallest norm that a matrix is divided by.
        ns_steps: how many times.
    """
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_(min=eps)
    for _ in range(int(ns_steps)):
        gram = product(x, x.mT)
        x = plus_product(x, plus_product(gram, gram, gram, b, c), x, a, 1.0)
    return x.mT if tall else x
