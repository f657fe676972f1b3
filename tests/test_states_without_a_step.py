"""The step that torch.distributed.checkpoint makes for states to be there: nothing counts it.

It comes before the first, with learning rates and gradients of 0. Whoever has asked for a
checkpoint trains as if he had not, to the last bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import gradstep

LINEAR = gradstep.schedule.linear(0.9, 0.5, 10)


def model(seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def sgd(network: nn.Module, **options: Any) -> gradstep.Optimizer:
    return gradstep.SGD(network.parameters(), lr=0.1, **options)


def adamw(network: nn.Module) -> gradstep.Optimizer:
    return gradstep.AdamW(network.parameters(), lr=0.05)


def parts(network: nn.Module) -> gradstep.Partition:
    rules = {"matrices": gradstep.muon(), "rest": gradstep.adam(beta1=LINEAR)}
    return gradstep.partition(rules, network, lr=0.05)


MADE: dict[str, Callable[[nn.Module], Any]] = {
    "SGD": sgd,
    "SGD with dampening": lambda m: sgd(m, momentum=0.9, dampening=0.5),
    "a schedule of momentum": lambda m: sgd(m, momentum=LINEAR),
    "a schedule of decay alone": lambda m: sgd(m, weight_decay=LINEAR),
    "a schedule of lr": lambda m: gradstep.AdamW(m.parameters(), lr=LINEAR, weight_decay=LINEAR),
    "AdamW": adamw,
    "Adan, which asks for its first gradient": lambda m: gradstep.Adan(m.parameters(), lr=0.05),
    "Prodigy, one number for all": lambda m: gradstep.Prodigy(m.parameters()),
    "SOAP": lambda m: gradstep.SOAP(m.parameters(), lr=0.05),
    "Schedule-Free": lambda m: gradstep.AveragedWeights(gradstep.AdamWScheduleFree(m.parameters())),
    "a partition": parts,
    "EMA": lambda m: gradstep.EMA(parts(m)),
    "Accumulate": lambda m: gradstep.Accumulate(adamw(m), 2),
    "GradientNoise": lambda m: gradstep.GradientNoise(adamw(m), eta=0.1),
    "SAM": lambda m: gradstep.SAM(adamw(m)),
    "many": lambda m: gradstep.SkipNonFinite(
        gradstep.GradientNoise(gradstep.Accumulate(gradstep.EMA(parts(m)), 2), eta=0.1)
    ),
}
every_kind = pytest.mark.parametrize("name", MADE)


def learn(network: nn.Module, optimizer: Any, steps: range) -> None:
    for step in steps:

        def closure(step: int = step) -> Any:
            optimizer.zero_grad()
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            loss = network(x).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)


def same(network: nn.Module, optimizer: Any, other: nn.Module, twin: Any) -> None:
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert set(optimizer.state.get(a, {})) == set(twin.state.get(b, {}))
        for key, state in optimizer.state.get(a, {}).items():
            assert torch.equal(state, twin.state[b][key]), key
    numbers = ("lr", "momentum", "weight_decay", "beta1", "schedule_step", "accumulated")
    for group, own in zip(optimizer.param_groups, twin.param_groups, strict=True):
        for key in (*numbers, "noise_step", "nonfinite"):
            assert group.get(key) == own.get(key), key


@every_kind
def test_asking_for_the_states_changes_nothing(name: str) -> None:
    network, other = model(), model()
    optimizer, twin = MADE[name](network), MADE[name](other)
    groups = copy.deepcopy([{**g, "params": None} for g in optimizer.param_groups])
    states = get_optimizer_state_dict(network, optimizer)
    assert [{**g, "params": None} for g in optimizer.param_groups] == groups
    for entry in states["state"].values():
        assert float(entry.get("step", 0)) == 0
        assert all(not bool(v.any()) for n, v in entry.items() if n in ("exp_avg", "exp_avg_sq"))
    learn(network, optimizer, range(4))
    learn(other, twin, range(4))
    same(network, optimizer, other, twin)


@pytest.mark.parametrize("flat", [False, True])
@every_kind
def test_states_are_there_to_be_loaded_into(name: str, flat: bool, tmp_path: Path) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    network, other = model(), model(2)
    source, optimizer = MADE[name](network), MADE[name](other)
    learn(network, source, range(4))
    saved = get_optimizer_state_dict(network, source, options=options)
    dcp.save({"optimizer": saved}, checkpoint_id=tmp_path)
    read = {"optimizer": get_optimizer_state_dict(other, optimizer, options=options)}
    dcp.load(read, checkpoint_id=tmp_path)
    set_optimizer_state_dict(other, optimizer, read["optimizer"], options=options)
    other.load_state_dict(network.state_dict())
    learn(network, source, range(4, 7))
    learn(other, optimizer, range(4, 7))
    same(network, source, other, optimizer)


@pytest.mark.parametrize(
    "name", ["AdamW", "SGD with dampening", "SOAP", "Schedule-Free", "Prodigy, one number for all"]
)
def test_states_that_somebody_has_written_into_stay(name: str) -> None:
    """As a checkpoint does that is read in place."""
    network, other = model(), model()
    source, optimizer = MADE[name](network), MADE[name](other)
    learn(network, source, range(3))
    get_optimizer_state_dict(other, optimizer)
    with torch.no_grad():
        for a, b in zip(network.parameters(), other.parameters(), strict=True):
            b.copy_(a)
            for key, state in source.state[a].items():
                optimizer.state[b][key].copy_(state)
    for group, own in zip(source.param_groups, optimizer.param_groups, strict=True):
        own.update({n: v for n, v in group.items() if n != "params"})
    learn(network, source, range(3, 6))
    learn(other, optimizer, range(3, 6))
    same(network, source, other, optimizer)


@pytest.mark.parametrize(
    "name",
    ["AdamW", "Adan, which asks for its first gradient", "Prodigy, one number for all", "SOAP"],
)
def test_saved_before_the_first_step_it_begins_as_if_new(name: str) -> None:
    network, other, plain = model(), model(), model()
    source, optimizer, twin = MADE[name](network), MADE[name](other), MADE[name](plain)
    saved = copy.deepcopy(get_optimizer_state_dict(network, source))
    set_optimizer_state_dict(other, optimizer, saved)
    learn(other, optimizer, range(3))
    learn(plain, twin, range(3))
    same(other, optimizer, plain, twin)


@every_kind
def test_two_optimizers_of_one_checkpoint_have_states_of_their_own(name: str) -> None:
    """Within one process no file is between them."""
    network, other, plain = model(), model(2), model()
    source, optimizer, twin = MADE[name](network), MADE[name](other), MADE[name](plain)
    learn(network, source, range(2))
    learn(plain, twin, range(2))
    optimizer.load_state_dict(source.state_dict())
    learn(other, optimizer, range(2, 5))
    learn(network, source, range(2, 5))
    learn(plain, twin, range(2, 5))
    same(network, source, plain, twin)


def test_states_of_torchs_optimizer_stay_its_own() -> None:
    network, other = model(), model(2)
    theirs = torch.optim.Adam(network.parameters(), lr=0.05, amsgrad=True)
    learn(network, theirs, range(2))
    before = copy.deepcopy(theirs.state_dict()["state"])
    optimizer = gradstep.Adam(other.parameters(), lr=0.05, amsgrad=True)
    optimizer.load_state_dict(theirs.state_dict())
    learn(other, optimizer, range(2, 5))
    assert str(theirs.state_dict()["state"]) == str(before)


def test_a_step_of_a_training_counts() -> None:
    """A learning rate of 0, or gradients of 0, or one parameter's alone: torch counts them."""
    for rate, gradient in ((0.0, 1.0), (0.1, 0.0)):
        network = model()
        optimizer = gradstep.Adam(network.parameters(), lr=rate)
        for p in network.parameters():
            p.grad = torch.full_like(p, gradient)
        optimizer.step()
        assert all(float(s["step"]) == 1 for s in optimizer.state.values())
    network = model()
    optimizer = gradstep.Adam(network.parameters(), lr=0.0)
    network[0].weight.grad = torch.zeros(6, 4)
    optimizer.step()
    assert [float(s["step"]) for s in optimizer.state.values()] == [1.0]


# The loss of a step that has nothing to do.


@pytest.mark.parametrize("kind", [gradstep.Momo, gradstep.MomoAdam])
def test_no_loss_is_needed_where_there_are_no_gradients(kind: Any) -> None:
    """As where a training step leaves out a batch, and its closure returns nothing."""
    network = model()
    for optimizer in (
        kind(network.parameters()),
        gradstep.partition({"rest": kind}, network),
        gradstep.EMA(kind(network.parameters())),
    ):
        before = copy.deepcopy(network.state_dict())
        assert optimizer.step() is None
        assert optimizer.step(lambda: None) is None
        assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items())
        assert not optimizer.state
        learn(network, optimizer, range(1))
        held = copy.deepcopy(dict(optimizer.state))
        optimizer.zero_grad()
        optimizer.step(lambda: None)
        assert str(dict(optimizer.state)) == str(held)
        network[0].bias.grad = torch.ones(6)
        with pytest.raises(ValueError, match="asks for the loss"):
            optimizer.step()
        optimizer.zero_grad()
