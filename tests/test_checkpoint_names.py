"""Names in a checkpoint: states go by place, so that another order is warned of."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep

Named = list[tuple[str, Tensor]]


def split(p: Named) -> Any:
    return [{"params": p[:2]}, {"params": p[2:]}]


MAKERS: dict[str, Callable[[Named], torch.optim.Optimizer]] = {
    "SGD": lambda p: gradstep.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: gradstep.AdamW(p),
    "a rule": lambda p: gradstep.Optimizer(p, gradstep.lion()),
    "groups": lambda p: gradstep.AdamW(split(p)),
    "partition": lambda p: gradstep.partition(
        {"first": gradstep.muon(), "rest": gradstep.adam()}, p, where={"first": "a,b"}
    ),
    "EMA": lambda p: gradstep.EMA(gradstep.AdamW(p)),
    "Accumulate": lambda p: gradstep.Accumulate(gradstep.AdamW(p), 1),
}


def weights(names: str | list[str] = "abcd") -> Named:
    return [(n, nn.Parameter(torch.full((2, 2), float(i)))) for i, n in enumerate(names)]


def saved(maker: str, named: Named) -> dict[str, Any]:
    optimizer = MAKERS[maker](named)
    for _, p in named:
        p.grad = torch.ones_like(p)
    optimizer.step()
    return optimizer.state_dict()


def names_in(optimizer: torch.optim.Optimizer) -> list[str]:
    return [n for group in optimizer.param_groups for n in group["param_names"]]


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("order", ["bacd", "abdc", "badc"])
def test_another_order_is_warned_of_and_own_names_stay(maker: str, order: str) -> None:
    checkpoint = saved(maker, weights())
    resumed = MAKERS[maker](weights(list(order)))
    with pytest.warns(UserWarning, match="parameters in another order") as found:
        resumed.load_state_dict(checkpoint)
    (message,) = [str(w.message) for w in found]
    for here, there in zip(order, "abcd", strict=True):
        assert (f"{here} gets those of {there}" in message) is (here != there)
    assert names_in(resumed) == list(order)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "other_name_"])
def test_the_same_order_is_not(maker: str, prefix: str) -> None:
    names = [prefix + n for n in "abcd"]
    if maker == "partition" and prefix:
        pytest.skip("its pattern names its parameters")
    checkpoint = saved(maker, weights(names))
    resumed = MAKERS[maker](weights())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.load_state_dict(checkpoint)
    assert names_in(resumed) == list("abcd")


def test_names_across_groups() -> None:
    checkpoint = saved("groups", weights("abcd"))
    resumed = MAKERS["groups"](weights("cdab"))
    with pytest.warns(UserWarning, match="c gets those of a, d gets those of b, a gets those of c"):
        resumed.load_state_dict(checkpoint)


def test_many_names_are_counted() -> None:
    names = list("abcdefghij")
    checkpoint = saved("AdamW", weights(names))
    resumed = MAKERS["AdamW"](weights(names[::-1]))
    with pytest.warns(UserWarning, match="f gets those of e and 5 more. Give"):
        resumed.load_state_dict(checkpoint)


def test_without_names_on_either_side_and_without_states() -> None:
    plain = [p for _, p in weights()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = gradstep.AdamW(plain)
        resumed.load_state_dict(saved("AdamW", weights()))
        assert resumed.param_groups[0]["param_names"] == list("abcd")  # as torch does
        named = gradstep.AdamW(weights())
        named.load_state_dict(gradstep.AdamW(plain).state_dict())
        assert names_in(named) == list("abcd")
        named.load_state_dict(gradstep.AdamW(weights("badc")).state_dict())
        assert names_in(named) == list("abcd")
