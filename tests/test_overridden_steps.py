"""Subclasses that put a step of their own around their parent's: hooks run once for each step."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import gradstep


class Around:
    """A step around the parent's."""

    calls = 0

    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        return super().step(closure)  # type: ignore[misc]


class MyAdam(Around, gradstep.Adam):
    pass


class MyOwn(gradstep.Optimizer):
    calls = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        return super().step(closure)


class MineOnceMore(MyAdam):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class MyEMA(Around, gradstep.EMA):
    pass


class MyAccumulate(Around, gradstep.Accumulate):
    pass


class MyPartition(Around, gradstep.Partition):
    pass


class MyLBFGS(Around, gradstep.LBFGS):
    pass


def partition(network: nn.Module) -> MyPartition:
    made = gradstep.partition({"matrices": gradstep.Adam, "rest": gradstep.Adam}, network, lr=0.05)
    return MyPartition(made.parts)


MADE: dict[str, Any] = {
    "a class": lambda m: MyAdam(m.parameters(), lr=0.05),
    "a rule": lambda m: MyOwn(m.parameters(), gradstep.adam(), lr=0.05),
    "of a subclass": lambda m: MineOnceMore(m.parameters(), lr=0.05),
    "a wrapper": lambda m: MyEMA(gradstep.Adam(m.parameters(), lr=0.05)),
    "a wrapper around one": lambda m: MyEMA(MyAdam(m.parameters(), lr=0.05)),
    "Accumulate": lambda m: MyAccumulate(gradstep.Adam(m.parameters(), lr=0.05), 1),
    "a partition": partition,
    "LBFGS": lambda m: MyLBFGS(m.parameters(), lr=0.05),
}


def closure_of(network: nn.Module, optimizer: Any) -> Any:
    def closure() -> Any:
        optimizer.zero_grad()
        loss = network(torch.ones(3, 4)).square().mean()
        loss.backward()
        return loss

    return closure


def parents() -> None:
    """torch puts hooks around the step of every class that has been made once."""
    p = [nn.Parameter(torch.ones(2, 2))]
    for kind in (gradstep.Adam, MyAdam, gradstep.LBFGS, torch.optim.LBFGS, torch.optim.Adam):
        kind(p)
    gradstep.EMA(gradstep.Adam(p))
    gradstep.Accumulate(gradstep.Adam(p), 1)
    gradstep.partition({"rest": gradstep.Adam}, p)


@pytest.mark.parametrize("profiled", [False, True])
@pytest.mark.parametrize("name", MADE)
def test_hooks_run_once_around_the_outermost_step(name: str, profiled: bool) -> None:
    parents()
    network = nn.Linear(4, 2)
    optimizer = MADE[name](network)
    seen: list[str] = []
    own = [
        optimizer.register_step_pre_hook(lambda *_: seen.append(f"before {optimizer.calls}")),
        optimizer.register_step_post_hook(lambda *_: seen.append(f"behind {optimizer.calls}")),
    ]
    every = [
        register_optimizer_step_pre_hook(
            lambda o, *_: seen.append("all before") if o is optimizer else None
        ),
        register_optimizer_step_post_hook(
            lambda o, *_: seen.append("all behind") if o is optimizer else None
        ),
    ]
    try:
        if profiled:
            with torch.profiler.profile():
                optimizer.step(closure_of(network, optimizer))
        else:
            optimizer.step(closure_of(network, optimizer))
        assert seen == ["all before", "before 0", "behind 1", "all behind"]
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)  # patches the step
        plain = optimizer.step
        optimizer.step = lambda *args: plain(*args)  # as others do that count steps
        optimizer.step(closure_of(network, optimizer))
        scheduler.step()
        assert seen[4:] == ["all before", "before 1", "behind 2", "all behind"]
    finally:
        for handle in (*own, *every):
            handle.remove()


@pytest.mark.parametrize("name", MADE)
def test_copies_and_steps_that_raise(name: str) -> None:
    network = nn.Linear(4, 2)
    optimizer = MADE[name](network)
    seen: list[int] = []

    def fails() -> Any:
        raise KeyError("from the closure")

    with pytest.raises(KeyError):
        optimizer.step(fails)
    copied, twin = copy.deepcopy((network, optimizer))
    pickled = pickle.loads(pickle.dumps((network, optimizer)))
    for own, each in ((network, optimizer), (copied, twin), pickled):
        seen.clear()
        each.register_step_post_hook(lambda *_: seen.append(1))
        each.step(closure_of(own, each))
        each.step(closure_of(own, each))
        assert seen == [1, 1]


@pytest.mark.parametrize("name", MADE)
def test_hooks_run_once_where_torch_has_compiled_something(name: str) -> None:
    """torch.compile then puts a wrapper around the steps of LBFGS and SparseAdam, hooks and all."""
    parents()
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1))
    test_hooks_run_once_around_the_outermost_step(name, False)


@pytest.mark.parametrize("name", ["a class", "of a subclass", "a wrapper", "a partition"])
def test_a_watch_counts_each_step_once(name: str) -> None:
    parents()
    network = nn.Linear(4, 2)
    optimizer = MADE[name](network)
    with gradstep.watch(network, optimizer, every=1) as watch:
        for _ in range(3):
            optimizer.step(closure_of(network, optimizer))
        assert [record.step for record in watch.records] == [1, 2, 3]


def test_hooks_may_exchange_the_arguments_of_an_overridden_step() -> None:
    network = nn.Linear(4, 2)
    optimizer = MyAdam(network.parameters(), lr=0.05)
    optimizer.register_step_pre_hook(lambda *_: ((optimizer, lambda: 7), {}))
    assert optimizer.step() == 7


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a class", pytest.param("a wrapper", marks=pytest.mark.deep)])
def test_hooks_run_once_in_a_compiled_step(name: str) -> None:
    network = nn.Linear(4, 2)
    optimizer = MADE[name](network)
    seen: list[int] = []
    optimizer.register_step_post_hook(lambda *_: seen.append(optimizer.calls))

    def step() -> None:
        network(torch.ones(3, 4)).square().mean().backward()
        optimizer.step()

    torch.compile(step, backend="eager")()
    assert seen == [1]
