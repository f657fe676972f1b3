"""Names in a checkpoint: states go to the parameters of the same names, in whatever order."""

from __future__ import annotations

import copy
import logging
import warnings
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

import gradstep
from ranks import run_ranks

Named = list[tuple[str, Tensor]]


def split(p: Named) -> Any:
    """Of two kinds: those before m decay."""
    groups = [[n for n in p if n[0][-1] < "c"], [n for n in p if n[0][-1] >= "c"]]
    return [
        {"params": group, "weight_decay": 0.1 * (not number)}
        for number, group in enumerate(groups)
        if group
    ]


MAKERS: dict[str, Callable[[Named], Any]] = {
    "SGD": lambda p: gradstep.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: gradstep.AdamW(p),
    "a rule": lambda p: gradstep.Optimizer(p, gradstep.lion()),
    "codes": lambda p: gradstep.Optimizer(p, gradstep.adam(), state_dtype="int8"),
    "groups": lambda p: gradstep.AdamW(split(p)),
    "groups the other way": lambda p: gradstep.AdamW(split(p)[::-1]),
    "partition": lambda p: gradstep.partition(
        {"first": gradstep.muon(), "rest": gradstep.adam()}, p, where={"first": "*a,*b"}
    ),
    "EMA": lambda p: gradstep.EMA(gradstep.AdamW(p)),
    "Accumulate": lambda p: gradstep.Accumulate(gradstep.AdamW(split(p)), 2),
    "wrapped torch": lambda p: gradstep.SkipNonFinite(torch.optim.AdamW(p)),
}
#: One of each kind; the others are deep.
QUICK = ["AdamW", "codes", "groups", "partition", "EMA", "Accumulate", "wrapped torch"]
each_maker = pytest.mark.parametrize(
    "maker", [m if m in QUICK else pytest.param(m, marks=pytest.mark.deep) for m in MAKERS]
)


def weights(names: str | list[str] = "abcd", columns: int = 2) -> Named:
    torch.manual_seed(len(names))
    return [(n, nn.Parameter(torch.ones(2, columns))) for n in names]


def steps(optimizer: Any, named: Named, count: int = 3) -> None:
    """Each parameter's gradients are its name's own."""
    for number in range(count):
        for name, p in named:
            p.grad = torch.full_like(p, (ord(name[-1]) - 90) * 0.1 * (number + 1))
        optimizer.step()
        optimizer.zero_grad()


def saved(maker: str, named: Named) -> dict[str, Any]:
    optimizer = MAKERS[maker](named)
    steps(optimizer, named)
    return optimizer.state_dict()


def state_of(optimizer: Any, named: Named) -> dict[str, dict[str, Any]]:
    return {name[-1]: dict(optimizer.state.get(p, {})) for name, p in named}


def names_in(optimizer: torch.optim.Optimizer) -> list[str]:
    return [n for group in optimizer.param_groups for n in group["param_names"]]


def assert_same(one: Any, other: Any) -> None:
    assert one.keys() == other.keys()
    for name, entry in one.items():
        assert entry.keys() == other[name].keys(), name
        for key, value in entry.items():
            found = other[name][key]
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(found)), (name, key)


