"""Mechanic beside its algorithm in NumPy, through a file, and on a net that needs another rate."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradstep

STEPS = 30


def slope(w: Any, t: int) -> Any:
    return w - 0.5 + 0.2 * np.sin(7 * w + t)


def algorithm(start: Any, lr: float, decay: float, s_init: float, count: int) -> Any:
    """Cutkosky et al. 2023, algorithm 1, with the clipping of h that optax has, around descent."""
    eps, x = 1e-8, start
    betas = 1 - 0.1 ** np.arange(1, count + 1)
    r, m, v, s = np.zeros(count), np.zeros(count), np.zeros(count), np.full(count, s_init)
    for t in range(STEPS):
        g = slope(x, t)
        update = -lr * g
        regular = g + decay * s.sum() * np.linalg.norm(g) / (np.linalg.norm(x) + eps) * x
        delta = (start - x) / (s.sum() + eps)
        h = float(regular @ delta)
        clipped = np.clip(h, -m, m)
        m = np.maximum(betas * m, abs(h) + eps)
        v = betas**2 * v + h**2
        r = betas * r + clipped * s
        s = (s_init / count * m + np.maximum(0, r)) / (np.sqrt(v) + eps)
        x = start - s.sum() * (delta - update)
    return x, s.sum()


def trained(half: int | None = None) -> tuple[Any, float]:
    """In two parameters, gone on from a file at ``half``."""
    start = torch.linspace(-1, 1, 9, dtype=torch.float64)
    weights = [("a", nn.Parameter(start[:4].clone())), ("b", nn.Parameter(start[4:].clone()))]

    def made() -> Any:
        return gradstep.Mechanic(gradstep.SGD(weights, lr=0.5), s_init=1e-3, betas=4)

    optimizer = made()
    for t in range(STEPS):
        if t == half:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = made()
            optimizer.load_state_dict(saved)
        whole = slope(torch.cat([p for _, p in weights]).detach().numpy(), t)
        weights[0][1].grad, weights[1][1].grad = map(torch.tensor, (whole[:4], whole[4:]))
        optimizer.step()
    return torch.cat([p for _, p in weights]).detach().numpy(), optimizer.scale


@pytest.mark.parametrize("half", [None, 13])
def test_it_is_its_algorithm_and_goes_on_from_a_file(half: int | None) -> None:
    found, scale = trained(half)
    expected, wanted = algorithm(np.linspace(-1, 1, 9), 0.5, 0.01, 1e-3, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)
    assert scale == pytest.approx(wanted, rel=1e-9) and scale > 0.1


def test_it_is_optaxs_mechanize_where_that_is_installed() -> None:
    optax = pytest.importorskip("optax")
    from reference_optax import InOptax

    ours, theirs = (torch.linspace(-1, 1, 9, dtype=torch.float64) for _ in range(2))
    weight = nn.Parameter(ours)
    a = gradstep.Mechanic(gradstep.Adam([weight], lr=0.7))
    b = InOptax([theirs], optax.contrib.mechanize(optax.adam(0.7)))
    for t in range(40):
        weight.grad = torch.tensor(slope(weight.detach().numpy(), t))
        theirs.grad = torch.tensor(slope(theirs.numpy(), t))
        a.step()
        b.step()
    torch.testing.assert_close(weight.detach(), theirs, rtol=1e-6, atol=1e-8)


def test_a_rate_of_one_trains_a_net() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
    points = torch.randn(128, 8)
    optimizer = gradstep.Mechanic(gradstep.AdamW(net.parameters(), lr=1.0), s_init=1e-4)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(points), points[:, :4].argmax(1))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0] and 1e-4 < optimizer.scale < 1


def test_bad_numbers() -> None:
    inner = gradstep.SGD([nn.Parameter(torch.ones(2))], lr=1.0)
    with pytest.raises(ValueError, match="Invalid s_init: 0"):
        gradstep.Mechanic(inner, s_init=0.0)
    with pytest.raises(ValueError, match="Invalid decay: -1"):
        gradstep.Mechanic(inner, decay=-1.0)
