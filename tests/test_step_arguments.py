"""``step()``: how a closure is given, and what hooks see of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep

MAKERS: dict[str, Callable[[list[Tensor]], Any]] = {
    "torch": lambda p: torch.optim.Adam(p),
    "class": lambda p: gradstep.Adam(p),
    "rule": lambda p: gradstep.Optimizer(p, gradstep.sgd()),
    "partition": lambda p: gradstep.partition({"rest": gradstep.adam()}, p),
    "EMA": lambda p: gradstep.EMA(gradstep.Adam(p)),
}


@pytest.mark.parametrize("profiled", [False, True])
@pytest.mark.parametrize("maker", MAKERS)
def test_hooks_get_what_was_given(maker: str, profiled: bool) -> None:
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = MAKERS[maker]([p])
    seen: list[tuple[int, list[str]]] = []

    def look(given: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        assert arguments[0] is given is optimizer
        seen.append((len(arguments), list(keywords)))

    def closure() -> float:
        return 2.0

    optimizer.register_step_pre_hook(look)
    optimizer.register_step_post_hook(look)
    with torch.profiler.profile() if profiled else torch.no_grad():
        assert optimizer.step() is None
        assert optimizer.step(closure) == 2.0
        assert optimizer.step(closure=closure) == 2.0
    assert seen == [(1, []), (1, []), (2, []), (2, []), (1, ["closure"]), (1, ["closure"])]


@pytest.mark.parametrize("hooks", [False, True])
@pytest.mark.parametrize("maker", MAKERS)
def test_a_hook_may_exchange_them_and_other_names_are_refused(maker: str, hooks: bool) -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = MAKERS[maker]([p])
    if hooks:
        optimizer.register_step_pre_hook(lambda o, a, k: (a, {"closure": lambda: 5.0}))
        assert optimizer.step() == 5.0
        assert optimizer.step(closure=lambda: 1.0) == 5.0
    else:
        with pytest.raises(TypeError, match="closures"):
            optimizer.step(closures=lambda: 1.0)
    assert "grad_scaler" not in inspect.signature(optimizer.step).parameters
