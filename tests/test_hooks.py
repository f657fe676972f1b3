"""Hooks of every class: around a step, around saving and loading, and what they keep alive."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import optim as distributed_optim
from torch.optim import optimizer as torch_optimizer

import gradstep
from classes import ROWS, Row, Task, assert_same_bits, each

pytestmark = pytest.mark.sweep


def one() -> list[torch.Tensor]:
    return [torch.tensor([[1.0, 1.0]])]


# Around a step.


@each(ROWS)
def test_step_hooks_of_every_class(row: Row) -> None:
    for options in row.configurations:
        optimizer = row.make(one(), options)
        calls: list[str] = []
        handles = [
            optimizer.register_step_pre_hook(lambda *_, calls=calls: calls.append("pre")),
            optimizer.register_step_post_hook(lambda *_, calls=calls: calls.append("post")),
        ]
        for _ in range(2):
            assert optimizer.step(lambda: 1.0) == 1.0
        assert calls == ["pre", "post"] * 2
        for handle in handles:
            handle.remove()
        optimizer.step(lambda: 1.0)
        assert calls == ["pre", "post"] * 2


@each(ROWS)
def test_global_hooks_stand_around_those_of_the_optimizer(row: Row) -> None:
    calls: list[str] = []

    def note(name: str) -> Any:
        return lambda *_: calls.append(name)

    optimizer, other = row.make(one()), gradstep.SGD(one())
    handles = [
        torch_optimizer.register_optimizer_step_pre_hook(note("global pre")),
        torch_optimizer.register_optimizer_step_post_hook(note("global post")),
    ]
    for o in (optimizer, other):
        handles.append(o.register_step_pre_hook(note("pre")))
        handles.append(o.register_step_post_hook(note("post")))
    around = ["global pre", "pre", "post", "global post"]
    try:
        for o in (optimizer, other, optimizer):
            o.step(lambda: 1.0)
    finally:
        for handle in handles:
            handle.remove()
    assert calls == around * 3
    optimizer.step(lambda: 1.0)
    other.step()
    assert calls == around * 3


# Around saving.


def add_an_entry(optimizer: Any) -> None:
    optimizer.state["test"] = 1


def take_it_out(optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
    found = state_dict["state"].pop("test", None)
    return {**state_dict, "found": found}


@each(ROWS)
def test_hooks_before_and_after_saving(row: Row) -> None:
    optimizer = row.make(one(), row.fullest)
    handle = optimizer.register_state_dict_pre_hook(add_an_entry)
    assert optimizer.state_dict()["state"]["test"] == 1
    handle.remove()
    del optimizer.state["test"]
    optimizer.register_state_dict_post_hook(take_it_out)
    assert optimizer.state_dict()["found"] is None
    optimizer.register_state_dict_pre_hook(add_an_entry)
    saved = optimizer.state_dict()
    assert saved["found"] == 1 and "test" not in saved["state"]


# Around loading.


@pytest.mark.parametrize("profiled", [False, True], ids=["plain", "profiled"])
def test_a_hook_before_the_step_may_exchange_its_arguments(profiled: bool) -> None:
    """With a profiler the wrapper is torch's own, without one it is ours: both do the same."""
    calls: list[Any] = []
    for kind in (torch.optim.SGD, gradstep.SGD):
        p = nn.Parameter(torch.ones(3))
        p.grad = torch.ones(3)
        optimizer = kind([p], lr=0.5)
        with torch.autograd.profiler.profile() if profiled else nullcontext():
            first = optimizer.register_step_pre_hook(lambda o, a, k: ((*a, lambda: 7.0), k))
            optimizer.register_step_post_hook(lambda o, a, k: calls.append((len(a), k)))
            assert optimizer.step() == 7.0
            first.remove()
            optimizer.register_step_pre_hook(lambda o, a, k: "new")
            message = r"must return None or a tuple of \(new_args, new_kwargs\), but got new\."
            with pytest.raises(RuntimeError, match=message):
                optimizer.step()
        assert p.tolist() == [0.5] * 3
    assert calls == [(2, {})] * 2


