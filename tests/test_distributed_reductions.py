"""Rules that look beyond single elements, on weights that are split among processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import gradstep
from gradstep.optimizer.optimizer import planner_of
from ranks import run_ranks

RULES = ("Adafactor", "Muon", "Shampoo", "clipped Adam", "grafted Adam")
#: Rules with numbers that all weights, and all processes, have together.
SHARED = {
    "DoG": {"reps_rel": 1e-2},
    "Prodigy": {"d0": 1e-3, "weight_decay": 0.1},
    "DAdaptSGD": {"d0": 1e-2},
    "Momo": {"weight_decay": 0.1},
}
#: Rules whose states are matrices, whole in each process.
MATRICES = {
    "Shampoo": {"eps": 0.1, "momentum": 0.5},
    "SOAP": {"lr": 0.01, "precondition_frequency": 2},
}


def optimizer_for(name: str, model: nn.Module) -> gradstep.Optimizer:
    named = list(model.named_parameters())
    if name == "Adafactor":
        return gradstep.Adafactor(named, lr=0.1, weight_decay=0.1)
    if name == "Muon":
        return gradstep.Muon([(n, p) for n, p in named if p.dim() == 2], lr=0.02)
    options = {**SHARED, **MATRICES}
    if name in options:
        optimizer: gradstep.Optimizer = getattr(gradstep, name)(named, **options[name])
        return optimizer
    clip, size = gradstep.clip_by_global_norm(0.1), gradstep.sgd(momentum=0.9)
    rule = gradstep.chain(
        clip, gradstep.graft(size, gradstep.adam()) if name == "grafted Adam" else gradstep.adam()
    )
    return gradstep.Optimizer(named, rule, lr=0.01)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 4))


def train(name: str, model: nn.Module, steps: int = 5) -> list[Any]:
    optimizer = optimizer_for(name, model)
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        loss = model(torch.randn(8, 7)).square().mean()
        loss.backward()
        optimizer.step(lambda loss=loss: loss)
    weights: list[Tensor] = [getattr(p, "full_tensor", lambda p=p: p)() for p in model.parameters()]
    return [w.detach().numpy().copy() for w in weights]


def split(rank: int, count: int, name: str) -> list[Any]:
    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (count,)))
    return train(name, model)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("count", [2, 3])
def test_split_weights_reach_what_whole_ones_do(name: str, count: int) -> None:
    """Up to the rounding of the sums, and of the mean over processes."""
    expected = train(name, network())
    for reached in run_ranks(split, count, count, name):
        for a, b in zip(reached, expected, strict=True):
            # Muon's iteration runs in bfloat16, where a last bit is one of eight.
            allowed = 1e-3 if name == "Muon" else 1e-6
            assert abs(a - b).max() <= allowed * abs(b).max()


def states_of_shares(rank: int) -> list[str]:
    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = optimizer_for("Adafactor", model)
    found = []
    for step in range(2):
        model(torch.randn(8, 7)).square().mean().backward()
        optimizer.step()
        for state in optimizer.state.values():
            for name, tensor in state.items():
                placements = getattr(tensor, "placements", ())
                if any(placement.is_partial() for placement in placements):
                    found.append(f"{name} after step {step + 1}")
    return found


def test_no_state_is_a_share_that_waits_for_the_others() -> None:
    """A state of columns was: what a share stands for, torch 2.7 forgets in half of its ways."""
    assert run_ranks(states_of_shares, 2) == [[], []]


def disagree(rank: int, name: str, none_at_all: bool) -> tuple[str, bool]:
    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = optimizer_for(name, model)
    model(torch.ones(8, 7)).square().mean().backward()
    if rank == 1:
        for parameter in list(model.parameters())[: None if none_at_all else 1]:
            parameter.grad = None
    before = [p.full_tensor() for p in model.parameters()]
    try:
        optimizer.step()
    except RuntimeError as error:
        after = [p.full_tensor() for p in model.parameters()]
        return str(error), all(map(torch.equal, before, after))
    return "", False


@pytest.mark.parametrize("none_at_all", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_processes_with_other_gradients_get_an_error_and_do_not_hang(
    name: str, none_at_all: bool
) -> None:
    for rank, (message, untouched) in enumerate(run_ranks(disagree, 2, name, none_at_all)):
        assert "do not have gradients for the same weights" in message
        assert "0.weight (5, 7)" in message and ("lacks none" in message) == (rank == 0)
        assert untouched


def shares(rank: int, folder: str) -> list[Any]:
    """Every class of SHARED and MATRICES: each process with a part of the loss; then resumed.

    And Adafactor, with states of rows and columns.
    """
    found = []
    for name in (*SHARED, *MATRICES, "Adafactor"):
        reached = split(rank, 2, name)
        model = network()
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        optimizer = optimizer_for(name, model)
        steps(model, optimizer, 0, 3, rank)
        halfway = {
            "model": get_model_state_dict(model),
            "optimizer": get_optimizer_state_dict(model, optimizer),
        }
        dcp.save(halfway, checkpoint_id=f"{folder}/{name}")
        steps(model, optimizer, 3, 5, rank)
        other = network()
        fully_shard(other, mesh=init_device_mesh("cpu", (2,)))
        resumed = optimizer_for(name, other)
        blank = {
            "model": get_model_state_dict(other),
            "optimizer": get_optimizer_state_dict(other, resumed),
        }
        dcp.load(blank, checkpoint_id=f"{folder}/{name}")
        set_model_state_dict(other, blank["model"])
        set_optimizer_state_dict(other, resumed, blank["optimizer"])
        steps(other, resumed, 3, 5, rank)
        ends = [[p.full_tensor().detach().numpy() for p in m.parameters()] for m in (model, other)]
        keys = [n for n, s in planner_of(resumed).rule.states.items() if s.shared]
        numbers = {float(entry[key]) for entry in resumed.state.values() for key in keys[:1]}
        found.append((name, reached, ends, numbers))
    return found


def steps(model: nn.Module, optimizer: gradstep.Optimizer, first: int, end: int, rank: int) -> None:
    """Each process learns from images of its own."""
    for step in range(first, end):
        torch.manual_seed(2 * step + rank)
        optimizer.zero_grad()
        loss = model(torch.randn(8, 7)).square().mean()
        loss.backward()
        optimizer.step(lambda loss=loss: loss)


def test_numbers_of_all_weights_are_those_of_all_processes(tmp_path: Path) -> None:
    """And torch.distributed.checkpoint goes on with the very same bits."""
    answers = run_ranks(shares, 2, str(tmp_path))
    for (name, reached, ends, numbers), (_, _, there, others) in zip(*answers, strict=True):
        whole = reached if name == "SOAP" else train(name, network())  # which follows roundings
        for a, b in zip(reached, whole, strict=True):
            assert abs(a - b).max() <= 1e-5 * abs(b).max(), name
        for a, b, c in zip(*ends, there[0], strict=True):
            assert (a == b).all() and (a == c).all(), name
        assert numbers == others and len(numbers) == (name in SHARED), name
