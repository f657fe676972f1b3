"""``train()`` and ``eval()`` of the Schedule-Free classes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep

MAKERS = [
    (gradstep.SGDScheduleFree, "momentum", {"lr": 0.5}),
    (gradstep.AdamWScheduleFree, "beta1", {"lr": 0.1, "warmup_steps": 2}),
]
each = pytest.mark.parametrize(("make", "beta", "options"), MAKERS)


def weights() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(n, 3, generator=generator)) for n in (2, 4)]


def go(params: list[Tensor], optimizer: Any, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for p in params[: 1 + (step > 0)]:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def values(params: list[Tensor]) -> list[Tensor]:
    return [p.detach().clone() for p in params]


def close(left: list[Tensor], right: list[Tensor]) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@each
def test_eval_is_the_average_and_train_the_way_back(make: Any, beta: str, options: Any) -> None:
    params, twins = weights(), weights()
    optimizer, twin = make(params, **options), gradstep.AveragedWeights(make(twins, **options))
    optimizer.train()  # as their authors ask for; it is so already
    go(params, optimizer, range(6))
    go(twins, twin, range(6))
    trained = values(params)
    optimizer.eval()
    with twin.averages():
        close(values(params), values(twins))
    averages = values(params)
    optimizer.eval()
    assert all(map(torch.equal, averages, params))
    optimizer.train()
    close(values(params), trained)
    optimizer.train()
    go(params, optimizer, range(6, 9))
    go(twins, twin, range(6, 9))
    close(values(params), values(twins))


@each
def test_the_formula(make: Any, beta: str, options: Any) -> None:
    params = weights()
    optimizer = make(params, **options)
    go(params, optimizer, range(3))
    share = 0.9
    expected = [
        p.detach() + (1 - 1 / share) * (optimizer.state[p]["z"] - p.detach()) for p in params
    ]
    optimizer.eval()
    close(values(params), expected)


@each
def test_no_step_at_the_average(make: Any, beta: str, options: Any) -> None:
    params = weights()
    optimizer = make(params, **options)
    go(params, optimizer, range(3))
    optimizer.eval()
    before = values(params)
    for register in (None, optimizer.register_step_pre_hook):
        if register is not None:
            register(lambda *_: None)
        with pytest.raises(RuntimeError, match=r"call optimizer.train\(\) first"):
            go(params, optimizer, range(3, 4))
    assert all(map(torch.equal, before, params))


@each
@pytest.mark.parametrize("way", ["load", "copy"])
def test_saved_at_the_average(make: Any, beta: str, options: Any, way: str) -> None:
    params = weights()
    optimizer = make(params, **options)
    go(params, optimizer, range(3))
    optimizer.eval()
    if way == "copy":
        others, resumed = copy.deepcopy((params, optimizer))
    else:
        others = [nn.Parameter(p.detach().clone()) for p in params]
        resumed = make(others, **options)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each_params, each_optimizer in ((params, optimizer), (others, resumed)):
        each_optimizer.train()
        go(each_params, each_optimizer, range(3, 6))
    assert all(map(torch.equal, params, others))


@each
def test_a_momentum_of_0_has_no_average(make: Any, beta: str, options: Any) -> None:
    own = {"momentum": 0.0} if beta == "momentum" else {"betas": (0.0, 0.9)}
    params = weights()
    optimizer = make(params, **options, **own)
    go(params, optimizer, range(2))
    before = values(params)
    with pytest.raises(ValueError, match=f"{beta} is 0"):
        optimizer.eval()
    assert all(map(torch.equal, before, params))
