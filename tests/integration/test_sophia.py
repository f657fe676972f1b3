"""Sophia with estimates of the Hessian, against pytorch_optimizer given the same estimates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import gradstep


def normal(seed: int, *shape: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random, dtype=torch.float64)


def test_same_as_sophia_h() -> None:
    theirs = pytest.importorskip("pytorch_optimizer")
    shapes = ((8, 6), (5,), (4, 3, 2, 2))
    ours, others = (
        [torch.nn.Parameter(normal(i, *shape)) for i, shape in enumerate(shapes)] for _ in range(2)
    )
    lr, rho, eps = 0.02, 0.25, 1e-6
    shared = {"betas": (0.9, 0.8)}
    optimizer = gradstep.Sophia(ours, lr=lr, rho=rho, eps=eps, weight_decay=0.1, **shared)
    # Theirs clips m / max(h, eps) at p, and its decay is scaled by its own learning rate.
    reference = theirs.SophiaH(
        others, lr=lr / rho, p=rho, eps=eps / rho, weight_decay=0.1 * rho, **shared
    )
    unclipped = 0
    for t in range(50):
        estimates = [5 * normal(1000 + 10 * t + i, *shape) for i, shape in enumerate(shapes)]
        for i, (p, q) in enumerate(zip(ours, others, strict=True)):
            p.grad, q.grad = (normal(2000 + 10 * t + i, *p.shape) for _ in range(2))
        due = t % 10 == 0
        if due:
            optimizer.update_hessian(estimates)
        before = [p.detach() * (1 - 0.1 * lr) for p in ours]
        optimizer.step()
        reference.step(hessian=estimates if due else None)
        for p, q, b in zip(ours, others, before, strict=True):
            unclipped += int(((p - b).abs() < 0.99 * lr).sum())
            torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=1e-12)
    assert unclipped > 1000
