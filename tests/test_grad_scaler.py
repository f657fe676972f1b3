"""torch.amp.GradScaler with steps that take scale and verdict in their own pass."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep

CLASSES = ("SGD", "Adam", "AdamW", "Adagrad")  # those that torch can fuse


def train(cls: Any, unscale: bool, **options: Any) -> tuple[list[Tensor], list[float], Any]:
    """Twelve steps, two of which have infinite gradients; weights and scales after each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2))
    optimizer = cls(model.parameters(), lr=0.01, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    seen, scales = [], []
    for number in range(12):
        optimizer.zero_grad()
        loss = model(torch.randn(6, 5)).square().mean()
        if number in (4, 9):
            loss = loss * torch.inf
        scaler.scale(loss).backward()
        if unscale and number % 2:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        seen += [p.detach().clone() for p in model.parameters()]
        scales.append(scaler.get_scale())
    return seen, scales, optimizer


@pytest.mark.parametrize(("name", "unscale"), list(itertools.product(CLASSES, (False, True))))
def test_a_fused_step_takes_the_scale_and_skips_infinities(name: str, unscale: bool) -> None:
    theirs, their_scales, _ = train(getattr(torch.optim, name), unscale, fused=True)
    for engine in ("fused", "eager"):
        ours, scales, optimizer = train(getattr(gradstep, name), unscale, fused=True, engine=engine)
        assert scales == their_scales
        for a, b in zip(ours, theirs, strict=True):
            assert (a - b).abs().max() <= 8 * 2**-23 * b.abs().max()
        assert set(optimizer.engines_used().values()) == {engine}
        assert all(s["step"] == 10 for s in optimizer.state.values() if "step" in s)


def test_the_step_works_on_scaled_gradients_and_leaves_them() -> None:
    w = nn.Parameter(torch.ones(3))
    optimizer = gradstep.SGD([w], lr=0.5, fused=True)
    w.grad = torch.full((3,), 2048.0)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
    optimizer.step()
    assert torch.equal(w.detach(), torch.zeros(3)) and torch.equal(w.grad, torch.full((3,), 2048.0))
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert torch.equal(w.detach(), torch.zeros(3))
    del optimizer.grad_scale, optimizer.found_inf
    w.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(w.detach(), torch.full((3,), -0.5))
