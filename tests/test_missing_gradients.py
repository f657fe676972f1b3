"""Other weights have gradients at each step, as in a mixture of experts: the same numbers, quickly.

What was found out about a weight in one step serves for all others, whichever weights come with
it; and it is looked at again in each.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import gradstep
from gradstep.backends.dispatch import Plan
from gradstep.compose.wrapper import rules_inside
from gradstep.optimizer.optimizer import begin_anew

CLIPPED = gradstep.chain(gradstep.clip_by_global_norm(1.0), gradstep.adam())
PARTS = {"matrices": gradstep.muon(), "rest": gradstep.adam()}

MAKES: dict[str, Callable[[list[Any]], Any]] = {
    "Adam": gradstep.Adam,
    "amsgrad": lambda params: gradstep.Adam(params, amsgrad=True),
    "SGD": lambda params: gradstep.SGD(params, lr=0.1),
    "momentum": lambda params: gradstep.SGD(params, lr=0.1, momentum=0.9),
    "LAMB": lambda params: gradstep.Optimizer(params, gradstep.lamb()),
    "clipped": lambda params: gradstep.Optimizer(params, CLIPPED),
    "Prodigy": lambda params: gradstep.Optimizer(params, gradstep.prodigy()),
    "SOAP": lambda params: gradstep.Optimizer(params, gradstep.soap()),
    "Adafactor": lambda params: gradstep.Optimizer(params, gradstep.adafactor()),
    "partition": lambda params: gradstep.partition(
        PARTS, [(f"weight {i}", p) for i, p in enumerate(params)]
    ),
    "EMA": lambda params: gradstep.EMA(gradstep.Adam(params)),
}

SHAPES: list[tuple[int, ...]] = [(4, 3), (3,), (4, 3), (2, 3, 4), (), (5, 1), (0, 2), (3, 4)]


def weights(kinds: bool = False) -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    found = [torch.randn(shape) for shape in SHAPES]
    if kinds:
        found[3] = found[3].double()
        found[2] = found[2].t().contiguous().t()
        found[7] = found[7].bfloat16()
    return [torch.nn.Parameter(t) for t in found]


def masks(count: int, steps: int) -> list[list[bool]]:
    """Of which hardly one comes twice, but for the last, and each weight comes in one of them."""
    source = random.Random(0)
    found = [[source.random() < 0.5 for _ in range(count)] for _ in range(steps)]
    return [*found, found[0], found[-1], found[0], found[0]]


def train(
    optimizer: Any,
    params: list[Any],
    steps: list[list[bool]],
    anew: bool = False,
    turned: bool = True,
) -> None:
    source = torch.Generator().manual_seed(1)
    for number, mask in enumerate(steps):
        for p, has in zip(params, mask, strict=True):
            g = torch.randn(p.shape, generator=source).to(p.dtype)
            if turned and number % 5 == 4 and p.dim() == 2:  # lies otherwise than its weight
                g = g.t().contiguous().t()
            p.grad = g if has else None
        if anew:  # forget all plans
            for each in rules_inside(optimizer):
                begin_anew(each)
        optimizer.step()


@pytest.mark.parametrize("kinds", [False, True])
@pytest.mark.parametrize("name", MAKES)
def test_the_bits_are_those_of_plans_made_anew(name: str, kinds: bool) -> None:
    if kinds and name in ("partition", "SOAP"):
        pytest.skip("torch's own products of bfloat16 are another matter")
    runs = []
    for anew in (False, True):
        params = weights(kinds)
        optimizer = MAKES[name](params)
        train(optimizer, params, masks(len(params), 24), anew)
        runs.append((params, [list(optimizer.state[p].values()) for p in params]))
    (ours, states), (theirs, other_states) = runs
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
    for own, others in zip(states, other_states, strict=True):
        for one, other in zip(own, others, strict=True):
            assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize("name", ["Adam", "momentum", "LAMB", "clipped", "Prodigy", "SOAP"])
def test_once_all_weights_were_seen_none_is_planned_with_care(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = weights()
    optimizer = MAKES[name](params)
    train(optimizer, params, masks(len(params), 30), turned=False)
    calls = []
    anew = Plan.anew
    monkeypatch.setattr(Plan, "anew", lambda self, *a: calls.append(1) or anew(self, *a))
    source = random.Random(7)
    seen = masks(len(params), 30)
    steps = [[source.random() < 0.6 for _ in params] for _ in range(30)]
    steps = [mask for mask in steps if mask not in seen and any(mask)]
    assert len(steps) > 10
    before = [p.detach().clone() for p in params]
    source_of_gradients = torch.Generator().manual_seed(2)
    for mask in steps:
        for p, has in zip(params, mask, strict=True):
            p.grad = torch.randn(p.shape, generator=source_of_gradients) if has else None
        optimizer.step()
    assert not calls
    moved = [not torch.equal(p, b) for p, b in zip(params, before, strict=True) if p.numel()]
    assert all(moved)


SPOILS: dict[str, Callable[[Tensor, dict[str, Any]], None]] = {
    "a weight of another dtype": lambda p, entry: setattr(p, "data", p.data.double()),
    "a state of another shape": lambda p, entry: entry.update(exp_avg=torch.zeros(7)),
    "a state of another dtype": lambda p, entry: entry.update(exp_avg=entry["exp_avg"].double()),
    "a state that is expanded": lambda p, entry: entry.update(
        exp_avg=torch.zeros(()).expand(p.shape)
    ),
    "a state that is missing": lambda p, entry: entry.pop("exp_avg"),
    "a state without memory": lambda p, entry: entry["exp_avg"].untyped_storage().resize_(0),
    "a state that is no tensor": lambda p, entry: entry.update(exp_avg=3.0),
    "a count that is no number": lambda p, entry: entry.update(step="three"),
    "a weight without memory": lambda p, entry: p.untyped_storage().resize_(0),
}


@pytest.mark.parametrize("name", ["Adam", "LAMB", "clipped"])
@pytest.mark.parametrize("spoil", SPOILS)
def test_a_mask_never_seen_finds_what_does_not_fit(spoil: str, name: str) -> None:
    """Nothing reaches a kernel on the strength of an earlier look, and nothing is written."""
    params = [torch.nn.Parameter(torch.randn(4, 3)) for _ in range(4)]
    optimizer = MAKES[name]([(f"expert {i}", p) for i, p in enumerate(params)])
    some = [[True] * 3 + [False], [False] + [True] * 3, [True, False, True, True]]
    train(optimizer, params, [*some, some[0]])
    before = [p.detach().clone() for p in params]
    counts = [float(optimizer.state[p]["step"]) for p in params]
    SPOILS[spoil](params[1], optimizer.state[params[1]])
    for p, has in zip(params, [True, True, False, True], strict=True):
        p.grad = torch.ones_like(p) if has else None
    with pytest.raises((ValueError, TypeError), match="expert 1"):
        optimizer.step()
    for place in (0, 2, 3):
        assert torch.equal(params[place], before[place])
        assert float(optimizer.state[params[place]]["step"]) == counts[place]


@pytest.mark.parametrize("written", ["weights", "states"])
def test_weights_that_share_memory_are_not_updated_side_by_side(written: str) -> None:
    """Each was alone with others in a step, and there a kernel could have it."""
    runs = []
    for make in (gradstep.SGD, torch.optim.SGD):
        base = torch.arange(12.0)
        params = [torch.nn.Parameter(torch.zeros(8)) for _ in range(3)]
        if written == "weights":
            params[0].data, params[1].data = base[:8], base[4:]
        optimizer = make(params, lr=0.1, momentum=0.9)
        for mask in ([True, False, True], [False, True, True], [True, True, False]):
            for p, has in zip(params, mask, strict=True):
                p.grad = torch.full((8,), 0.5) if has else None
            optimizer.step()
            if written == "states" and mask[0] and not mask[1]:
                optimizer.state[params[0]]["momentum_buffer"] = base[:8]
                optimizer.state[params[1]]["momentum_buffer"] = base[4:]
        runs.append(params)
    for one, other in zip(*runs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_it_is_quicker_than_torch_loop() -> None:
    """By CPU time side by side, with a margin of two over what docs/speed.md says."""
    times = {}
    experts = {}
    for make in (gradstep.Adam, torch.optim.Adam):
        params = [torch.nn.Parameter(torch.randn(16, 16)) for _ in range(150)]
        experts[make] = params, make(params)
        times[make] = []
    source = random.Random(3)
    for _ in range(60):
        mask = [source.random() < 0.4 for _ in range(150)]
        for make, (params, optimizer) in experts.items():
            for p, has in zip(params, mask, strict=True):
                p.grad = torch.ones_like(p) if has else None
            start = time.process_time()
            optimizer.step()
            times[make].append(time.process_time() - start)
    ours, theirs = (sorted(own[30:])[15] for own in times.values())
    assert ours < 2 * theirs
