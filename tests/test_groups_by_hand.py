"""Groups and states that others exchange, take out or add to by hand, as training frameworks do.

Whatever torch's optimizers do then, ours do; a twin of torch's is given the same.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import gradstep
from gradstep.optimizer.optimizer import planner_of


def model() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def by_layer(network: nn.Module) -> list[dict[str, Any]]:
    return [
        {"params": list(network[0].named_parameters("0"))},  # type: ignore[index]
        {"params": list(network[2].named_parameters("2"))},  # type: ignore[index]
    ]


def by_parameters(network: nn.Module) -> list[dict[str, Any]]:
    return [{"params": [p for _, p in group["params"]]} for group in by_layer(network)]


def learn(network: nn.Module, optimizer: Any, steps: int = 1) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        network(x).square().mean().backward()
        optimizer.step()


def one_part(network: nn.Module) -> gradstep.Partition:
    return gradstep.partition(
        {"first": gradstep.AdamW, "last": gradstep.AdamW},
        network,
        where={"first": "0.*", "last": "2.*"},
        lr=0.05,
    )


def adamw(network: nn.Module) -> gradstep.Optimizer:
    return gradstep.AdamW(by_parameters(network), lr=0.05)


MADE: dict[str, Callable[[nn.Module], Any]] = {
    "alone": adamw,
    "partition": one_part,
    "EMA": lambda m: gradstep.EMA(adamw(m)),
    "EMA of a partition": lambda m: gradstep.EMA(one_part(m)),
    "Accumulate": lambda m: gradstep.Accumulate(adamw(m), 1),
    "SkipNonFinite": lambda m: gradstep.SkipNonFinite(one_part(m)),
    "two of torch's": lambda m: gradstep.SkipNonFinite(
        gradstep.Accumulate(torch.optim.AdamW(by_parameters(m), lr=0.05), 1)
    ),
}


def exchange_groups(optimizer: Any, network: Any) -> None:
    """As Lightning's fine-tuning callback does when a training is resumed."""
    optimizer.param_groups = [{**group, "lr": 0.01} for group in optimizer.param_groups]


def exchange_states(optimizer: Any, network: Any) -> None:
    """As opacus and others do to begin anew."""
    optimizer.state = defaultdict(dict)


def exchange_both(optimizer: Any, network: Any) -> None:
    exchange_groups(optimizer, network)
    exchange_states(optimizer, network)


def forget(optimizer: Any, params: Any) -> None:
    """torch saves no states of parameters that it has not."""
    for p in params:
        optimizer.state.pop(p, None)


def take_out(optimizer: Any, network: Any) -> None:
    forget(optimizer, optimizer.param_groups.pop(0)["params"])


def take_out_the_last(optimizer: Any, network: Any) -> None:
    forget(optimizer, optimizer.param_groups[-1]["params"])
    del optimizer.param_groups[-1]


def turn_round(optimizer: Any, network: Any) -> None:
    optimizer.param_groups[:] = optimizer.param_groups[::-1]


def append_to_params(optimizer: Any, network: Any) -> None:
    network.register_parameter("added", nn.Parameter(torch.ones(3)))
    network.register_forward_hook(lambda m, _, out: out + m.added.square().sum())
    optimizer.param_groups[1]["params"].append(network.added)


def take_out_of_params(optimizer: Any, network: Any) -> None:
    forget(optimizer, [optimizer.param_groups[0]["params"].pop(0)])


def replace_params(optimizer: Any, network: Any) -> None:
    """As accelerate does where weights move to another device."""
    new = {p: nn.Parameter(p.detach().clone()) for p in network.parameters()}
    for group in optimizer.param_groups:
        group["params"] = [new[p] for p in group["params"]]
    for layer in (network[0], network[2]):
        layer.weight, layer.bias = new[layer.weight], new[layer.bias]
    optimizer.state = defaultdict(dict)


CHANGES = [
    exchange_groups,
    exchange_states,
    exchange_both,
    take_out,
    take_out_the_last,
    turn_round,
    append_to_params,
    take_out_of_params,
    replace_params,
]


