"""The names of Hugging Face's Trainer: what each makes, and what is said of those that it lacks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import gradstep
from gradstep import trainers

NAMES = trainers.hugging_face_names()
REFUSED = {
    "adamw_torch_xla",
    "adamw_torch_npu_fused",
    "galore_adafactor",
    "galore_adafactor_layerwise",
}
LOW_RANK = {n for n in NAMES if n.startswith(("galore", "apollo"))}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(16, 96), nn.LayerNorm(96), nn.Tanh(), nn.Linear(96, 80), nn.Linear(80, 4)
    )


def made(name: str, model: nn.Module, **options: Any) -> Any:
    if name in LOW_RANK:
        options.setdefault("optim_target_modules", ["3"])
        options.setdefault("optim_args", "rank=4, update_proj_gap=2")
    return trainers.hugging_face(name, model, **options)


def step(model: nn.Module, optimizer: Any) -> float:
    points = torch.randn(32, 16, generator=torch.Generator().manual_seed(1))
    loss = nn.functional.cross_entropy(model(points), points[:, :4].argmax(1))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def core(optimizer: Any) -> Any:
    return core(optimizer.optimizer) if hasattr(optimizer, "optimizer") else optimizer


def test_there_are_41() -> None:
    assert len(NAMES) == 41
    assert {"adamw_torch", "lion_8bit", "paged_ademamix_32bit", "grokadamw", "sgd"} <= {*NAMES}


#: One of each way.
QUICK = {"adamw_torch", "lion_8bit", "galore_adamw", "apollo_adamw_layerwise", "grokadamw"}


@pytest.mark.parametrize(
    "name",
    [
        n if n in QUICK else pytest.param(n, marks=pytest.mark.deep)
        for n in NAMES
        if n not in REFUSED
    ],
)
def test_each_trains_with_decay_where_it_belongs(name: str) -> None:
    model = network()
    rate = 0.5 if name in ("sgd", "lomo", "schedule_free_sgd") else 1e-2
    rate = 1e-3 if name.startswith("rmsprop") else rate
    optimizer = made(name, model, learning_rate=rate, weight_decay=0.01)
    losses = [step(model, optimizer) for _ in range(30)]
    assert losses[-1] < losses[0] - 0.1, losses
    decays = {
        id(p): [v for n, v in group.items() if n.endswith("weight_decay") and type(v) is float][-1]
        for group in core(optimizer).param_groups
        for p in group["params"]
    }
    for p in model.parameters():
        assert decays[id(p)] == (0.01 if p.dim() > 1 else 0.0)
    assert isinstance(optimizer, gradstep.StepInBackward) is (
        "layerwise" in name or name in ("lomo", "adalomo")
    )


def test_arguments_are_those_of_the_trainer() -> None:
    arguments = SimpleNamespace(
        learning_rate=3e-4,
        weight_decay=0.1,
        adam_beta1=0.8,
        adam_beta2=0.95,
        adam_epsilon=1e-6,
        optim_args="beta3=0.99, alpha=3, t_alpha=50",
        warmup_steps=7,
    )
    group = made("ademamix", network(), arguments=arguments).param_groups[0]
    wanted = {"lr": 3e-4, "betas": (0.8, 0.95, 0.99), "eps": 1e-6, "alpha": 3, "alpha_warmup": 50}
    assert {n: group[n] for n in wanted} == wanted and group["weight_decay"] == 0.1
    arguments.optim_args = None
    free = made("schedule_free_adamw", network(), arguments=arguments, learning_rate=1e-2)
    assert free.param_groups[0]["warmup_steps"] == 7 and free.param_groups[0]["lr"] == 1e-2
    model = network()
    low = made("galore_adamw", model, arguments=arguments, optim_target_modules="all-linear")
    assert list(low.parts) == ["low_rank", "rest"]
    assert [len(g["params"]) for g in low.parts["low_rank"].param_groups] == [3]
    assert low.param_groups[0]["rank"] == 4
    kahan = made("adamw_anyprecision", network().bfloat16())
    kahan.param_groups[0]["params"][0].grad = torch.ones(96, 16, dtype=torch.bfloat16)
    kahan.step()
    assert any("compensation" in n or "kahan" in n for n in next(iter(kahan.state.values())))


def test_bits_and_steps_of_adamw_are_torchs_where_it_is_torchs() -> None:
    ours, theirs = network(), network()
    a = made("adamw_torch", ours, learning_rate=0.01, weight_decay=0.1)
    b = torch.optim.AdamW(
        [
            {"params": [p for p in theirs.parameters() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in theirs.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=0.01,
    )
    for _ in range(5):
        step(ours, a)
        step(theirs, b)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    eight = made("adamw_8bit", network())
    step(network(), eight)
    assert {g["lr"] for g in eight.param_groups} == {5e-5}


def test_what_is_not_there_is_refused_with_the_nearest() -> None:
    model = network()
    for name in REFUSED:
        with pytest.raises(ValueError, match=rf"'{name}' is .* nearest are \w+, \w+ and \w+"):
            made(name, model)
    with pytest.raises(ValueError, match=r"'lion_4bit'.*: the nearest are lion_8bit, \w+ and \w+"):
        made("lion_4bit", model)
    with pytest.raises(ValueError, match=r"galore_adamw is for .* got no optim_target_modules"):
        trainers.hugging_face("galore_adamw", model)
    with pytest.raises(ValueError, match=r"got \['attn'\], which fit nothing"):
        made("apollo_adamw", model, optim_target_modules=["attn"])
    with pytest.raises(TypeError, match="adamw_torch has no optim_args 'rank' here; it has: none"):
        made("adamw_torch", model, optim_args="rank=4")
    with pytest.raises(ValueError, match="proj_type=left is not here; possible is std"):
        made("galore_adamw", model, optim_args="proj_type=left")
    with pytest.raises(TypeError, match="no option 'lr': the nearest are "):
        made("sgd", model, lr=0.1)
