"""Parameters that are replaced, merged or taken out during training are freed, and so are states.

3-D Gaussian splatting replaces all of its parameters every hundred steps, each by one of another
length. Whoever held the old ones on would run out of memory within minutes.
"""

from __future__ import annotations

import gc
import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import gradstep
from gradstep.optimizer.optimizer import begin_anew

CLIPPED = gradstep.chain(gradstep.clip_by_global_norm(1.0), gradstep.adam())
PARTS = {"matrices": gradstep.muon(), "rest": gradstep.adam()}

pytestmark = pytest.mark.usefixtures("few_objects")


def named(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**g, "params": [(f"weight {i}.{j}", p) for j, p in enumerate(g["params"])]}
        for i, g in enumerate(groups)
    ]


MAKES: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "Adam": gradstep.Adam,
    "SGD": lambda groups: gradstep.SGD(groups, lr=0.1),
    "momentum": lambda groups: gradstep.SGD(groups, lr=0.1, momentum=0.9),
    "Adagrad": gradstep.Adagrad,
    "named": lambda groups: gradstep.Adam(named(groups)),
    "eager": lambda groups: gradstep.Optimizer(groups, gradstep.adam(), engine="eager"),
    "LAMB": lambda groups: gradstep.Optimizer(groups, gradstep.lamb()),
    "clipped": lambda groups: gradstep.Optimizer(groups, CLIPPED),
    "Prodigy": lambda groups: gradstep.Optimizer(groups, gradstep.prodigy()),
    "schedule": lambda groups: gradstep.Adam(groups, lr=gradstep.schedule.cosine(0.1, 100)),
    "EMA": lambda groups: gradstep.EMA(gradstep.Adam(groups)),
    "Accumulate": lambda groups: gradstep.Accumulate(gradstep.Adam(groups), 1),
    "SkipNonFinite": lambda groups: gradstep.SkipNonFinite(gradstep.Adam(groups)),
}


def scene() -> list[dict[str, Any]]:
    """Groups as splatting has them, of one parameter each, and one of several."""
    shapes = [[(9, 3)], [(9, 4)], [(9, 1)], [(6, 6), (6,), (5, 6)]]
    return [{"params": [torch.nn.Parameter(torch.randn(shape)) for shape in own]} for own in shapes]


def step(optimizer: Any, without: int | None = None) -> None:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for number, p in enumerate(params):
        p.grad = None if number == without else torch.ones_like(p)
    optimizer.step()


def replaced(p: Tensor, change: Callable[[Tensor], Tensor], optimizer: Any) -> torch.nn.Parameter:
    """A parameter in the place of another, with its states, as splatting's own code does it."""
    new = torch.nn.Parameter(change(p.detach()))
    held = optimizer.state.pop(p, None)
    if held is not None:
        like = {n: isinstance(s, Tensor) and s.shape == p.shape for n, s in held.items()}
        held.update({n: change(s) for n, s in held.items() if like[n]})
        optimizer.state[new] = held
    return new


def densify(optimizer: Any) -> None:
    for group in optimizer.param_groups[:3]:
        old = group["params"][0]
        group["params"][0] = replaced(old, lambda t: torch.cat([t, t[:4]]), optimizer)


def prune(optimizer: Any) -> None:
    for group in optimizer.param_groups[:3]:
        old = group["params"][0]
        group["params"][0] = replaced(old, lambda t: t[2:].clone(), optimizer)


def merge(optimizer: Any) -> None:
    """As after LoRA: another parameter of the same shape, whose states begin anew."""
    group = optimizer.param_groups[-1]
    for place, old in enumerate(group["params"]):
        optimizer.state.pop(old, None)
        group["params"][place] = torch.nn.Parameter(old.detach() + 1)


def clear(optimizer: Any) -> None:
    names = "param_names" in optimizer.param_groups[0]
    optimizer.param_groups.clear()
    optimizer.state.clear()
    for group in named(scene()) if names else scene():
        optimizer.add_param_group(group)


def take_out(optimizer: Any) -> None:
    group = optimizer.param_groups.pop()
    for p in group["params"]:
        optimizer.state.pop(p, None)
    names = "param_names" in group
    own = [torch.nn.Parameter(torch.ones(2, 2))]
    optimizer.add_param_group({"params": [("new", own[0])] if names else own})


