"""What an accelerator alone can show of steps within backward, and of states elsewhere.

Written on a machine without one: nobody has run it yet.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep

DEVICE: Any = torch.accelerator.current_accelerator()
MODULE: Any = torch.get_device_module(DEVICE)
SIDE, LAYERS = 512, 8
WEIGHTS = LAYERS * SIDE * SIDE


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


def model() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(*[nn.Linear(SIDE, SIDE) for _ in range(LAYERS)]).to(DEVICE)


def loss_of(network: nn.Module, step: int) -> Tensor:
    x = torch.randn(16, SIDE, generator=torch.Generator().manual_seed(step)).to(DEVICE)
    return network(x).square().mean()


def learn(network: nn.Module, optimizer: Any, steps: range = range(4)) -> None:
    for step in steps:
        loss_of(network, step).backward()
        optimizer.step()
        optimizer.zero_grad()


def by_hand(network: nn.Module, make: Any, steps: range = range(4)) -> list[Tensor]:
    """Gradients to the CPU, an ordinary step there, weights back: one after the other."""
    params = list(network.parameters())
    host = [nn.Parameter(p.detach().cpu()) for p in params]
    optimizer = make(host)
    for step in steps:
        loss_of(network, step).backward()
        for p, h in zip(params, host, strict=True):
            h.grad = p.grad.cpu()
        optimizer.step()
        for p, h in zip(params, host, strict=True):
            p.grad = None
            with torch.no_grad():
                p.copy_(h)
    return host


RULES: dict[str, Any] = {
    "AdamW": lambda p: gradstep.AdamW(p, lr=1e-2),
    "Adafactor": lambda p: gradstep.Adafactor(p, lr=1e-2),
    "Prodigy": gradstep.Prodigy,
    "Muon and AdamW": lambda p: gradstep.partition(
        {"matrices": gradstep.muon(), "rest": gradstep.adam()},
        [(str(i), each) for i, each in enumerate(p)],
    ),
}


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_offloaded_steps_have_the_bits_of_the_cpu(name: str, free: bool) -> None:
    one, other = model(), model()
    expected = by_hand(one, RULES[name])
    optimizer = gradstep.Offload(
        RULES[name](list(other.parameters())), smallest=0, free_gradients=free
    )
    learn(other, optimizer)
    for h, p in zip(expected, other.parameters(), strict=True):
        assert torch.equal(h, p.cpu())
        states = [s for s in optimizer.state[p].values() if isinstance(s, Tensor)]
        assert states and all(s.is_cpu for s in states)
        copied = optimizer._in_step(p)
        assert copied.is_cpu and copied.is_pinned()


def test_small_weights_stay() -> None:
    network = model()
    optimizer = gradstep.Offload(gradstep.AdamW(network.parameters()))
    learn(network, optimizer)
    assert optimizer.state[network[0].weight]["exp_avg"].is_cpu
    assert optimizer.state[network[0].bias]["exp_avg"].device.type == DEVICE.type


def peak(make: Any) -> int:
    network = model()
    optimizer = make(network)
    learn(network, optimizer, range(2))
    torch.accelerator.synchronize()
    MODULE.reset_peak_memory_stats()
    learn(network, optimizer, range(2, 4))
    torch.accelerator.synchronize()
    found: int = MODULE.max_memory_allocated()
    return found


def test_memory_of_the_accelerator() -> None:
    ordinary = peak(lambda m: gradstep.AdamW(m.parameters()))
    offloaded = peak(lambda m: gradstep.Offload(gradstep.AdamW(m.parameters())))
    freed = peak(lambda m: gradstep.Offload(gradstep.AdamW(m.parameters()), free_gradients=True))
    in_backward = peak(lambda m: gradstep.StepInBackward(gradstep.AdamW(m.parameters())))
    assert ordinary - offloaded >= 0.9 * 8 * WEIGHTS  # the states
    assert offloaded - freed >= 0.5 * 4 * WEIGHTS  # gradients, but for those that are still read
    assert ordinary - in_backward >= 0.7 * 4 * WEIGHTS


@pytest.mark.parametrize("name", ["AdamW", "Adafactor"])
def test_steps_in_backward_have_the_bits_of_ordinary_ones(name: str) -> None:
    one, other = model(), model()
    learn(one, RULES[name](list(one.parameters())))
    learn(other, gradstep.StepInBackward(RULES[name](list(other.parameters()))))
    assert all(map(torch.equal, one.parameters(), other.parameters()))


def test_clipping_and_grad_scaler() -> None:
    networks = [model(), model()]
    optimizers: list[Any] = [
        gradstep.Offload(gradstep.AdamW(m.parameters(), lr=1e-2), copy_in_backward=early)
        for m, early in zip(networks, (True, False), strict=True)
    ]
    for network, optimizer in zip(networks, optimizers, strict=True):
        scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0**10)
        for step in range(4):
            scaler.scale(loss_of(network, step)).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1e-3)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert all(map(torch.equal, networks[0].parameters(), networks[1].parameters()))


def test_averages_and_schedule_free() -> None:
    network = model()
    averages = gradstep.EMA(gradstep.AdamW(network.parameters()), decay=0.5)
    optimizer = gradstep.Offload(averages)
    learn(network, optimizer)
    before = [p.detach().clone() for p in network.parameters()]
    with averages.averages():
        assert not torch.equal(network[0].weight, before[0])
    assert all(map(torch.equal, network.parameters(), before))
    other = model()
    inside: Any = gradstep.AdamWScheduleFree(other.parameters())
    learn(other, gradstep.Offload(inside))
    inside.eval()
    inside.train()


def test_a_checkpoint_stays_on_the_cpu() -> None:
    network, other = model(), model()
    optimizer = gradstep.Offload(gradstep.AdamW(network.parameters()))
    learn(network, optimizer)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(copy.deepcopy(network.state_dict()))
    twin = gradstep.Offload(gradstep.AdamW(other.parameters()))
    twin.load_state_dict(torch.load(file))
    assert twin.state[other[0].weight]["exp_avg"].is_cpu
    learn(network, optimizer, range(4, 7))
    learn(other, twin, range(4, 7))
    assert all(map(torch.equal, network.parameters(), other.parameters()))


def test_states_that_are_on_the_accelerator_move() -> None:
    network = model()
    inside = gradstep.AdamW(network.parameters())
    learn(network, inside)
    assert inside.state[network[0].weight]["exp_avg"].device.type == DEVICE.type
    optimizer = gradstep.Offload(inside)
    assert inside.state[network[0].weight]["exp_avg"].is_cpu
    learn(network, optimizer, range(4, 6))


def test_explain() -> None:
    network = model()
    optimizer = gradstep.Offload(gradstep.AdamW(network.named_parameters()))
    learn(network, optimizer)
    told = gradstep.explain(optimizer, "0.weight", index=(1, 2))
    learn(network, optimizer, range(4, 5))
    assert told.ready and "exp_avg" in told.text()
