"""States that others keep beside an optimizer's own: wrappers of other packages, hooks, users."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep


class Lookahead(torch.optim.Optimizer):
    """As timm has it: a slow copy of each weight among the states, its numbers in the groups."""

    def __init__(self, base: torch.optim.Optimizer, alpha: float = 0.5, k: int = 2) -> None:
        own = {"lookahead_alpha": alpha, "lookahead_k": k, "lookahead_step": 0}
        self.base = base
        self.defaults = base.defaults
        self.defaults.update(own)
        self.state = defaultdict(dict)
        for group in base.param_groups:
            for name, value in own.items():
                group.setdefault(name, value)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = self.base.step(closure)
        for group in self.base.param_groups:
            group["lookahead_step"] += 1
            if group["lookahead_step"] % group["lookahead_k"]:
                continue
            for p in group["params"]:
                if p.grad is not None:
                    state = self.base.state[p]
                    if "lookahead_slow_buff" not in state:
                        state["lookahead_slow_buff"] = p.detach().clone()
                    slow = state["lookahead_slow_buff"]
                    slow.add_(p - slow, alpha=group["lookahead_alpha"])
                    p.copy_(slow)
        return loss

    def state_dict(self) -> dict[str, Any]:
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.base.load_state_dict(state_dict)


class ScheduleFree:
    """As schedulefree's wrapper: its point z is there before the first step inside."""

    def __init__(self, base: torch.optim.Optimizer, momentum: float = 0.75) -> None:
        self.base, self.momentum = base, momentum

    @torch.no_grad()
    def step(self) -> None:
        params = [p for group in self.base.param_groups for p in group["params"]]
        held = [p for p in params if p.grad is not None]
        averages = []
        for p in held:
            z = self.base.state[p].setdefault("z", p.detach().clone())
            averages.append(p.lerp(z, 1 - 1 / self.momentum))
            p.copy_(z)
        self.base.step()
        group = self.base.param_groups[0]
        group["k"] = group.get("k", 0) + 1
        for p, average in zip(held, averages, strict=True):
            self.base.state[p]["z"].copy_(p)
            p.copy_(average.lerp(p, 1 / group["k"]).lerp(p, 1 - self.momentum))

    def state_dict(self) -> dict[str, Any]:
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.base.load_state_dict(state_dict)


MAKERS: dict[str, Callable[[list[tuple[str, Tensor]]], torch.optim.Optimizer]] = {
    "SGD": lambda p: gradstep.SGD(p, lr=0.1),
    "SGD with momentum": lambda p: gradstep.SGD(p, lr=0.1, momentum=0.5),
    "AdamW": lambda p: gradstep.AdamW(p, lr=0.01),
    "RMSprop": lambda p: gradstep.RMSprop(p, lr=0.01),
    "Adagrad": lambda p: gradstep.Adagrad(p, lr=0.01),
    "Lion": lambda p: gradstep.Lion(p, lr=0.01),
    "Prodigy": lambda p: gradstep.Prodigy(p),
    "SOAP": lambda p: gradstep.SOAP(p, lr=0.01),
    "chain": lambda p: gradstep.Optimizer(
        p, gradstep.chain(gradstep.clip_by_global_norm(1.0), gradstep.adam())
    ),
    "partition": lambda p: gradstep.partition(
        {"matrices": gradstep.muon(), "rest": gradstep.adam()}, p, lr=0.01
    ),
    "EMA": lambda p: gradstep.EMA(gradstep.AdamW(p, lr=0.01)),
}


def weights() -> list[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"matrix": (4, 3), "bias": (3,), "late": (2, 2)}
    return [(n, nn.Parameter(torch.randn(s, generator=generator))) for n, s in shapes.items()]


