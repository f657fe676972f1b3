"""``noise``, an input of rules: normal, one's own for each weight, and the same bits everywhere."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import gradstep
from gradstep.rule.noise import standard_normal

SHAPES = ((5, 3), (5, 3), (7,), (40, 50), ())


@gradstep.rule
def wanders(g: Any, *, noise: Any, seed: float = 0.0) -> Any:
    """Goes where chance leads."""
    return noise


@gradstep.rule
def langevin(g: Any, velocity: Any, *, noise: Any, lr: Any, momentum: float = 0.5) -> Any:
    """A descent that is shaken."""
    velocity = momentum * velocity + g
    return velocity + noise / lr, velocity


def walk(
    rule: gradstep.Rule,
    engine: str,
    dtype: torch.dtype = torch.float32,
    resume: bool = False,
    **options: Any,
) -> list[Tensor]:
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]
    optimizer = gradstep.Optimizer(weights, rule, lr=0.25, engine=engine, **options)
    for step in range(5):
        if resume and step == 3:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = gradstep.Optimizer(weights, rule, lr=0.25, engine=engine, **options)
            optimizer.load_state_dict(saved)
        for place, w in enumerate(weights):  # the second weight begins two steps later
            late = place == 1 and step < 2
            w.grad = None if late else torch.full_like(w, 0.5 + place)
        optimizer.step()
    return [w.detach() for w in weights]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_same_bits_in_all_engines_and_after_a_checkpoint() -> None:
    fused = walk(wanders, "fused")
    assert same(fused, walk(wanders, "eager"))
    assert same(fused, walk(wanders, "fused", resume=True))
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    assert same(fused, walk(wanders, "fused"))
    torch.set_num_threads(threads)
    chain = gradstep.chain(gradstep.clip_by_value(1.0), langevin, wanders(seed=3))
    assert same(walk(chain, "eager"), walk(chain, "eager", resume=True))
    assert not same(walk(wanders(seed=1), "fused"), fused)


@pytest.mark.deep
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["nearest", "stochastic"])
def test_the_same_bits_in_other_dtypes(dtype: torch.dtype, way: str) -> None:
    if dtype == torch.float64 and way == "stochastic":
        pytest.skip("for weights of 16 bits")
    made = walk(wanders, "fused", dtype, low_precision=way)
    assert same(made, walk(wanders, "eager", dtype, low_precision=way))
    assert same(made, walk(wanders, "fused", dtype, resume=True, low_precision=way))


def test_it_is_normal_and_another_one_for_each_weight_and_step() -> None:
    keys = torch.zeros(2, 2)
    numbers, keys = standard_normal.function(torch.randn(2, 20_000).double(), keys, 1.0, 0.0)
    more, again = standard_normal.function(torch.zeros(2, 20_000).double(), keys, 2.0, 0.0)
    assert torch.equal(keys, again) and bool((keys > 0).all())
    rows = torch.cat([numbers, more])
    count = rows.shape[1]
    # Kolmogorov and Smirnov's distance from the normal distribution; 1.95 is passed once in 1000.
    for row in rows:
        below = torch.tensor([math.erfc(-x / math.sqrt(2)) / 2 for x in sorted(row.tolist())])
        steps = torch.arange(1, count + 1) / count
        assert float((below - steps).abs().max()) < 1.95 / count**0.5
    correlations = torch.corrcoef(torch.cat([rows, rows.roll(1, 1)]))
    apart = correlations - torch.diag(torch.diag(correlations))
    assert float(apart.abs().max()) < 5 / count**0.5


@gradstep.rule
def appends(g: Any) -> Any:
    seen.append(1)
    return g * len(seen)


@gradstep.rule
def draws_within(g: Any) -> Any:
    return g * torch.empty(()).uniform_().item()


seen: list[int] = []


@pytest.mark.parametrize("rule, line", [(appends, "g * len(seen)"), (draws_within, ".uniform_()")])
@pytest.mark.parametrize("engine", ["fused", "eager"])
def test_what_another_trace_would_not_repeat_is_refused(
    rule: gradstep.Rule, line: str, engine: str
) -> None:
    w = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(gradstep.RuleError) as caught:
        gradstep.Optimizer([w], rule, lr=0.1, engine=engine)
    message = str(caught.value)
    assert f"rule {rule.name}, line " in message and line in message
    assert "a number that was" in message and "the input noise" in message