@pytest.mark.parametrize("begun", [False, True], ids=["before a step", "behind one"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", MADE)
def test_it_does_what_torchs_does(name: str, change: Any, begun: bool) -> None:
    network, other = model(), model()
    optimizer = MADE[name](network)
    theirs = torch.optim.AdamW(by_parameters(other), lr=0.05)
    if begun:
        learn(network, optimizer, 2)
        learn(other, theirs, 2)
    change(optimizer, network)
    change(theirs, other)
    learn(network, optimizer, 3)
    learn(other, theirs, 3)
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    saved, expected = optimizer.state_dict(), theirs.state_dict()
    assert {key: float(entry["step"]) for key, entry in saved["state"].items()} == {
        key: float(entry["step"]) for key, entry in expected["state"].items()
    }
    assert [g["params"] for g in saved["param_groups"]] == [
        g["params"] for g in expected["param_groups"]
    ]
    optimizer.load_state_dict(copy.deepcopy(saved))
    learn(network, optimizer)
    learn(other, theirs)
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("make", [one_part, lambda m: gradstep.EMA(one_part(m))])
def test_a_group_that_names_no_part_is_refused_and_nothing_moves(make: Any) -> None:
    network = model()
    optimizer = make(network)
    learn(network, optimizer)
    before = copy.deepcopy(network.state_dict())
    without = {n: v for n, v in optimizer.param_groups[1].items() if n != "part"}
    optimizer.param_groups = [optimizer.param_groups[0], without]
    with pytest.raises(ValueError, match="group 1 of param_groups names the part None; the parts"):
        learn(network, optimizer)
    assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items())
    without["part"] = "last"
    learn(network, optimizer)
    assert all(not torch.equal(v, before[n]) for n, v in network.state_dict().items())


def test_a_group_that_moves_to_another_part_follows_its_rule() -> None:
    network = model()
    optimizer = gradstep.partition(
        {"still": gradstep.SGD, "rest": gradstep.SGD}, network, where={"still": "0.*"}, lr=0.0
    )
    added = nn.Parameter(torch.ones(2))
    optimizer.parts["rest"].add_param_group({"params": [("added", added)], "lr": 1.0})
    added.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(added.detach(), torch.zeros(2))
    assert optimizer.param_groups[-1]["part"] == "rest"
    optimizer.param_groups[-1]["part"] = "still"
    assert optimizer.parts["still"].param_groups[-1] is optimizer.param_groups[-1]
    assert len(optimizer.parts["rest"].param_groups) == 1


def test_options_of_groups_that_are_gone_no_longer_count() -> None:
    """Prodigy has one distance for all groups, so what it is made with must be the same in all."""
    network = model()
    optimizer = gradstep.Prodigy(
        [*by_parameters(network), {"params": [nn.Parameter(torch.ones(2))]}]
    )
    learn(network, optimizer)
    optimizer.param_groups.pop()
    for group in optimizer.param_groups:
        group["d_coef"] = 0.5
    learn(network, optimizer)
    optimizer.param_groups[0]["d_coef"] = 2.0
    with pytest.raises(ValueError, match=r"groups have d_coef=0\.5 and 2\.0"):
        learn(network, optimizer)
    del optimizer.param_groups[0]
    learn(network, optimizer)


def test_no_groups_at_all_are_no_step() -> None:
    for make in MADE.values():
        network = model()
        optimizer = make(network)
        learn(network, optimizer)
        before = copy.deepcopy(network.state_dict())
        optimizer.param_groups = []
        learn(network, optimizer)
        assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items())


# What wrappers count.


@pytest.mark.parametrize("change", [take_out, turn_round, exchange_groups])
def test_a_wrappers_numbers_stay(change: Any) -> None:
    network = model()
    optimizer = gradstep.Accumulate(
        gradstep.SkipNonFinite(gradstep.GradientNoise(adamw(network), eta=0.1)), 2
    )
    for _ in range(3):
        learn(network, optimizer)
    assert optimizer.pending == 1
    change(optimizer, network)
    saved = optimizer.state_dict()["param_groups"][0]
    assert [saved[n] for n in ("accumulated", "noise_step", "nonfinite")] == [1, 1, 0]
    assert optimizer.pending == 1
    learn(network, optimizer)
    assert optimizer.pending == 0 and optimizer.param_groups[0]["noise_step"] == 2


# Schedules.


def scheduled(network: nn.Module) -> gradstep.Optimizer:
    first, last = by_parameters(network)
    return gradstep.SGD(
        [first, {**last, "lr": gradstep.schedule.linear(1.0, 0.0, 10)}], lr=0.5, momentum=0.5
    )


@pytest.mark.parametrize("change", [take_out, turn_round])
def test_a_schedule_stays_with_its_group(change: Any) -> None:
    network = model()
    optimizer = scheduled(network)
    group = optimizer.param_groups[1]
    learn(network, optimizer, 2)
    change(optimizer, network)
    for expected in (0.8, 0.7):
        learn(network, optimizer)
        assert group["lr"] == pytest.approx(expected)
    assert all(g["lr"] == 0.5 for g in optimizer.param_groups if g is not group)
    added = {**group, "params": [nn.Parameter(torch.ones(2))], "lr": 0.25}
    del added["schedule_step"]
    optimizer.param_groups.append(added)
    learn(network, optimizer)
    assert added["lr"] == 0.25 and group["lr"] == pytest.approx(0.6)


