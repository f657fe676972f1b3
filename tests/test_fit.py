"""Which tensors a kernel takes; among them the local parts of DTensors, in two real processes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import gradstep
from ranks import run_ranks

OPTIONS = {"SGD": {"momentum": 0.9}, "AdamW": {}, "NAdam": {}, "RMSprop": {"centered": True}}


def _train_sharded(rank: int, name: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    # 13 and 5 do not divide by two: the parts differ in size.
    model = nn.Sequential(nn.Linear(13, 17), nn.ReLU(), nn.Linear(17, 5))
    single = copy.deepcopy(model)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    options = {"lr": 0.01, **OPTIONS[name]}
    sharded = getattr(gradstep, name)(model.named_parameters(), **options)
    reference = getattr(torch.optim, name)(single.parameters(), **options)
    for _ in range(5):
        x = torch.randn(8, 13)
        for network, optimizer in ((model, sharded), (single, reference)):
            optimizer.zero_grad()
            network(x).square().mean().backward()
            optimizer.step()
    assert set(sharded.engines_used().values()) == {"fused"}
    for p, q in zip(model.parameters(), single.parameters(), strict=True):
        # Gradients are reduced in another order, and these rules divide by their size: where
        # one is nearly 0 its last bits count. A part left out would be off by 0.01 a step.
        torch.testing.assert_close(p.full_tensor(), q.data, rtol=0, atol=1e-5)
    state = sharded.state[next(model.parameters())]
    assert all(type(v) is type(next(model.parameters())) for v in state.values() if v.dim())


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.deep] * (n != "NAdam")) for n in OPTIONS]
)
def test_fully_sharded_weights_are_updated_part_by_part(name):
    run_ranks(_train_sharded, 2, name)


def test_a_reason_is_logged_once(caplog):
    base = torch.randn(6, 6)
    gapped = nn.Parameter(base[::2, ::2])
    assert not gapped.is_contiguous()
    optimizer = gradstep.SGD([("gapped", gapped), ("dense", nn.Parameter(base.clone()))], lr=0.1)
    before = gapped.detach().clone()
    for _ in range(2):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert optimizer.engines_used() == {"gapped": "eager", "dense": "fused"}
    messages = [r.getMessage() for r in caplog.records if r.name == "gradstep"]
    assert len(messages) == 1 and "gapped" in messages[0] and "memory" in messages[0]
    torch.testing.assert_close(gapped.data, before - 0.2)


def test_weights_that_share_memory_are_updated_one_after_the_other():
    base = torch.zeros(10)
    left, right = nn.Parameter(base[:6]), nn.Parameter(base[4:])
    left.grad, right.grad = torch.ones(6), torch.ones(6)
    optimizer = gradstep.SGD([left, right], lr=1.0)
    optimizer.step()
    assert base.tolist() == [-1.0] * 4 + [-2.0] * 2 + [-1.0] * 4
    assert set(optimizer.engines_used().values()) == {"eager"}
