"""Groups with the same options step as one: in one launch, with the numbers of each by itself."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import gradstep
from gradstep.backends.dispatch import Plan
from gradstep.optimizer.optimizer import planner_of

MAKES: dict[str, Callable[[list[Any]], Any]] = {
    "Adam": gradstep.Adam,
    "AdamW": lambda groups: gradstep.AdamW(groups, amsgrad=True),
    "SGD": lambda groups: gradstep.SGD(groups, lr=0.1),
    "momentum": lambda groups: gradstep.SGD(groups, lr=0.1, momentum=0.9),
    "Adagrad": gradstep.Adagrad,
    "Rprop": gradstep.Rprop,
    "Lion": lambda groups: gradstep.Optimizer(groups, gradstep.lion()),
    "LAMB": lambda groups: gradstep.Optimizer(groups, gradstep.lamb()),
    "Prodigy": lambda groups: gradstep.Optimizer(groups, gradstep.prodigy()),
    "EMA": lambda groups: gradstep.EMA(gradstep.Adam(groups)),
    "eager": lambda groups: gradstep.Optimizer(groups, gradstep.adam(), engine="eager"),
}
SHAPES: list[tuple[int, ...]] = [(4, 3), (3,), (4, 3), (2, 3, 4), (), (5, 1), (0, 2), (3, 4)]


def weights() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def one_each(params: list[Any], **options: Any) -> list[dict[str, Any]]:
    return [{"params": [p], **options} for p in params]


def feed(params: list[Any], step: int, missing: bool = False) -> None:
    source = torch.Generator().manual_seed(step)
    for place, p in enumerate(params):
        g = torch.randn(p.shape, generator=source).to(p.dtype)
        p.grad = None if missing and (place + step) % 3 == 0 else g


def launches(optimizer: Any) -> int:
    return len([each for each in planner_of(optimizer).plan() if hasattr(each, "run_kernel")])


@pytest.mark.parametrize("name", MAKES)
def test_the_numbers_are_those_of_one_group(name: str) -> None:
    """Whatever happens to the groups' options, and to gradients, on the way."""
    runs = []
    for grouped in (False, True):
        params = weights()
        optimizer = MAKES[name](one_each(params) if grouped else params)
        for step in range(12):
            feed(params, step, missing=step > 3)
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (1 + step // 2)
            optimizer.step()
            if step == 7:
                optimizer.load_state_dict(optimizer.state_dict())
        runs.append((params, [optimizer.state[p] for p in params]))
    (ours, states), (others, other_states) = runs
    for one, other, own, theirs in zip(ours, others, states, other_states, strict=True):
        assert torch.equal(one, other)
        assert list(own) == list(theirs)
        for n, value in own.items():
            same = torch.equal(value, theirs[n]) if isinstance(value, Tensor) else True
            assert same


def test_groups_are_one_launch_as_long_as_they_are_alike() -> None:
    params = weights()
    optimizer = gradstep.Adam(one_each(params))
    found = []
    for change in range(5):
        feed(params, change)
        if change == 1:
            optimizer.param_groups[2]["lr"] = 0.5
        if change == 2:
            optimizer.param_groups[5]["betas"] = (0.8, 0.99)
        if change == 3:
            for group in optimizer.param_groups:
                group.update(lr=0.25, betas=(0.9, 0.999))
        if change == 4:
            optimizer.param_groups[0]["lr"] = torch.tensor(0.25)  # which may change inside
        found.append(launches(optimizer))
        optimizer.step()
    assert found == [1, 2, 3, 1, 2]


def test_a_change_of_all_groups_plans_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    params = weights()
    optimizer = gradstep.Adam(one_each(params))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    feed(params, 0)
    optimizer.step()
    calls = []
    anew = Plan.anew
    monkeypatch.setattr(Plan, "anew", lambda self, *a: calls.append(1) or anew(self, *a))
    for step in range(1, 4):
        scheduler.step()
        feed(params, step)
        optimizer.step()
    assert not calls


def test_an_option_that_is_refused_stops_all_groups() -> None:
    params = weights()
    optimizer = gradstep.SGD(one_each(params), lr=1)
    for step in range(3):
        feed(params, step)
        optimizer.param_groups[3]["lr"] = "0.1" if step == 1 else 1
        before = [p.detach().clone() for p in params]
        if step == 1:
            with pytest.raises(TypeError, match="lr"):
                optimizer.step()
            assert all(map(torch.equal, params, before))
        else:
            optimizer.step()
            assert not any(map(torch.equal, params[:6], before[:6]))


def test_what_does_not_fit_is_named_and_nothing_is_written() -> None:
    params = weights()
    named = [(f"weight {i}", p) for i, p in enumerate(params)]
    optimizer = gradstep.Adam(one_each(named))
    feed(params, 0)
    optimizer.step()
    feed(params, 1)
    optimizer.state[params[3]]["exp_avg"] = torch.zeros(7)
    before = [p.detach().clone() for p in params]
    for _ in range(4):
        with pytest.raises(ValueError, match="weight 3"):
            optimizer.step()
        assert all(map(torch.equal, params, before))
    optimizer.state[params[3]]["exp_avg"] = torch.zeros_like(params[3])
    optimizer.step()
    assert not any(map(torch.equal, params[:3], before[:3]))


@pytest.mark.parametrize("shared", ["within", "across"])
def test_weights_that_share_memory_step_in_their_order(shared: str) -> None:
    runs = []
    for make in (gradstep.SGD, torch.optim.SGD):
        base = torch.arange(12.0)
        params = [torch.nn.Parameter(torch.zeros(8)) for _ in range(4)]
        params[0].data, params[1].data = base[:8], base[4:]
        groups = one_each(params)
        groups[1]["lr"] = 0.1 if shared == "within" else 0.3
        optimizer = make(groups, lr=0.1, momentum=0.9, weight_decay=0.1)
        for _ in range(3):
            for p in params:
                p.grad = torch.full((8,), 0.5)
            optimizer.step()
        runs.append(params)
    for one, other in zip(*runs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_unusual_weights_among_them_step_too() -> None:
    """A transposed weight, a bfloat16 one, a strided gradient: each as it steps by itself."""
    runs = []
    for own in (False, True):
        params: list[Any] = weights()
        params[3] = torch.nn.Parameter(torch.randn(4, 5).t())
        params[5] = torch.nn.Parameter(torch.randn(5, 1).bfloat16())
        if own:
            optimizers = [gradstep.Adam([p]) for p in params]
        else:
            optimizers = [gradstep.Adam(one_each(params))]
        for step in range(6):
            feed(params, step)
            if step == 4:
                params[0].grad = params[0].grad.t().contiguous().t()
            for optimizer in optimizers:
                optimizer.step()
        used = {engine for o in optimizers for engine in o.engines_used().values()}
        assert used == {"fused"}
        runs.append(params)
    for one, other in zip(*runs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_groups_that_come_go_and_gain_parameters() -> None:
    params = weights()
    optimizer = gradstep.SGD(one_each(params[:4]), lr=0.5)

    def moved(step: int) -> list[bool]:
        feed(params, step)
        before = [p.detach().clone() for p in params]
        optimizer.step()
        return [not torch.equal(p, b) for p, b in zip(params, before, strict=True)]

    assert moved(0)[:5] == [True] * 4 + [False]
    optimizer.add_param_group({"params": [params[4]]})
    assert moved(1)[:6] == [True] * 5 + [False]
    optimizer.param_groups.pop(1)
    assert moved(2)[:6] == [True, False, True, True, True, False]
    optimizer.param_groups[0]["params"].append(params[5])
    assert moved(3)[:6] == [True, False, True, True, True, True]
    optimizer.param_groups[2] = {**optimizer.param_groups[2], "params": [params[7]]}
    assert moved(4) == [True, False, True, False, True, True, False, True]


def test_a_parameter_that_is_replaced_is_freed() -> None:
    params = weights()
    optimizer = gradstep.Adam(one_each(params))
    for step in range(3):
        feed(params, step)
        optimizer.step()
    old = params.pop(2)
    gone = weakref.ref(old)
    new = torch.nn.Parameter(torch.randn(4, 3))
    optimizer.param_groups[2]["params"][0] = new
    optimizer.state[new] = optimizer.state.pop(old)
    params.insert(2, new)
    del old
    gc.collect()
    assert gone() is None
    feed(params, 5)
    optimizer.step()
    assert len(optimizer.engines_used()) == len(params)