def in_place(optimizer: Any, state_dict: dict[str, Any]) -> None:
    state_dict["param_groups"][0]["lr"] = 0.002


def by_a_copy(optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
    changed = copy.deepcopy(state_dict)
    changed["param_groups"][0]["lr"] = 0.003
    return changed


def note_lr(optimizer: Any) -> None:
    optimizer.state["lr when loaded"] = optimizer.param_groups[0]["lr"]


@each(ROWS)
def test_hooks_before_loading_and_their_order(row: Row) -> None:
    optimizer = row.make(one(), row.fullest)
    saved = optimizer.state_dict()
    optimizer.register_load_state_dict_pre_hook(in_place)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.002
    first = optimizer.register_load_state_dict_pre_hook(by_a_copy, prepend=True)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.002  # the other came last
    first.remove()
    optimizer.register_load_state_dict_pre_hook(by_a_copy)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.003


@each(ROWS)
def test_hooks_after_loading(row: Row) -> None:
    optimizer = row.make(one(), row.fullest)
    optimizer.register_load_state_dict_post_hook(note_lr)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state["lr when loaded"] == optimizer.param_groups[0]["lr"]
    optimizer.register_load_state_dict_pre_hook(by_a_copy)
    # What the hook left in the state is no parameter's, and is saved and loaded like in torch.
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state["lr when loaded"] == 0.003


@each(ROWS)
def test_an_entry_that_is_no_parameters_is_kept_through_training(row: Row) -> None:
    task = Task(row)
    optimizer = row.make(task, row.fullest)
    optimizer.state["note"] = {"by": "a user"}
    task.train(optimizer, 2)
    rest = task.copy()
    resumed = row.make(rest, row.fullest)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert resumed.state["note"] == {"by": "a user"}
    task.train(optimizer, 2)
    rest.train(resumed, 2)
    assert_same_bits(task, rest)


# torch's own users of hooks on gradients, and of names.


@each([r for r in ROWS if not (r.needs_closure or r.only_sparse or r.coupled)])
@pytest.mark.parametrize("tied", [False, True], ids=["own", "tied"])
def test_torchs_optimizer_in_the_backward_pass(row: Row, tied: bool) -> None:
    def model() -> nn.Sequential:
        torch.manual_seed(2)
        made = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
        if tied:
            made[0].weight = made[1].weight
        return made

    plain, within = model(), model()
    optimizer = row.make(plain.parameters(), row.fullest)
    options = copy.deepcopy(row.fullest)
    distributed_optim._apply_optimizer_in_backward(row.ours, within.parameters(), options)
    images = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    for _ in range(4):
        optimizer.zero_grad()
        plain(images).square().sum().backward()
        optimizer.step()
        within(images).square().sum().backward()
        assert_same_bits(plain.parameters(), within.parameters())


@each([row for row in ROWS if not row.needs_closure and not row.only_sparse])
def test_torchs_named_optimizer_around_ours(row: Row) -> None:
    whole = nn.ParameterDict(Task(row).params)
    named = distributed_optim._NamedOptimizer(
        whole.named_parameters(), row.ours, None, whole, **copy.deepcopy(row.fullest)
    )
    for number in range(2):
        for p in whole.parameters():
            p.grad = torch.full_like(p, 0.5 + number)
        named.step(lambda: torch.tensor(1.0))
    saved = copy.deepcopy(named.state_dict())
    # SGD without momentum has no states; what has one is named.
    assert set(saved["state"]) in (set(), {"first", "second"})
    if saved["state"]:  # torch's class loads none without
        named.load_state_dict(saved)
    before = [p.detach().clone() for p in whole.parameters()]
    named.step(lambda: torch.tensor(1.0))
    assert not any(torch.equal(p, q) for p, q in zip(whole.parameters(), before, strict=True))