def test_a_schedule_goes_on_from_what_an_exchanged_group_holds() -> None:
    network = model()
    optimizer = scheduled(network)
    learn(network, optimizer, 2)
    first, last = optimizer.param_groups
    optimizer.param_groups = [{**last, "schedule_step": 5, "lr": 0.6}, dict(first)]
    learn(network, optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
    learn(network, optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(0.4), 0.5]
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    learn(network, optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(0.3), 0.5]


def test_groups_of_a_resumed_training_follow_the_defaults_schedules() -> None:
    """A group that was added on the way comes back with param_groups, and was never added here."""

    def made(network: Any) -> gradstep.Optimizer:
        lr = gradstep.schedule.linear(1.0, 0.0, 10)
        return gradstep.SGD(network[2].parameters(), lr=lr)

    network = model()
    optimizer = made(network)
    learn(network, optimizer)
    optimizer.add_param_group({"params": list(network[0].parameters())})
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 0.125})
    learn(network, optimizer)
    resumed = made(network)
    resumed.param_groups = [dict(group) for group in optimizer.param_groups]
    for own in (optimizer, resumed):
        learn(network, own)
    rates = [[group["lr"] for group in own.param_groups] for own in (optimizer, resumed)]
    assert rates[0] == rates[1] == [pytest.approx(0.8), pytest.approx(0.9), 0.125]


# Names.


def named(network: nn.Module) -> gradstep.Optimizer:
    return gradstep.AdamW(network.named_parameters(), lr=0.05)


def names(optimizer: Any) -> list[str]:
    return [optimizer.name_of(p) for group in optimizer.param_groups for p in group["params"]]


def test_names_stay_with_their_parameters() -> None:
    for step_between in (False, True):
        network = model()
        optimizer = named(network)
        group = optimizer.param_groups[0]
        del group["params"][1]
        assert names(optimizer) == ["0.weight", "2.weight", "2.bias"]
        if step_between:
            learn(network, optimizer)
        added = nn.Parameter(torch.ones(3))
        group["params"].append(added)
        place = "parameter 3 of group 0 (shape (3,))"
        assert names(optimizer) == ["0.weight", "2.weight", "2.bias", place]
        assert [n for n, _ in planner_of(optimizer).named()] == names(optimizer)
        if step_between:
            learn(network, optimizer)
            assert set(optimizer.engines_used()) == {"0.weight", "2.weight", "2.bias"}
        assert names(copy.deepcopy(optimizer)) == names(optimizer)
        optimizer.param_groups = [dict(group)]
        assert names(optimizer) == ["0.weight", "2.weight", "2.bias", place]
        group = optimizer.param_groups[0]
        group["param_names"] = ["a", "b", "c", "added"]
        assert names(optimizer) == ["a", "b", "c", "added"]
        group["params"][1] = nn.Parameter(torch.ones(1))  # in the place of another
        assert names(optimizer) == ["a", "b", "c", "added"]
        group["params"].append(nn.Parameter(torch.ones(1)))
        group["param_names"].append("late")
        assert names(optimizer) == ["a", "b", "c", "added", "late"]


def test_messages_name_the_right_one() -> None:
    network = model()
    for optimizer in (named(network), gradstep.EMA(named(network))):
        del optimizer.param_groups[0]["params"][0]
        network[2].bias.grad = torch.ones(2)
        optimizer.state[network[2].bias] = {"exp_avg": torch.zeros(2)}
        with pytest.raises(ValueError, match=r"of 2\.bias is missing"):
            optimizer.step()
    skip = gradstep.SkipNonFinite(named(network), limit=0)
    del skip.param_groups[0]["params"][0]
    network[2].bias.grad = torch.full((2,), torch.inf)
    with pytest.raises(FloatingPointError, match=r"the last in 2\.bias"):
        skip.step()


@pytest.mark.parametrize(
    "make", [named, one_part, lambda m: torch.optim.AdamW(m.named_parameters())]
)
def test_frozen_ones_are_found_by_name_whoever_else_comes(make: Any) -> None:
    network = model()
    optimizer = gradstep.Freeze(make(network), "2.*")
    added = nn.Parameter(torch.ones(3))
    optimizer.param_groups[-1]["params"].append(added)
    added.grad = torch.ones(3)
    before = copy.deepcopy(network.state_dict())
    network(torch.ones(1, 4)).sum().backward()
    torch_cannot = isinstance(optimizer.optimizer, torch.optim.AdamW)
    assert optimizer.frozen() == ([] if torch_cannot else ["2.weight", "2.bias"])
    optimizer.step()
    assert not torch.equal(added, torch.ones(3))
    if not torch_cannot:
        for name, value in network.state_dict().items():
            assert torch.equal(value, before[name]) == name.startswith("2.")
