"""Rules that look beyond single elements, on weights that are split among processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import gradstep
from ranks import run_ranks

RULES = ("Adafactor", "Muon", "clipped Adam")


def optimizer_for(name: str, model: nn.Module) -> gradstep.Optimizer:
    named = list(model.named_parameters())
    if name == "Adafactor":
        return gradstep.Adafactor(named, lr=0.1, weight_decay=0.1)
    if name == "Muon":
        return gradstep.Muon([(n, p) for n, p in named if p.dim() == 2], lr=0.02)
    rule = gradstep.chain(gradstep.clip_by_global_norm(0.1), gradstep.adam())
    return gradstep.Optimizer(named, rule, lr=0.01)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 4))


def train(name: str, model: nn.Module, steps: int = 5) -> list[Any]:
    optimizer = optimizer_for(name, model)
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(8, 7)).square().mean().backward()
        optimizer.step()
    weights: list[Tensor] = [getattr(p, "full_tensor", lambda p=p: p)() for p in model.parameters()]
    return [w.detach().numpy().copy() for w in weights]


def split(rank: int, count: int, name: str) -> list[Any]:
    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (count,)))
    return train(name, model)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("count", [2, 3])
def test_split_weights_reach_what_whole_ones_do(name: str, count: int) -> None:
    """Up to the rounding of the sums, and of the mean over processes."""
    expected = train(name, network())
    for reached in run_ranks(split, count, count, name):
        for a, b in zip(reached, expected, strict=True):
            # Muon's iteration runs in bfloat16, where a last bit is one of eight.
            allowed = 1e-3 if name == "Muon" else 1e-6
            assert abs(a - b).max() <= allowed * abs(b).max()


def disagree(rank: int, name: str, none_at_all: bool) -> tuple[str, bool]:
    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = optimizer_for(name, model)
    model(torch.ones(8, 7)).square().mean().backward()
    if rank == 1:
        for parameter in list(model.parameters())[: None if none_at_all else 1]:
            parameter.grad = None
    before = [p.full_tensor() for p in model.parameters()]
    try:
        optimizer.step()
    except RuntimeError as error:
        after = [p.full_tensor() for p in model.parameters()]
        return str(error), all(map(torch.equal, before, after))
    return "", False


@pytest.mark.parametrize("none_at_all", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_processes_with_other_gradients_get_an_error_and_do_not_hang(
    name: str, none_at_all: bool
) -> None:
    for rank, (message, untouched) in enumerate(run_ranks(disagree, 2, name, none_at_all)):
        assert "do not have gradients for the same weights" in message
        assert "0.weight (5, 7)" in message and ("lacks none" in message) == (rank == 0)
        assert untouched
