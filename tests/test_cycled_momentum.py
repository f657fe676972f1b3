"""OneCycleLR and CyclicLR also cycle a momentum: of any rule, chain, partition and wrapper."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as s

import gradstep

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "OneCycleLR": lambda o: s.OneCycleLR(o, max_lr=0.1, total_steps=12),
    "OneCycleLR linear": lambda o: s.OneCycleLR(
        o, max_lr=0.1, total_steps=12, anneal_strategy="linear", three_phase=True
    ),
    "CyclicLR": lambda o: s.CyclicLR(o, 0.01, 0.1, step_size_up=3),
}
Params = list[tuple[str, Tensor]]


def weights() -> Params:
    generator = torch.Generator().manual_seed(0)
    shapes = {"matrix": (4, 3), "bias": (3,)}
    return [(n, nn.Parameter(torch.randn(s, generator=generator))) for n, s in shapes.items()]


def train(params: Params, optimizer: Any, schedule: Any, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for _, p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
        schedule.step()


def model_of(params: Params) -> nn.Module:
    module = nn.Module()
    for name, p in params:
        module.register_parameter(name, p)  # type: ignore[arg-type]
    return module


chain, decay = gradstep.chain, gradstep.decay_weights

#: Of gradstep, and what of torch's it has to be the same as.
PAIRS: dict[str, tuple[Callable[[Params], Any], Callable[[Params], Any]]] = {
    "a rule": (
        lambda p: gradstep.Optimizer(p, gradstep.adam()),
        lambda p: torch.optim.Adam(p),
    ),
    "momentum": (
        lambda p: gradstep.Optimizer(p, gradstep.sgd(momentum=0.5)),
        lambda p: torch.optim.SGD(p, momentum=0.5),
    ),
    "a chain": (
        lambda p: gradstep.Optimizer(p, chain(gradstep.adam(), decay(weight_decay=0.1))),
        lambda p: torch.optim.AdamW(p, weight_decay=0.1),
    ),
    "groups": (
        lambda p: gradstep.for_model(
            model_of(p), chain(gradstep.adam(), decay(weight_decay=0.1))
        ),
        lambda p: torch.optim.AdamW(
            [{"params": p[:1]}, {"params": p[1:], "weight_decay": 0.0}], weight_decay=0.1
        ),
    ),
    "groups of a class": (
        lambda p: gradstep.for_model(model_of(p), gradstep.AdamW, weight_decay=0.1),
        lambda p: torch.optim.AdamW(
            [{"params": p[:1]}, {"params": p[1:], "weight_decay": 0.0}], weight_decay=0.1
        ),
    ),
    "a partition of rules": (
        lambda p: gradstep.partition({"matrices": gradstep.adam(), "rest": gradstep.adam()}, p),
        lambda p: torch.optim.Adam(p),
    ),
    "a partition of classes": (
        lambda p: gradstep.partition({"matrices": gradstep.NAdam, "rest": gradstep.NAdam}, p),
        lambda p: torch.optim.NAdam(p),
    ),
    "an average": (
        lambda p: gradstep.EMA(gradstep.Optimizer(p, gradstep.adam())),
        lambda p: torch.optim.Adam(p),
    ),
}  # fmt: skip


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("pair", PAIRS)
def test_the_weights_are_torchs(pair: str, scheduler: str) -> None:
    found = []
    for make in PAIRS[pair]:
        params = weights()
        optimizer = make(params)
        schedule = SCHEDULERS[scheduler](optimizer)
        train(params, optimizer, schedule, range(11))
        found.append([p.detach() for _, p in params])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def mixed(params: Params) -> Any:
    parts = {"matrices": gradstep.muon(), "biases_and_norms": gradstep.AdamW}
    return gradstep.partition(parts, params, lr=0.01)


def numbers(optimizer: Any) -> list[Any]:
    return [group.get("momentum", group.get("betas")) for group in optimizer.param_groups]


def test_each_part_has_the_momentum_where_its_rule_has_it() -> None:
    params = weights()
    optimizer = mixed(params)
    schedule = SCHEDULERS["OneCycleLR"](optimizer)
    seen = []
    for step in range(6):
        train(params, optimizer, schedule, range(step, step + 1))
        optimizer.step()
        seen.append((optimizer.param_groups[0]["momentum"], *optimizer.param_groups[1]["betas"]))
    assert [a for a, _, _ in seen] == [b for _, b, _ in seen]
    assert len({a for a, _, _ in seen}) == 6
    assert {c for _, _, c in seen} == {0.999}


@pytest.mark.parametrize("maker", [mixed, *(ours for ours, _ in PAIRS.values())])
@pytest.mark.parametrize("way", ["file", "copy", "pickle"])
def test_saved_between_scheduler_and_step(maker: Any, way: str) -> None:
    params = weights()
    optimizer = maker(params)
    schedule = SCHEDULERS["OneCycleLR"](optimizer)
    train(params, optimizer, schedule, range(4))
    again = weights()
    for (_, q), (_, p) in zip(again, params, strict=True):
        q.data.copy_(p.detach())
    if way == "file":
        file = io.BytesIO()
        torch.save((optimizer.state_dict(), schedule.state_dict()), file)
        file.seek(0)
        resumed = maker(again)
        other = SCHEDULERS["OneCycleLR"](resumed)
        states = torch.load(file, weights_only=False)
        resumed.load_state_dict(states[0])
        other.load_state_dict(states[1])
    else:
        both = (optimizer, schedule, params)
        resumed, other, again = (
            copy.deepcopy(both) if way == "copy" else pickle.loads(pickle.dumps(both))
        )
    train(params, optimizer, schedule, range(4, 8))
    train(again, resumed, other, range(4, 8))
    for (_, p), (_, q) in zip(params, again, strict=True):
        assert torch.equal(p, q)


def test_a_momentum_of_nobodys_stays_where_it_is() -> None:
    """As in torch, which keeps options that it does not know."""
    params = weights()
    optimizer = gradstep.AdamW([{"params": [p for _, p in params], "momentum": 0.1}])
    for _, p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.param_groups[0]["momentum"] == 0.1
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


@pytest.mark.parametrize("make", [gradstep.Adagrad, gradstep.Rprop])
def test_a_rule_without_momentum_is_refused_as_by_torch(make: Any) -> None:
    params = weights()
    with pytest.raises(ValueError, match="must support momentum or beta1"):
        s.OneCycleLR(make(params), max_lr=0.1, total_steps=12)
    s.OneCycleLR(make(params), max_lr=0.1, total_steps=12, cycle_momentum=False)


def test_a_fixed_schedule_and_a_scheduler_do_not_share_a_number() -> None:
    params = weights()
    falling = gradstep.schedule.linear(0.9, 0.5, 10)
    optimizer = gradstep.Optimizer(params, gradstep.adam(beta1=falling))
    schedule = SCHEDULERS["OneCycleLR"](optimizer)
    with pytest.raises(ValueError, match=r"beta1 of group 0 follows the schedule"):
        train(params, optimizer, schedule, range(1))


def test_options_of_new_groups_are_the_rules_own() -> None:
    params = weights()
    optimizer = gradstep.Optimizer(params[:1], gradstep.adam())
    optimizer.add_param_group({"params": params[1:], "beta1": 0.5})
    assert [group["beta1"] for group in optimizer.param_groups] == [0.9, 0.5]
    assert not any("momentum" in group for group in optimizer.param_groups)
    assert "momentum" not in list(optimizer.defaults)