def exchange(optimizer: Any) -> None:
    """As fine-tuning callbacks do: all states at once, and some parameters of a group."""
    core = getattr(optimizer, "optimizer", optimizer)
    core.state = defaultdict(dict)
    core.param_groups[-1]["params"] = [torch.nn.Parameter(torch.ones(3, 3)) for _ in range(3)]


PROTOCOLS = (densify, prune, merge, clear, take_out, exchange)


def losses(optimizer: Any) -> tuple[list[weakref.ref[Any]], list[weakref.ref[Any]]]:
    """What there is to be freed: the memory of the parameters, and of their states."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    states = [s for p in params for s in optimizer.state.get(p, {}).values()]
    return (
        [weakref.ref(p) for p in params],
        [weakref.ref(s) for s in states if isinstance(s, Tensor) and s.numel() > 1],
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", MAKES)
def test_a_parameter_that_is_replaced_is_freed(name: str, protocol: Callable[[Any], None]) -> None:
    torch.manual_seed(0)
    optimizer = MAKES[name](scene())
    for without in (None, 0, None, 3, 4, 3):  # plans of several masks
        step(optimizer, without)
    for _ in range(2):
        params, states = losses(optimizer)
        protocol(optimizer)
        for without in (None, 2):
            step(optimizer, without)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        used = {id(s) for entry in optimizer.state.values() for s in entry.values()}
        gc.collect()
        assert all(p() is None or id(p()) in held for p in params)
        assert all(s() is None or id(s()) in used for s in states)
        assert any(p() is None for p in params)


@pytest.mark.parametrize("name", ["Adam", "momentum", "LAMB", "clipped"])
def test_not_even_until_the_next_step(name: str) -> None:
    """Splatting needs the memory of the old parameters for the new ones, at once."""
    optimizer = MAKES[name](scene())
    for without in (None, 0, None, 3):
        step(optimizer, without)
    params, states = losses(optimizer)
    gc.collect()
    gc.disable()
    try:
        prune(optimizer)
        assert [p() is None for p in params] == [True] * 3 + [False] * 3
        of_replaced = len(states) // 2
        assert all(s() is None for s in states[:of_replaced])
    finally:
        gc.enable()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ["Adam", "momentum", "LAMB", "clipped", "EMA"])
def test_the_steps_are_those_of_an_optimizer_that_never_knew_the_old_ones(
    name: str, protocol: Callable[[Any], None]
) -> None:
    """Ids of freed parameters are given to new ones: no plan may take these for the old."""
    runs = []
    for fresh in (False, True):
        torch.manual_seed(0)
        optimizer = MAKES[name](scene())
        for without in (None, 1, 4):
            step(optimizer, without)
        for _ in range(3):
            protocol(optimizer)
            if fresh:  # forgets all plans
                core = getattr(optimizer, "optimizer", optimizer)
                begin_anew(core)
            for without in (None, 0, 5 if protocol is not take_out else 3):
                step(optimizer, without)
        runs.append([p for group in optimizer.param_groups for p in group["params"]])
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


def test_a_partition_frees_them() -> None:
    params = [torch.nn.Parameter(torch.randn(4, 4)) for _ in range(3)]
    params += [torch.nn.Parameter(torch.randn(4)) for _ in range(2)]
    optimizer = gradstep.partition(PARTS, [(f"weight {i}", p) for i, p in enumerate(params)])
    del params
    for without in (None, 0, 4):
        step(optimizer, without)
    found, states = losses(optimizer)
    for group in optimizer.param_groups:
        group["params"][0] = replaced(group["params"][0], lambda t: t + 1, optimizer)
    for without in (None, 1):
        step(optimizer, without)
    gc.collect()
    assert sum(p() is None for p in found) == 2
    assert sum(s() is None for s in states) == 3


def test_parameters_can_still_be_swapped() -> None:
    """torch.utils.swap_tensors refuses tensors with weak references, as module.to() may ask it."""
    model = torch.nn.Linear(3, 3)
    optimizer = gradstep.Adam(model.named_parameters())
    step(optimizer)
    step(optimizer, 0)
    other = torch.nn.Parameter(torch.zeros(3, 3))
    torch.utils.swap_tensors(model.weight, other)
    step(optimizer)
    assert float(model.weight.detach().abs().max()) < 0.01
