"""The Newton–Schulz iteration: matrices with their singular values brought near 1."""

from __future__ import annotations

import torch
from torch import Tensor

from gradstep.rule import opaque

#: torch's batched product adds up otherwise in products of fewer multiplications than this, and
#: other bits come of it.
_SMALL = 400


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
        gram = _product(x, x.mT)
        x = _plus_product(x, _plus_product(gram, gram, gram, b, c), x, a, 1.0)
    return x.mT if tall else x


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a b`` for batches of matrices."""
    if a.shape[-2] * a.shape[-1] * b.shape[-1] < _SMALL:
        return torch.stack([torch.mm(*m) for m in zip(a, b, strict=True)])
    return torch.bmm(a, b)


def _plus_product(c: Tensor, a: Tensor, b: Tensor, beta: float, alpha: float) -> Tensor:
    """``beta · c + alpha · a b`` for batches of matrices."""
    if a.shape[-2] * a.shape[-1] * b.shape[-1] < _SMALL:
        each = zip(c, a, b, strict=True)
        return torch.stack([torch.addmm(*m, beta=beta, alpha=alpha) for m in each])
    return torch.baddbmm(c, a, b, beta=beta, alpha=alpha)
