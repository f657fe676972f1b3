"""Parameters that have no data, or no shape, when an optimizer is made: as torch takes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

import gradstep

CLASSES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1, "momentum": 0.9}), ("Adam", {}), ("Adagrad", {}), ("RMSprop", {}),
    ("Adafactor", {}), ("Lion", {}), ("LAMB", {}), ("SOAP", {}), ("Prodigy", {}),
]  # fmt: skip


def lazy() -> nn.Sequential:
    return nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2))


def batch(step: int) -> torch.Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(step))


def learn(model: nn.Module, optimizer: Any, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        model(batch(step)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("way", ["whole", "named", "groups", "rule", "partition", "EMA"])
@pytest.mark.parametrize(("name", "options"), CLASSES)
def test_lazy_layers_before_their_first_pass(name: str, options: dict[str, Any], way: str) -> None:
    if (name, way) == ("Adagrad", "EMA"):
        pytest.skip("Adagrad has states from construction on, and EMA comes before them")
    make: Any = getattr(gradstep, name)
    models = []
    for early in (True, False):
        torch.manual_seed(0)
        model = lazy()
        if not early:
            model(batch(0))
        params: Any = list(model.named_parameters() if way == "named" else model.parameters())
        if way == "groups":
            params = [{"params": params[:2]}, {"params": params[2:], "lr": 0.05}]
        if way == "EMA":
            optimizer: Any = gradstep.EMA(make(params, **options))
        elif way == "rule":
            optimizer = gradstep.Optimizer(params, gradstep.adam())
        elif way == "partition":
            named = list(model.named_parameters())
            maker = lambda p, **o: make(p, **options)  # noqa: E731
            optimizer = gradstep.partition({"0": maker, "3": maker}, named,
                                           where={"0": "0.*", "3": "3.*"})  # fmt: skip
        else:
            optimizer = make(params, **options)
        repr(optimizer)
        optimizer.state_dict()
        StepLR(optimizer, 10)
        optimizer.step()  # without a gradient
        torch.manual_seed(1)
        learn(model, optimizer, range(3))
        models.append(model)
    first, second = models
    if way != "whole":  # weights begin with other random numbers if they begin in another order
        assert all(p.isfinite().all() for p in first.parameters())
    assert [p.shape for p in first.parameters()] == [p.shape for p in second.parameters()]


@pytest.mark.parametrize(("name", "options"), CLASSES)
def test_a_lazy_layer_moves_as_one_that_was_none(name: str, options: dict[str, Any]) -> None:
    ends = []
    for early in (True, False):
        model = lazy()
        if not early:
            model(batch(0))
        optimizer = getattr(gradstep, name)(model.parameters(), **options)
        if early:
            model(batch(0))
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.linspace(-1, 1, p.numel()).view(p.shape))
        learn(model, optimizer, range(4))
        ends.append([p.detach() for p in model.parameters()])
    assert all(map(torch.equal, *ends))


def test_a_lazy_layer_that_the_rule_cannot_take_is_refused_when_its_shape_is_known() -> None:
    model = nn.Sequential(nn.LazyLinear(4, bias=False), nn.LazyConv1d(2, 1, bias=False))
    optimizer = gradstep.Muon(model.named_parameters())
    model(torch.ones(1, 3, 5)).sum().backward()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=r"1.weight has 3 dimensions. Set flatten=False"):
        optimizer.step()
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize(("name", "options"), CLASSES)
def test_built_on_meta_then_given_memory(name: str, options: dict[str, Any]) -> None:
    """The parameter stays the same object where torch swaps tensors, which it has to be told."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        ends = []
        for device in ("meta", "cpu"):
            model = nn.Sequential(nn.Linear(3, 4, device=device), nn.Linear(4, 2, device=device))
            optimizer = getattr(gradstep, name)(model.named_parameters(), **options)
            optimizer.step()
            model.to_empty(device="cpu")
            with torch.no_grad():
                for p in model.parameters():
                    p.copy_(torch.linspace(-1, 1, p.numel()).view(p.shape))
            learn(model, optimizer, range(4))
            ends.append([p.detach() for p in model.parameters()])
        assert all(map(torch.equal, *ends))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop", "Adagrad", "Lion"])
def test_a_step_on_meta_itself_changes_shapes_of_nothing(name: str) -> None:
    p = nn.Parameter(torch.empty(3, 2, device="meta"))
    optimizer = getattr(gradstep, name)([p])
    p.grad = torch.empty(3, 2, device="meta")
    optimizer.step()
    assert p.is_meta and p.shape == (3, 2)
    for state in optimizer.state[p].values():
        assert state.shape in ((3, 2), ())
