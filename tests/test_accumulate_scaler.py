"""Accumulate under torch.amp.GradScaler: each batch is unscaled once, by its own scale."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep

STEPS = 3


def model() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def loss_of(network: nn.Module, number: int) -> Tensor:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
    loss: Tensor = network(x).square().mean()
    return loss


def adam(network: nn.Module, **options: Any) -> gradstep.Optimizer:
    return gradstep.Adam(network.named_parameters(), lr=0.05, eps=1e-3, **options)


def theirs(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(network.parameters(), lr=0.05, eps=1e-3)


def of_parts(network: nn.Module) -> gradstep.Partition:
    def made(params: Any, **options: Any) -> gradstep.Optimizer:
        return gradstep.Adam(params, lr=0.05, eps=1e-3, **options)

    return gradstep.partition({"matrices": made, "rest": made}, network)


def accumulate(optimizer: torch.optim.Optimizer) -> gradstep.Accumulate:
    return gradstep.Accumulate(optimizer, STEPS)


MADE: dict[str, Callable[[nn.Module], Any]] = {
    "alone": lambda m: accumulate(adam(m)),
    "a fused step inside": lambda m: accumulate(adam(m, fused=True)),
    "torch's inside": lambda m: accumulate(theirs(m)),
    "a partition": lambda m: accumulate(of_parts(m)),
    "inside of an average": lambda m: gradstep.EMA(accumulate(adam(m))),
    "inside of two": lambda m: gradstep.SkipNonFinite(gradstep.Freeze(accumulate(adam(m)))),
    "around another": lambda m: accumulate(gradstep.SkipNonFinite(adam(m))),
}


def pending(optimizer: Any) -> int:
    while not isinstance(optimizer, gradstep.Accumulate):
        optimizer = optimizer.optimizer
    return optimizer.pending


def train(
    network: nn.Module,
    optimizer: Any,
    scaler: torch.amp.GradScaler,
    numbers: range,
    bad: tuple[int, ...] = (),
    clip: float | None = None,
) -> list[float]:
    """The loop of torch's page on mixed precision; the scales after each batch."""
    scales = []
    for number in numbers:
        optimizer.zero_grad()
        loss = loss_of(network, number)
        scaler.scale(loss * (torch.inf if number in bad else 1.0)).backward()
        if clip is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales


def by_hand(
    network: nn.Module, numbers: range, bad: tuple[int, ...] = (), clip: float | None = None
) -> torch.optim.Optimizer:
    """The mean of each three batches that are finite, without any scale."""
    optimizer = theirs(network)
    good = [number for number in numbers if number not in bad]
    for start in range(0, len(good) - STEPS + 1, STEPS):
        sums = [torch.zeros_like(p) for p in network.parameters()]
        for number in good[start : start + STEPS]:
            optimizer.zero_grad()
            loss_of(network, number).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), clip)
            for total, p in zip(sums, network.parameters(), strict=True):
                total += p.grad
        for total, p in zip(sums, network.parameters(), strict=True):
            p.grad = total / STEPS
        optimizer.step()
    return optimizer


def close(network: nn.Module, other: nn.Module) -> None:
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clip", [None, 0.05], ids=["", "clipped"])
@pytest.mark.parametrize("bad", [(), (1,), (2,), (3, 4), (5, 8)], ids=str)
@pytest.mark.parametrize("name", MADE)
def test_each_batch_is_unscaled_by_its_own_scale(
    name: str, bad: tuple[int, ...], clip: float | None
) -> None:
    """The scale grows behind every good batch and falls behind a bad one."""
    network, other, plain = model(), model(), model()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
    optimizer = MADE[name](network)
    scales = train(network, optimizer, scaler, range(11), bad, clip)
    by_hand(other, range(11), bad, clip)
    close(network, other)
    assert pending(optimizer) == (11 - len(bad)) % STEPS
    twin = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
    assert scales == train(plain, theirs(plain), twin, range(11), bad)


def test_without_the_mean_and_with_one_batch() -> None:
    for steps, mean in ((2, False), (1, True)):
        weight = nn.Parameter(torch.zeros(3))
        optimizer = gradstep.Accumulate(gradstep.SGD([weight], lr=1.0), steps, mean=mean)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
        for number in range(1, steps + 1):
            scaler.scale((weight * number).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        assert torch.equal(weight.detach(), torch.full((3,), -3.0 if steps == 2 else -1.0))
        assert optimizer.pending == 0


def test_a_disabled_scaler_changes_nothing() -> None:
    network, other = model(), model()
    optimizer = accumulate(adam(network))
    train(network, optimizer, torch.amp.GradScaler("cpu", enabled=False), range(7))
    by_hand(other, range(7))
    close(network, other)
    assert all(p.grad is not None for p in network.parameters())  # kept in the gradients


@pytest.mark.parametrize("name", ["alone", "inside of two"])
def test_files_and_copies_within_a_round(name: str) -> None:
    network, other = model(), model()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
    optimizer, twin = MADE[name](network), MADE[name](other)
    train(network, optimizer, scaler, range(5))
    file = io.BytesIO()
    torch.save([network.state_dict(), optimizer.state_dict(), scaler.state_dict()], file)
    file.seek(0)
    weights, states, scale = torch.load(file)
    other.load_state_dict(weights)
    twin.load_state_dict(states)
    rescaled = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
    rescaled.load_state_dict(scale)
    copies = [
        (other, twin, rescaled),
        (*copy.deepcopy((network, optimizer)), copy.deepcopy(rescaled)),
        (*pickle.loads(pickle.dumps((network, optimizer))), copy.deepcopy(rescaled)),
    ]
    train(network, optimizer, scaler, range(5, 10))
    for again in copies:
        train(*again, range(5, 10))
        for a, b in zip(network.parameters(), again[0].parameters(), strict=True):
            assert torch.equal(a, b)
    assert pending(twin) == 1


def test_a_scaler_in_the_middle_of_a_round_is_refused() -> None:
    network = model()
    optimizer = gradstep.SkipNonFinite(accumulate(adam(network)))
    loss_of(network, 0).backward()
    optimizer.step()
    before = [p.grad.clone() for p in network.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(loss_of(network, 1)).backward()
    sums = [p.grad.clone() for p in network.parameters()]
    with pytest.raises(RuntimeError, match="GradScaler came after 1 of 3 batches"):
        scaler.step(optimizer)
    assert pending(optimizer) == 1
    for p, total, first in zip(network.parameters(), sums, before, strict=True):
        assert torch.equal(p.grad, total) and not torch.equal(p.grad, first)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_that_raises_leaves_the_round_as_it_was(scaled: bool) -> None:
    network, other = model(), model()
    optimizer = gradstep.Accumulate(adam(network), 4)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=scaled)
    twin = gradstep.Accumulate(adam(other), 4)
    train(network, optimizer, scaler, range(3))
    train(other, twin, torch.amp.GradScaler("cpu", init_scale=4.0, enabled=scaled), range(4))
    optimizer.zero_grad()
    loss_of(network, 3).backward()
    gradients = [p.grad.clone() for p in network.parameters()]
    before = copy.deepcopy(network.state_dict())
    optimizer.param_groups[0]["betas"] = None
    with pytest.raises(Exception, match="betas"):
        optimizer.step()
    assert optimizer.pending == 3
    assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items())
    assert all(map(torch.equal, [p.grad for p in network.parameters()], gradients))
    optimizer.param_groups[0]["betas"] = (0.9, 0.999)
    optimizer.step()
    close(network, other)
