"""What a trace and a step leave behind is freed at once, and not when Python looks for cycles."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

import gradstep
from gradstep import rules
from gradstep.rule.free_variables import FreeVariables
from gradstep.rule.trace import trace

pytestmark = pytest.mark.usefixtures("few_objects")

RULES = rules.load()


@pytest.fixture(autouse=True)
def _collected_by_hand() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def in_cycles(make: Callable[[], None]) -> int:
    """How many objects a call leaves in cycles; the first may load modules and fill caches."""
    make()
    gc.collect()
    make()
    return gc.collect()


def test_traces() -> None:
    def traced() -> None:
        for rule in RULES.values():
            trace(rule, {**rule.hyperparameters, "lr": 0.1})

    assert in_cycles(traced) == 0


def test_a_trace_that_fails() -> None:
    @gradstep.rule
    def branches(g):
        return g if g > 0 else -g

    def refused() -> None:
        with pytest.raises(gradstep.RuleError):
            trace(branches, {"lr": 0.1})

    assert in_cycles(refused) == 0


def test_what_a_rule_reads() -> None:
    mine = [2.0]
    rule = gradstep.rule(lambda g: g * mine[0])
    assert in_cycles(lambda: FreeVariables(rule) and None) == 0


@pytest.mark.parametrize("engine", ["auto", "eager"])
@pytest.mark.parametrize("name", ["adam", "lamb", "prodigy", "soap", "muon"])
def test_an_optimizer_and_its_steps(name: str, engine: str) -> None:
    def stepped() -> None:
        w = nn.Parameter(torch.ones(3, 4))
        optimizer = gradstep.Optimizer([w], RULES[name], engine=engine)
        for _ in range(2):
            w.grad = torch.ones(3, 4)
            optimizer.step()

    assert in_cycles(stepped) == 0