@each_maker
@pytest.mark.parametrize("order", ["dacb"])
@pytest.mark.parametrize("prefix", ["", "module.", "part.of."])
def test_shuffled_parameters_get_the_states_of_their_names(
    maker: str, order: str, prefix: str
) -> None:
    before = weights([prefix + n for n in "abcd"])
    optimizer = MAKERS[maker](before)
    steps(optimizer, before)
    checkpoint = copy.deepcopy(optimizer.state_dict())  # torch would share its tensors
    as_saved = copy.deepcopy(checkpoint)
    named = weights(list(order))
    resumed = MAKERS[maker](named)
    own = names_in(resumed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.load_state_dict(checkpoint)
    assert_same(state_of(optimizer, before), state_of(resumed, named))
    assert names_in(resumed) == own
    assert str(checkpoint) == str(as_saved), "the checkpoint was changed"
    for (_, p), (_, q) in zip(sorted(named), sorted(before), strict=True):
        p.data.copy_(q)
    steps(optimizer, before)
    steps(resumed, named)
    for (name, p), (_, q) in zip(sorted(named), sorted(before), strict=True):
        assert torch.equal(p, q), name


@each_maker
@pytest.mark.parametrize("way", ["strict", "partial"])
def test_missing_and_surplus_parameters(
    maker: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = weights("abcd")
    optimizer = MAKERS[maker](before)
    steps(optimizer, before)
    named = weights("xbadz")
    resumed = MAKERS[maker](named)
    if way == "strict":
        with pytest.raises(ValueError, match=r"it has no .*, and the optimizer has no c\."):
            resumed.load_state_dict(optimizer.state_dict())
        assert not resumed.state
        return
    steps(resumed, named, 1)
    kept = copy.deepcopy(state_of(resumed, named))
    with caplog.at_level(logging.WARNING, logger="gradstep"):
        resumed.load_state_dict(optimizer.state_dict(), strict=False)
    there = state_of(optimizer, before)
    wanted = {n: there[n] if n in "abd" else kept[n] for n in "xbadz"}
    assert_same(wanted, state_of(resumed, named))
    said = caplog.text
    assert "as before: " in said and "x" in said and "z" in said and "left out" in said
    steps(resumed, named, 1)


@pytest.mark.parametrize("maker", ["AdamW", "codes", "EMA", "partition"])
def test_a_head_of_another_shape(maker: str, caplog: pytest.LogCaptureFixture) -> None:
    before = weights("abcd")
    optimizer = MAKERS[maker](before)
    steps(optimizer, before)
    named = weights("dcb") + weights("a", columns=5)
    resumed = MAKERS[maker](named)
    with pytest.raises(ValueError, match=r"of another model: its .* of a is"):
        resumed.load_state_dict(optimizer.state_dict())
    with caplog.at_level(logging.WARNING, logger="gradstep"):
        resumed.load_state_dict(optimizer.state_dict(), strict=False)
    assert_same({**state_of(optimizer, before), "a": {}}, state_of(resumed, named))
    assert "as before: a, which the checkpoint has in another shape" in caplog.text
    steps(resumed, named, 1)


def test_averages_in_the_place_of_weights_of_another_shape() -> None:
    before = weights("ab")
    optimizer = gradstep.EMA(gradstep.AdamW(before))
    steps(optimizer, before)
    optimizer.eval()
    named = weights("b") + weights("a", columns=5)
    resumed = gradstep.EMA(gradstep.AdamW(named))
    resumed.load_state_dict(optimizer.state_dict(), strict=False)
    optimizer.train()
    resumed.train()
    assert torch.equal(named[0][1], before[1][1])
    assert torch.equal(named[1][1], torch.ones(2, 5))


def test_gradients_of_an_unfinished_round_go_by_name() -> None:
    before = weights("abcd")
    optimizer = MAKERS["Accumulate"](before)
    steps(optimizer, before, 3)
    assert optimizer.pending == 1
    # The groups come in the other order, and the round's count stands in the first of them.
    named = weights("cdba")
    resumed = gradstep.Accumulate(gradstep.AdamW(split(named)[::-1]), 2)
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.pending == 1
    for (name, p), (_, q) in zip(sorted(named), sorted(before), strict=True):
        assert p.grad is not None and q.grad is not None
        assert torch.equal(p.grad, q.grad), name
    assert [g["weight_decay"] for g in resumed.param_groups] == [0.0, 0.1]


def test_groups_of_other_options() -> None:
    one = saved("AdamW", weights("abcd"))
    two = saved("groups", weights("abcd"))
    resumed = MAKERS["groups"](weights("abcd"))
    with pytest.raises(ValueError, match=r"different number of parameter groups: .* 1, .* 2"):
        resumed.load_state_dict(one)
    resumed.load_state_dict(one, strict=False)
    assert [g["weight_decay"] for g in resumed.param_groups] == [0.1, 0.0]
    assert len(resumed.state) == 4
    crossed = weights("acbd")
    across = gradstep.AdamW([{"params": crossed[:2]}, {"params": crossed[2:]}])
    with pytest.raises(ValueError, match=r"a is in its group 0 and c in its group 1, .*weight_dec"):
        across.load_state_dict(two)
    across.load_state_dict(two, strict=False)
    assert [g["weight_decay"] for g in across.param_groups] == [0.01, 0.01]
    alike = copy.deepcopy(two)
    for group in alike["param_groups"]:
        group["weight_decay"] = 0.3
    across.load_state_dict(alike)
    assert [g["weight_decay"] for g in across.param_groups] == [0.3, 0.3]
    for name, p in crossed:
        place = "abcd".index(name)
        assert torch.equal(across.state[p]["exp_avg"], two["state"][place]["exp_avg"])


def test_other_names_go_by_place_and_are_told() -> None:
    checkpoint = saved("AdamW", weights(["old_" + n for n in "abcd"]))
    named = weights("abcd")
    resumed = MAKERS["AdamW"](named)
    with pytest.warns(UserWarning, match="none of the optimizer's names.*old_a, .*has a, b, c, d"):
        resumed.load_state_dict(checkpoint)
    assert torch.equal(resumed.state[named[2][1]]["exp_avg"], checkpoint["state"][2]["exp_avg"])
    assert names_in(resumed) == list("abcd")
    with pytest.raises(ValueError, match=r"strict=False matches .* none of"):
        resumed.load_state_dict(checkpoint, strict=False)


def test_without_names_on_either_side() -> None:
    plain = [p for _, p in weights()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = gradstep.AdamW(plain)
        resumed.load_state_dict(saved("AdamW", weights()))
        assert resumed.param_groups[0]["param_names"] == list("abcd")  # as torch does
        named = gradstep.AdamW(weights())
        named.load_state_dict(gradstep.AdamW(plain).state_dict())
        assert names_in(named) == list("abcd")
    with pytest.raises(ValueError, match="and the checkpoint has no names"):
        named.load_state_dict(gradstep.AdamW(plain).state_dict(), strict=False)
    with pytest.raises(ValueError, match="and the optimizer has no names"):
        gradstep.AdamW(plain).load_state_dict(saved("AdamW", weights()), strict=False)


def test_two_of_one_name_go_by_place() -> None:
    named = weights("aab")
    optimizer = gradstep.SGD([{"params": [w]} for w in named], momentum=0.9)
    steps(optimizer, named)
    again = weights("aab")
    resumed = gradstep.SGD([{"params": [w]} for w in again], momentum=0.9)
    with pytest.warns(UserWarning, match="none of the optimizer's names|more than once"):
        resumed.load_state_dict(optimizer.state_dict())
    assert len(resumed.state) == 3


def test_lbfgs_keeps_one_state_for_all() -> None:
    named = weights("ab")
    optimizer = gradstep.LBFGS(named)
    for _, p in named:
        p.grad = torch.ones_like(p)
    optimizer.step(lambda: sum((p**2).sum() for _, p in named))
    gradstep.LBFGS(weights("ab")).load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="LBFGS keeps one state for all"):
        gradstep.LBFGS(weights("ba")).load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="LBFGS keeps one state for all"):
        gradstep.LBFGS(weights("ab")).load_state_dict(optimizer.state_dict(), strict=False)


# Files.


@pytest.mark.parametrize("maker", ["AdamW", "partition", "EMA"])
def test_through_a_file(maker: str, tmp_path: Path) -> None:
    before = weights("abcd")
    optimizer = MAKERS[maker](before)
    steps(optimizer, before)
    torch.save(optimizer.state_dict(), tmp_path / "saved.pt")
    named = weights("cabde")
    resumed = MAKERS[maker](named)
    resumed.load_state_dict(torch.load(tmp_path / "saved.pt", weights_only=True), strict=False)
    assert_same({**state_of(optimizer, before), "e": {}}, state_of(resumed, named))
    # What was loaded, and has a parameter without states, is saved and loaded as any other.
    torch.save(resumed.state_dict(), tmp_path / "again.pt")
    MAKERS[maker](weights("abcde")).load_state_dict(torch.load(tmp_path / "again.pt"))


class Four(nn.Module):
    """Weights of one shape, registered in this order."""

    def __init__(self, order: str) -> None:
        super().__init__()
        for name in order:
            self.register_parameter(name, nn.Parameter(torch.ones(4, 2)))


def in_numbers(states: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """As processes can hand it on."""
    return {n: {k: torch.as_tensor(v).numpy() for k, v in e.items()} for n, e in states.items()}


def save_distributed(rank: int, maker: str, folder: str) -> dict[str, dict[str, Any]]:
    model = Four("abcd")
    named = list(model.named_parameters())
    optimizer = MAKERS[maker](named)
    steps(optimizer, named)
    dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=folder)
    return in_numbers(state_of(optimizer, named))


def load_distributed(rank: int, maker: str, folder: str) -> dict[str, dict[str, Any]]:
    model = Four("dbca")
    named = list(model.named_parameters())
    optimizer = MAKERS[maker](named)
    content = {"optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.load(content, checkpoint_id=folder)
    set_optimizer_state_dict(model, optimizer, content["optimizer"])
    assert sorted(names_in(optimizer)) == list("abcd")
    # By hand: its keys are names, while `param_names` are those of the run that was saved.
    by_hand = list(Four("bdac").named_parameters())
    other = MAKERS[maker](by_hand)
    other.load_state_dict(content["optimizer"])
    assert_same(state_of(optimizer, named), state_of(other, by_hand))
    return in_numbers(state_of(optimizer, named))


@pytest.mark.parametrize(
    "maker",
    ["partition", *(pytest.param(m, marks=pytest.mark.deep) for m in ("AdamW", "EMA", "groups"))],
)
def test_through_a_distributed_checkpoint(maker: str, tmp_path: Path) -> None:
    wanted = run_ranks(save_distributed, 2, maker, str(tmp_path))[0]
    for found in run_ranks(load_distributed, 2, maker, str(tmp_path)):
        assert_same(wanted, found)
