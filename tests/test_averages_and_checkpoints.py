"""Saving and loading while averages stand in the weights' place; batch statistics for them."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim.swa_utils import update_bn

import gradstep
from ranks import run_ranks


def model(seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def learn(network: nn.Module, optimizer: Any, steps: range = range(3)) -> None:
    for step in steps:
        optimizer.zero_grad()
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        network(x).square().mean().backward()
        optimizer.step()


def parts(network: nn.Module) -> gradstep.Partition:
    rules = {"matrices": gradstep.muon(), "rest": gradstep.adam()}
    return gradstep.partition(rules, network)


def both(network: nn.Module) -> gradstep.Partition:
    """One part with averages, and one without."""
    averaged = gradstep.chain(gradstep.adam(), gradstep.average_weights(average_decay=0.5))
    return gradstep.partition({"matrices": averaged, "rest": gradstep.adam()}, network)


MADE: dict[str, Callable[[nn.Module], Any]] = {
    "EMA": lambda m: gradstep.EMA(gradstep.AdamW(m.parameters(), lr=0.05), 0.5),
    "EMA of a partition": lambda m: gradstep.EMA(parts(m), 0.5),
    "a part": lambda m: gradstep.AveragedWeights(both(m)),
    "Schedule-Free AdamW": lambda m: gradstep.AveragedWeights(
        gradstep.AdamWScheduleFree(m.named_parameters(), lr=0.05)
    ),
    "Schedule-Free SGD": lambda m: gradstep.AveragedWeights(
        gradstep.SGDScheduleFree(m.parameters(), lr=0.5)
    ),
    "a wrapper inside": lambda m: gradstep.EMA(
        gradstep.SkipNonFinite(gradstep.SGD(m.parameters(), lr=0.1, momentum=0.9)), 0.5
    ),
}
every_kind = pytest.mark.parametrize("name", MADE)


def weights(network: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(map(torch.equal, a, b))


def averages(network: nn.Module, optimizer: Any) -> list[Tensor]:
    with optimizer.averages():
        return weights(network)


def through_a_file(saved: Any) -> Any:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file)


# Loading while the averages stand there.


@pytest.mark.parametrize("order", ["model first", "optimizer first"])
@every_kind
def test_what_is_loaded_meanwhile_stays(name: str, order: str) -> None:
    network, other = model(), model(2)
    source, optimizer = MADE[name](network), MADE[name](other)
    learn(network, source)
    saved = through_a_file([network.state_dict(), source.state_dict()])
    learn(other, optimizer, range(3, 5))
    optimizer.eval()
    if order == "model first":
        other.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    if order == "optimizer first":
        other.load_state_dict(saved[0])
    optimizer.eval()
    assert equal(weights(other), averages(network, source))
    optimizer.train()
    assert equal(weights(other), weights(network))
    learn(network, source, range(5, 8))
    learn(other, optimizer, range(5, 8))
    assert equal(weights(other), weights(network))


@every_kind
def test_a_model_alone_that_is_loaded_meanwhile_stays(name: str) -> None:
    network, other = model(), model(2)
    optimizer = MADE[name](network)
    learn(network, optimizer)
    optimizer.eval()
    network.load_state_dict(other.state_dict())
    optimizer.train()
    assert equal(weights(network), weights(other))


@every_kind
def test_an_optimizer_alone_that_is_loaded_meanwhile_leaves_the_training_weights(name: str) -> None:
    network, other = model(), model(2)
    source, optimizer = MADE[name](network), MADE[name](other)
    learn(network, source)
    learn(other, optimizer, range(1))
    before = weights(other)
    optimizer.eval()
    optimizer.load_state_dict(through_a_file(source.state_dict()))
    optimizer.train()
    assert equal(weights(other), before)


@every_kind
def test_a_load_that_fails_changes_nothing(name: str) -> None:
    network = model()
    optimizer = MADE[name](network)
    learn(network, optimizer)
    before, standing = weights(network), averages(network, optimizer)
    optimizer.eval()
    saved = copy.deepcopy(optimizer.state_dict())
    for entry in saved["state"].values():
        for key in [k for k in entry if k not in ("step", "training_weight")]:
            entry[key] = torch.ones(17)
    with pytest.raises(ValueError, match=r"of another model|not a number"):
        optimizer.load_state_dict(saved)
    assert equal(weights(network), standing)
    optimizer.train()
    assert equal(weights(network), before)


# Saving while the averages stand there, as a Trainer does that evaluates before it saves.


@pytest.mark.parametrize("order", ["model first", "optimizer first"])
@every_kind
def test_a_checkpoint_of_the_evaluation_brings_the_training_back(name: str, order: str) -> None:
    network, other = model(), model(2)
    optimizer = MADE[name](network)
    learn(network, optimizer)
    before = weights(network)
    optimizer.eval()
    saved = through_a_file([network.state_dict(), optimizer.state_dict()])
    standing = weights(network)
    resumed = MADE[name](other)
    if order == "model first":
        other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    if order == "optimizer first":
        other.load_state_dict(saved[0])
    assert equal(weights(other), standing)
    with pytest.raises(RuntimeError, match=r"call train\(\) first"):
        resumed.step()
    again = through_a_file(resumed.state_dict())  # saved once more before it goes on
    resumed.load_state_dict(again)
    for each in (optimizer, resumed):
        each.train()
    assert equal(weights(other), before) and equal(weights(network), before)
    learn(network, optimizer, range(3, 6))
    learn(other, resumed, range(3, 6))
    assert equal(weights(other), weights(network))
    assert "training_weight" not in str(resumed.state_dict())


@every_kind
def test_saved_through_other_wrappers(name: str) -> None:
    network, other = model(), model(2)
    optimizer = gradstep.GradientNoise(gradstep.Accumulate(MADE[name](network), 2), eta=0.01)
    resumed = gradstep.GradientNoise(gradstep.Accumulate(MADE[name](other), 2), eta=0.01)
    for step in range(5):
        learn(network, optimizer, range(step, step + 1))
    before = weights(network)
    gradients = [p.grad for p in network.parameters()]
    optimizer.optimizer.optimizer.eval()
    other.load_state_dict(network.state_dict())
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    resumed.optimizer.optimizer.train()
    assert equal(weights(other), before)
    assert resumed.optimizer.pending == 1
    assert all(torch.equal(p.grad, g) for p, g in zip(other.parameters(), gradients, strict=True))


def test_without_the_wrapper_it_is_refused() -> None:
    network = model()
    optimizer = MADE["EMA"](network)
    learn(network, optimizer)
    with optimizer.averages():
        saved = through_a_file(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"saved while averages stood.*call train\(\)"):
        optimizer.optimizer.load_state_dict(saved)
    for entry in saved["state"].values():
        del entry["training_weight"]
    with pytest.raises(ValueError, match=r"the training weights were not saved.*behind train\(\)"):
        optimizer.load_state_dict(saved)


def test_torchs_distributed_checkpoint_of_the_evaluation(tmp_path: Path) -> None:
    network, other = model(), model(2)
    optimizer, twin = MADE["EMA"](network), MADE["EMA"](other)
    learn(network, optimizer)
    before = weights(network)
    optimizer.eval()
    saved = get_optimizer_state_dict(network, optimizer)
    dcp.save(saved, checkpoint_id=tmp_path)
    set_optimizer_state_dict(other, twin, copy.deepcopy(saved))
    twin.train()
    assert equal(weights(other), before)
    # A file is read into the states that there are, and no training weights are among them.
    fresh = MADE["EMA"](other)
    states = get_optimizer_state_dict(other, fresh)
    dcp.load(states, checkpoint_id=tmp_path)
    with pytest.raises(ValueError, match=r"the training weights were not saved"):
        set_optimizer_state_dict(other, fresh, states)


# Copies, and models that move.


@every_kind
def test_copies_go_on_as_they_were(name: str) -> None:
    network = model()
    optimizer = MADE[name](network)
    learn(network, optimizer)
    before = weights(network)
    optimizer.eval()
    standing = weights(network)
    copies = [copy.deepcopy((network, optimizer)), pickle.loads(pickle.dumps((network, optimizer)))]
    for other, twin in copies:
        twin.eval()
        assert equal(weights(other), standing)
        twin.train()
        assert equal(weights(other), before)
    network.load_state_dict(model(2).state_dict())
    other, twin = copy.deepcopy((network, optimizer))
    twin.train()
    assert equal(weights(other), weights(model(2)))


@pytest.mark.parametrize("swap", [False, True])
@every_kind
def test_a_model_that_is_moved_meanwhile_gets_its_weights_back(name: str, swap: bool) -> None:
    network = model()
    optimizer = MADE[name](network)
    learn(network, optimizer)
    before = weights(network)
    optimizer.zero_grad()
    optimizer.eval()
    earlier = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        network.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(earlier)
    optimizer.train()
    assert equal([w.float() for w in weights(network)], before)


def test_groups_that_are_taken_out_meanwhile_get_their_weights_back() -> None:
    network = model()
    groups = [{"params": network[0].parameters()}, {"params": network[2].parameters()}]
    optimizer = gradstep.EMA(gradstep.SGD(groups, lr=0.5), 0.5)
    learn(network, optimizer)
    before = weights(network)
    for again in (False, True):
        optimizer.eval()
        if again:
            optimizer.param_groups.pop(0)
            optimizer.eval()
        optimizer.train()
        assert equal(weights(network), before)


# Many processes.


def of_shards(rank: int) -> list[bool]:
    network: Any = fully_shard(model(), mesh=init_device_mesh("cpu", (2,)))
    other: Any = fully_shard(model(2), mesh=init_device_mesh("cpu", (2,)))
    optimizer, twin = MADE["EMA"](network), MADE["EMA"](other)
    learn(network, optimizer)
    learn(other, twin, range(1))
    before = local(network)
    optimizer.eval()
    changed = not equal(local(network), before)
    saved = copy.deepcopy(get_optimizer_state_dict(network, optimizer))
    optimizer.train()
    back = equal(local(network), before)
    twin.eval()
    set_optimizer_state_dict(other, twin, saved)
    twin.train()
    resumed = equal(local(other), before)
    twin.eval()
    other.load_state_dict({n: torch.full_like(w, 0.5) for n, w in other.state_dict().items()})
    twin.train()
    stays = all(bool((w == 0.5).all()) for w in local(other))
    return [changed, back, resumed, stays]


def local(network: nn.Module) -> list[Tensor]:
    return [p.to_local().detach().clone() for p in network.parameters()]  # type: ignore[operator]


def test_split_weights() -> None:
    for found in run_ranks(of_shards, 2):
        assert found == [True] * 4


# Batch statistics.


def with_statistics() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))


@pytest.mark.parametrize("name", ["EMA", "Schedule-Free AdamW"])
def test_batch_statistics_for_the_averages(name: str) -> None:
    """As torch makes them for an averaged model; those of the training come back."""
    network = with_statistics()
    optimizer = MADE[name](network)
    learn(network, optimizer, range(5))
    batches = [torch.randn(8, 4) for _ in range(4)]
    before = copy.deepcopy(network.state_dict())
    averaged = copy.deepcopy(network)
    with torch.no_grad():
        for p, value in zip(averaged.parameters(), averages(network, optimizer), strict=True):
            p.copy_(value)
    update_bn(batches, averaged)
    with optimizer.averages(network):
        update_bn(batches, network)
        for key, value in averaged.state_dict().items():
            assert torch.equal(network.state_dict()[key], value)
        assert not torch.equal(network[1].running_mean, before["1.running_mean"])
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])
    with optimizer.averages():  # without the model its buffers are left alone
        update_bn(batches, network)
    assert not torch.equal(network[1].running_mean, before["1.running_mean"])
