"""The rule of five lines in the README gets all that the built-in ones have."""

from __future__ import annotations

import io
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import gradstep
from gradstep.optimizer.optimizer import planner_of
from gradstep.rule.definition import Rule
from ranks import run_ranks

ROOT = Path(__file__).parent.parent


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 4))


def as_in(page: str, net: nn.Module) -> gradstep.Optimizer:
    """The optimizer that the page's lines make for ``net``."""
    blocks = (ROOT / page).read_text().split("```python\n")[1:]
    (code,) = [b for b in (b.partition("```")[0] for b in blocks) if "@gradstep.rule" in b]
    # Through a file, since the errors of a rule quote its lines.
    names: dict[str, Any] = {"net": net, "__name__": "readme"}
    exec(compile(code, page, "exec"), names)
    optimizer = names["optimizer"]
    assert isinstance(optimizer, gradstep.Optimizer)
    return optimizer


def own_rule() -> Rule:
    return planner_of(as_in("README.md", network())).rule


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, end: int) -> list[Tensor]:
    for step in range(first, end):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(8, 7)).square().mean().backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_it_is_momentum_and_runs_fused(page: str) -> None:
    ours, theirs = network(), network()
    optimizer = as_in(page, ours)
    reached = train(ours, optimizer, 0, 20)
    assert set(optimizer.engines_used().values()) == {"fused"}
    expected = train(theirs, torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9), 0, 20)
    for a, b in zip(reached, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=8 * torch.finfo(a.dtype).eps * b.abs().max())


@pytest.mark.alone
def test_it_is_faster_than_operation_by_operation() -> None:
    weights = {name: torch.ones(1 << 22) for name in ("fused", "eager")}
    gradient = torch.full((1 << 22,), 1e-3)
    optimizers = {}
    for engine, weight in weights.items():
        weight.grad = gradient
        optimizers[engine] = gradstep.Optimizer([weight], own_rule(), lr=0.1, engine=engine)
    times: dict[str, list[float]] = {engine: [] for engine in weights}
    order = list(weights)
    for _ in range(15):
        random.shuffle(order)
        for engine in order:
            start = time.perf_counter()
            optimizers[engine].step()
            times[engine].append(time.perf_counter() - start)
    assert 1.2 * min(times["fused"]) < min(times["eager"])


def test_checkpoint() -> None:
    whole = network()
    optimizer = gradstep.Optimizer(whole.named_parameters(), own_rule(), lr=0.1)
    train(whole, optimizer, 0, 3)
    file = io.BytesIO()
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    kept = torch.load(file, weights_only=True)
    resumed = network()
    resumed.load_state_dict(kept["model"])
    other = gradstep.Optimizer(resumed.named_parameters(), own_rule(), lr=0.7)
    other.load_state_dict(kept["optimizer"])
    ends = zip(train(whole, optimizer, 3, 6), train(resumed, other, 3, 6), strict=True)
    assert all(torch.equal(a, b) for a, b in ends)


def test_in_a_chain_with_a_schedule_and_few_bits() -> None:
    """One formula, whose every number is explained to the last bit."""
    rule = gradstep.chain(
        gradstep.clip_by_global_norm(0.5), own_rule(), gradstep.cautious(), gradstep.decay_weights()
    )
    model = network().to(torch.bfloat16)
    lr = gradstep.schedule.linear(0.1, 0.0, 10)
    optimizer = gradstep.Optimizer(model.named_parameters(), rule, lr=lr, weight_decay=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    for step in range(3):
        explanation = gradstep.explain(optimizer, "0.weight", index=(1, 2))
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(8, 7, dtype=torch.bfloat16)).square().mean().backward()
        optimizer.step()
        assert explanation.accounts[0].agrees
        assert "velocity ← momentum·velocity + g" in explanation.text()
    assert set(optimizer.engines_used().values()) == {"fused"}
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.08)  # of the third step
    after = [p.detach() for p in model.parameters()]
    assert not any(map(torch.equal, before, after))


def split(rank: int) -> list[Any]:
    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = gradstep.Optimizer(model.named_parameters(), own_rule(), lr=0.1)
    reached = train(model, optimizer, 0, 5)
    assert set(optimizer.engines_used().values()) == {"fused"}
    return [p.full_tensor().numpy() for p in reached]  # type: ignore[attr-defined]


def test_on_weights_that_two_processes_share() -> None:
    whole = network()
    expected = train(whole, gradstep.Optimizer(whole.parameters(), own_rule(), lr=0.1), 0, 5)
    for reached in run_ranks(split, 2):
        for a, b in zip(reached, expected, strict=True):
            assert abs(a - b.numpy()).max() <= 1e-6 * abs(b).max()


@gradstep.rule
def handing_on(g, recent, older, *, momentum=0.5):  # type: ignore[no-untyped-def]
    """The state of the step before, as it was, becomes another."""
    return older + g, momentum * recent + g, recent


@pytest.mark.parametrize(
    "stages", [(), (gradstep.clip_by_global_norm(1.0),)], ids=["alone", "sums"]
)
@pytest.mark.parametrize("engine", ["fused", "eager", "compile"])
def test_a_state_that_is_handed_on_is_the_one_before_the_step(engine: str, stages: Any) -> None:
    rule = gradstep.chain(*stages, handing_on) if stages else handing_on
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = gradstep.Optimizer([weight], rule, lr=1.0, engine=engine)
    w = recent = older = torch.zeros(3)
    for number in range(3):
        weight.grad = torch.full((3,), 0.25 * (number + 1))
        g = weight.grad.clone()
        g = g * min(1.0, 1 / float(g.norm())) if stages else g
        optimizer.step()
        w, recent, older = w - older - g, 0.5 * recent + g, recent
        torch.testing.assert_close(weight.detach(), w)
        torch.testing.assert_close(optimizer.state[weight]["older"], older)
