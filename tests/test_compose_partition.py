"""Partitions: who belongs where, one optimizer to the world, and what is refused."""

from __future__ import annotations

import copy
import io
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import gradstep
from gradstep.compose.members import members, of_type
from gradstep.lab.optimizers import make_optimizer
from gradstep.lab.training import initial_model
from gradstep.optimizer.optimizer import planner_of
from ranks import run_ranks


class Small(nn.Module):
    """An embedding, a convolution, two inner layers, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 8)
        self.filters = nn.Conv1d(8, 8, 3, padding=1)
        self.inner = nn.Linear(8, 12)
        self.deeper = nn.Linear(12, 8, bias=False)
        self.norm = nn.LayerNorm(8)
        self.output = nn.Linear(8, 3)

    def forward(self, words: Any) -> Any:
        x = self.filters(self.embedding(words).mT).mT
        return self.output(self.norm(self.deeper(torch.tanh(self.inner(x)))))


def model() -> Small:
    torch.manual_seed(1)
    return Small()


def learn(network: nn.Module, optimizer: Any, steps: range = range(4)) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        words = torch.randint(0, 6, (5, 4), generator=generator)
        optimizer.zero_grad()
        network(words).square().mean().backward()
        optimizer.step()


PARTS: dict[str, Any] = {
    "matrices": gradstep.muon(weight_decay=0.01),
    "heads": partial(gradstep.AdamW, lr=0.002, betas=(0.8, 0.9)),
    "rest": gradstep.chain(
        gradstep.clip_by_global_norm(0.1), gradstep.adam(), gradstep.decay_weights(0.1)
    ),
}


def make(network: nn.Module, **more: Any) -> gradstep.Partition:
    return gradstep.partition(PARTS, network, lr={"matrices": 0.02, "rest": 0.003}, **more)


def names(optimizer: gradstep.Partition) -> dict[str, list[str]]:
    return {n: [p for p, _ in planner_of(part).named()] for n, part in optimizer.parts.items()}


# Who belongs where.


def test_the_ready_predicates() -> None:
    rule = gradstep.sgd()
    ready = ["matrices", "filters", "embeddings", "heads", "biases_and_norms"]
    optimizer = gradstep.partition(dict.fromkeys(ready, rule), model())
    assert names(optimizer) == {
        "matrices": ["inner.weight", "deeper.weight"],
        "filters": ["filters.weight"],
        "embeddings": ["embedding.weight"],
        "heads": ["output.weight"],
        "biases_and_norms": [
            "filters.bias",
            "inner.bias",
            "norm.weight",
            "norm.bias",
            "output.bias",
        ],
    }
    # Where only names are known, they say the same of this model.
    by_name = gradstep.partition(dict.fromkeys(ready, rule), model().named_parameters())
    assert names(by_name) == names(optimizer)


def test_the_last_layer_is_the_head_whatever_its_name() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    found = names(
        gradstep.partition({"matrices": gradstep.muon(), "rest": gradstep.sgd()}, network)
    )
    assert found["matrices"] == ["0.weight", "2.weight"] and "4.weight" in found["rest"]


def test_patterns_and_predicates_of_ones_own() -> None:
    optimizer = gradstep.partition(
        {"thin": gradstep.sgd(), "typed": gradstep.sgd(), "rest": gradstep.adam()},
        model(),
        where={"thin": "*.bias, norm.*", "typed": lambda m: of_type(nn.Embedding)(m)},
    )
    assert names(optimizer)["typed"] == ["embedding.weight"]
    assert names(optimizer)["thin"][:2] == ["filters.bias", "inner.bias"]


def test_frozen_parameters_stay_out_and_tied_ones_count_once() -> None:
    network = model()
    network.embedding.weight.requires_grad_(False)
    network.output.weight = nn.Parameter(torch.zeros(3, 8))
    assert "embedding.weight" not in [m.name for m in members(network)]
    network.embedding.weight.requires_grad_(True)
    network.deeper.weight = nn.Parameter(network.inner.weight.detach().mT.clone())
    network.output.weight = network.embedding.weight  # type: ignore[assignment]
    found = names(
        gradstep.partition({"embeddings": gradstep.sgd(), "rest": gradstep.sgd()}, network)
    )
    assert found["embeddings"] == ["embedding.weight"]


@pytest.mark.parametrize(
    ("parts", "more", "message"),
    [
        ({}, {}, "at least one part"),
        ({"matrices": gradstep.muon()}, {}, "no part claims embedding.weight, filters.weight, .*"
         " more.* Add a part called rest"),
        ({"matrices": gradstep.sgd(), "mine": gradstep.sgd(), "rest": gradstep.sgd()},
         {"where": {"mine": "inner.*"}},
         "inner.weight is claimed twice: by the parts matrices and mine"),
        ({"inside": gradstep.sgd(), "rest": gradstep.sgd()}, {}, r"'inside' is not known. Say it:"),
        ({"mine": gradstep.sgd(), "rest": gradstep.sgd()}, {"where": {"mine": "decoder.*"}},
         "no parameter belongs to the part 'mine'"),
        ({"rest": gradstep.sgd()}, {"where": {"other": "*"}}, "where names the part 'other'"),
        ({"rest": gradstep.sgd()}, {"lr": {"other": 0.1}}, "lr names the part 'other'"),
        ({"biases_and_norms": gradstep.muon(), "rest": gradstep.sgd()}, {},
         r"newton_schulz.*filters.bias has 1 dimension.*Give it to another rule"),
        ({"rest": gradstep.Muon}, {},
         r"Muon only supports 2D parameters, and filters.weight.*flatten=True one of 8 × "),
        ({"rest": torch.optim.Adam}, {}, "makes a Adam, which is not an optimizer of gradstep"),
        ({"rest": 3}, {}, "is a int; give a rule such as"),
    ],
)  # fmt: skip
def test_what_is_no_partition_is_refused(parts: Any, more: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        gradstep.partition(parts, model(), **more)


def test_what_is_no_model_is_refused() -> None:
    for params in (torch.zeros(3), 3, [{"params": []}], []):
        with pytest.raises((ValueError, TypeError)):
            gradstep.partition({"rest": gradstep.sgd()}, params)


def test_it_prints_as_a_table() -> None:
    optimizer = make(model())
    lines = str(optimizer).splitlines()
    assert lines[0].split() == ["part", "rule", "lr", "parameters", "weights"]
    assert lines[1].split() == ["matrices", "muon", "0.02", "2", "192"]
    assert lines[2].split() == ["heads", "adam", "0.002", "1", "24"]
    assert "deeper.weight  8×12  matrices" in optimizer.table(every=True)


# One optimizer to the world.


def test_each_part_moves_as_its_rule_alone() -> None:
    whole, apart = model(), model()
    optimizer = make(whole)
    named = dict(apart.named_parameters())
    of = {n: [(p, named[p]) for p in ps] for n, ps in names(optimizer).items()}
    alone: list[Any] = [
        gradstep.Optimizer(of["matrices"], PARTS["matrices"], lr=0.02),
        PARTS["heads"](of["heads"]),
        gradstep.Optimizer(of["rest"], PARTS["rest"], lr=0.003),
    ]
    learn(whole, optimizer)
    for step in range(4):
        for each in alone:
            each.zero_grad()
        generator = torch.Generator().manual_seed(step)
        apart(torch.randint(0, 6, (5, 4), generator=generator)).square().mean().backward()
        for each in alone:
            each.step()
    for a, b in zip(whole.parameters(), apart.parameters(), strict=True):
        assert torch.equal(a, b)


def same(network: nn.Module, optimizer: Any, other: nn.Module, twin: Any) -> None:
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert set(optimizer.state[a]) == set(twin.state[b])
        for name, state in optimizer.state[a].items():
            assert torch.equal(state, twin.state[b][name])


def test_it_resumes_and_is_copied_bit_for_bit() -> None:
    network = model()
    optimizer = make(network)
    learn(network, optimizer)
    file = io.BytesIO()
    torch.save([network.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, saved = torch.load(file)
    resumed_network = model()
    resumed_network.load_state_dict(weights)
    resumed = make(resumed_network)
    resumed.param_groups[0]["lr"] = 0.5
    resumed.load_state_dict(saved)
    others = [
        (resumed_network, resumed),
        copy.deepcopy((network, optimizer)),
        pickle.loads(pickle.dumps((network, optimizer))),
    ]
    learn(network, optimizer, range(4, 8))
    for other, twin in others:
        learn(other, twin, range(4, 8))
        same(network, optimizer, other, twin)
        for part in twin.parts.values():  # the parts still hold what the whole holds
            assert all(any(g is h for h in twin.param_groups) for g in part.param_groups)
            assert part.state is twin.state


def test_torchs_checkpoints_by_names() -> None:
    """Also before the first step, when torch makes one with a learning rate of 0."""
    for steps in (0, 3):
        network, other = model(), model()
        optimizer, twin = make(network), make(other)
        learn(network, optimizer, range(steps))
        other.load_state_dict(network.state_dict())
        before = copy.deepcopy(network.state_dict())
        saved = copy.deepcopy(get_optimizer_state_dict(network, optimizer))
        assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items())
        set_optimizer_state_dict(other, twin, saved)
        learn(network, optimizer, range(3, 6))
        learn(other, twin, range(3, 6))
        same(network, optimizer, other, twin)


def test_a_checkpoint_that_does_not_fit_changes_nothing() -> None:
    network = model()
    optimizer = make(network)
    learn(network, optimizer)
    saved = optimizer.state_dict()
    before = copy.deepcopy((network.state_dict(), saved))
    swapped = copy.deepcopy(saved)
    swapped["param_groups"][0]["part"] = "rest"
    short = copy.deepcopy(saved)
    last = short["param_groups"][-1]["params"][-1]
    del short["state"][last]["exp_avg"]
    for bad, message in (
        (swapped, "its group 0 is of the part 'rest', and here of 'matrices'"),
        (short, "does not fit Optimizer: for output.bias it holds"),
        ({"state": {}}, "has no 'param_groups'"),
        (3, "is a int"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(bad)  # type: ignore[arg-type]
        after = (network.state_dict(), optimizer.state_dict())
        assert str(after) == str(before)
    learn(network, optimizer, range(4, 5))


def test_schedulers_hooks_and_zero_grad() -> None:
    network = model()
    optimizer = make(network)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("behind"))
    learn(network, optimizer, range(1))
    scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == [0.01, 0.001, 0.0015]
    assert [part.param_groups[0]["lr"] for part in optimizer.parts.values()] == [
        0.01,
        0.001,
        0.0015,
    ]
    assert seen == ["before", "behind"]
    optimizer.zero_grad()
    assert all(p.grad is None for p in network.parameters())
    assert optimizer.step(lambda: torch.tensor(3.0)) == 3.0


def test_a_step_is_all_or_nothing_over_the_parts() -> None:
    network = model()
    optimizer = make(network)
    learn(network, optimizer, range(1))
    before = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
    optimizer.param_groups[-1]["lr"] = "fast"
    with pytest.raises(TypeError, match="lr"):
        optimizer.step()
    optimizer.param_groups[-1]["lr"] = 0.003
    assert str((network.state_dict(), optimizer.state_dict())) == str(before)


def test_a_group_is_added_to_the_part_that_it_names() -> None:
    network = model()
    optimizer = make(network)
    added = nn.Parameter(torch.ones(4))
    with pytest.raises(
        ValueError, match="names the part None; the parts are matrices, heads, rest"
    ):
        optimizer.add_param_group({"params": [("added", added)]})
    with pytest.raises(ValueError, match="more than one"):
        optimizer.add_param_group({"params": [("again", network.inner.weight)], "part": "rest"})
    optimizer.add_param_group({"params": [("added", added)], "part": "rest", "lr": 0.5})
    assert len(optimizer.param_groups) == 4 and len(optimizer.parts["rest"].param_groups) == 2
    learn(network, optimizer, range(1))
    added.grad = torch.ones(4)
    optimizer.step()
    assert (added != 1).all() and optimizer.state[added]["step"] == 1


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_step_is_explained_in_the_part_that_holds_the_weight(wrapped: bool) -> None:
    network = model()
    optimizer: Any = gradstep.EMA(make(network)) if wrapped else make(network)
    explanations = [
        gradstep.explain(optimizer, name, index=index)
        for name, index in (("output.weight", (1, 2)), ("norm.bias", 3))
    ]
    learn(network, optimizer, range(1))
    for explanation, weight in zip(
        explanations, (network.output.weight[1, 2], network.norm.bias[3]), strict=True
    ):
        assert explanation.ready and not explanation.note, explanation.note
        (account,) = explanation.accounts
        assert account.explanation.weight == weight.item()
    with pytest.raises(ValueError, match="embeding"):
        gradstep.explain(optimizer, "embeding.weight", index=(0, 0))


def test_for_model_spares_biases_and_norms() -> None:
    for rule in (
        gradstep.AdamW,
        gradstep.chain(gradstep.adam(), gradstep.decay_weights(0.01)),
        partial(gradstep.SGD, momentum=0.9),
    ):
        own = "decay_weights_weight_decay" if isinstance(rule, gradstep.Rule) else "weight_decay"
        optimizer = gradstep.for_model(model(), rule, lr=0.1, **{own: 0.25})
        decays = {n: g[own] for g in optimizer.param_groups for n in g["param_names"]}
        assert decays["inner.weight"] == decays["embedding.weight"] == 0.25
        assert decays["inner.bias"] == decays["norm.weight"] == 0.0
    optimizer = gradstep.for_model(
        model(), gradstep.AdamW, no_decay="*.bias, norm.*, embedding.*", lr=0.1
    )
    assert "embedding.weight" in optimizer.param_groups[1]["param_names"]
    with pytest.raises(ValueError, match=r"rprop has no weight_decay. Put gradstep.decay_weights"):
        gradstep.for_model(model(), gradstep.rprop)


def test_muon_and_adamw_by_a_name_of_the_command_line() -> None:
    optimizer = make_optimizer("muon+adamw", initial_model(0), 0.001)
    assert names(optimizer)["matrices"] == ["fc1.weight", "fc2.weight"]
    assert len(names(optimizer)["rest"]) == 8
    assert {group["lr"] for group in optimizer.param_groups} == {0.001}


def test_muon_for_filters_too_takes_each_as_one_matrix() -> None:
    network = initial_model(0)
    optimizer = make_optimizer("muon_filters+adamw", network, 0.001)
    assert names(optimizer)["filters"] == ["conv1.weight", "conv2.weight"]
    assert len(names(optimizer)["rest"]) == 6
    before = network.conv2.weight.detach().clone()
    network(torch.randn(4, 1, 32, 32)).square().sum().backward()
    optimizer.step()
    moved = (before * (1 - 0.001 * 0.01) - network.conv2.weight.detach()).flatten(1)
    # Muon brings all singular values near 1, and this scale is 0.2 · √max(rows, columns).
    values = torch.linalg.svdvals(moved) / (0.001 * 0.2 * max(moved.shape) ** 0.5)
    values = values[values > 0.01]  # a filter that nothing passes has no gradient
    assert len(values) > 12 and values.min() > 0.6 and values.max() < 1.3


# Many processes.


def in_parts(rank: int, kind: str) -> list[Any]:
    network: Any = model()
    if kind == "ddp":
        wrapped: nn.Module = DistributedDataParallel(network)
    else:
        wrapped = fully_shard(network, mesh=init_device_mesh("cpu", (2,)))  # type: ignore[assignment]
    optimizer = make(network)
    learn(wrapped, optimizer, range(3))
    saved = get_optimizer_state_dict(network, optimizer)
    set_optimizer_state_dict(network, optimizer, saved)
    learn(wrapped, optimizer, range(3, 5))
    return [
        getattr(p, "full_tensor", lambda p=p: p)().detach().numpy().copy()
        for p in network.parameters()
    ]


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_reach_what_one_does(kind: str) -> None:
    """Muon on whole matrices, a norm over all of a part, and a checkpoint on the way."""
    alone = model()
    learn(alone, make(alone), range(5))
    for reached in run_ranks(in_parts, 2, kind):
        for a, b in zip(reached, alone.parameters(), strict=True):
            # Muon's iteration runs in bfloat16, where a last bit is one of eight.
            torch.testing.assert_close(torch.from_numpy(a), b.detach(), rtol=2e-3, atol=2e-3)