def train(params: list[tuple[str, Tensor]], optimizer: Any, steps: range) -> None:
    """Steps with gradients that depend on the number alone; "late" has its first at step 5."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for name, p in params:
            gradient = torch.randn(p.shape, generator=generator)
            p.grad = None if name == "late" and step < 5 else gradient
        optimizer.step()


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file)
    return loaded


@pytest.mark.parametrize("wrapper", [Lookahead, ScheduleFree])
@pytest.mark.parametrize("maker", MAKERS)
def test_a_wrapper_resumes_to_the_bit(maker: str, wrapper: Any) -> None:
    params = weights()
    whole = wrapper(MAKERS[maker](params))
    train(params, whole, range(3))
    again = [(n, nn.Parameter(p.detach().clone())) for n, p in params]
    resumed = wrapper(MAKERS[maker](again))
    resumed.load_state_dict(through_a_file(whole.state_dict()))
    train(params, whole, range(3, 8))
    train(again, resumed, range(3, 8))
    for (name, a), (_, b) in zip(params, again, strict=True):
        assert torch.equal(a, b), name
    keys = {"lookahead_slow_buff"} if wrapper is Lookahead else {"z"}
    for (_, p), (_, q) in zip(params, again, strict=True):
        assert set(whole.base.state[p]) == set(resumed.base.state[q]) >= keys


FOREIGN: list[Any] = [
    torch.arange(6.0), 3, 0.5, [1, 2], (1.5, None), {"inside": torch.ones(2)}, None, True,
]  # fmt: skip


@pytest.mark.parametrize("value", FOREIGN, ids=[type(v).__name__ for v in FOREIGN])
@pytest.mark.parametrize("maker", ["SGD", "AdamW", "partition", "EMA"])
def test_any_foreign_value_is_kept_as_torch_keeps_it(maker: str, value: Any) -> None:
    params = weights()
    optimizer = MAKERS[maker](params)
    train(params, optimizer, range(3))
    for _, p in params:  # also of the one that has made no step
        optimizer.state[p]["foreign"] = value
    optimizer.state["of nobody"] = value
    resumed = MAKERS[maker](params)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    train(params, resumed, range(3, 7))
    for _, p in params:
        assert str(resumed.state[p]["foreign"]) == str(value)
    assert str(resumed.state["of nobody"]) == str(value)


def test_a_dtype_follows_the_weight_as_in_torch() -> None:
    found = []
    for library in (torch.optim, gradstep):
        p = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        optimizer = library.AdamW([p])  # type: ignore[attr-defined]
        p.grad = torch.ones_like(p)
        optimizer.step()
        optimizer.state[p]["slow"] = torch.ones(3, dtype=torch.float32)
        optimizer.load_state_dict(optimizer.state_dict())
        found.append(optimizer.state[p]["slow"].dtype)
    assert found[0] is found[1] is torch.bfloat16


@pytest.mark.parametrize("keep", [[], ["step"], ["exp_avg", "exp_avg_sq"], ["step", "exp_avg"]])
def test_needed_states_are_not_made_up_for(keep: list[str]) -> None:
    params = weights()
    optimizer = gradstep.AdamW(params)
    train(params, optimizer, range(6))
    saved = optimizer.state_dict()
    for entry in saved["state"].values():
        for name in {"step", "exp_avg", "exp_avg_sq"} - set(keep):
            del entry[name]
        entry["foreign"] = torch.ones(1)
    resumed = gradstep.AdamW(params)
    with pytest.raises(ValueError, match=r"for matrix it holds .*foreign; expected step, exp_avg"):
        resumed.load_state_dict(saved)
    assert not resumed.state


def test_what_accumulate_keeps_between_two_batches_is_not_lost() -> None:
    params = weights()
    optimizer = gradstep.Accumulate(gradstep.AdamW(params), 2)
    train(params, optimizer, range(3))
    saved = optimizer.state_dict()
    with pytest.raises(ValueError, match=r"gradient of matrix so far.*gradstep.Accumulate"):
        gradstep.AdamW(params).load_state_dict(saved)
    gradstep.Accumulate(gradstep.AdamW(params), 2).load_state_dict(saved)
