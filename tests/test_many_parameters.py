"""Thousands of parameters, or of groups of one: no work of ours grows faster than their number."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import gradstep
from gradstep.compose.wrapper import rules_inside
from gradstep.optimizer.optimizer import planner_of

Make = Callable[[list[torch.nn.Parameter]], Any]

OURS = str(Path(gradstep.__file__).parent)

CLIPPED = gradstep.chain(gradstep.clip_by_global_norm(1.0), gradstep.adam())
PARTS = {"matrices": gradstep.muon(), "rest": gradstep.adam()}


def in_groups(make: Callable[[list[dict[str, Any]]], Any]) -> Make:
    return lambda params: make([{"params": [p]} for p in params])


def with_names(make: Callable[[list[tuple[str, Any]]], Any]) -> Make:
    return lambda params: make([(f"weight {i}", p) for i, p in enumerate(params)])


MAKES: dict[str, Make] = {
    "Adam": gradstep.Adam,
    "SGD": lambda params: gradstep.SGD(params, lr=0.1, momentum=0.9),
    "Adagrad": gradstep.Adagrad,
    "eager": lambda params: gradstep.Optimizer(params, gradstep.adam(), engine="eager"),
    "named": with_names(gradstep.Adam),
    "LAMB": lambda params: gradstep.Optimizer(params, gradstep.lamb()),
    "clipped": lambda params: gradstep.Optimizer(params, CLIPPED),
    "Prodigy": lambda params: gradstep.Optimizer(params, gradstep.prodigy()),
    "partition": with_names(lambda named: gradstep.partition(PARTS, named)),
    "EMA": lambda params: gradstep.EMA(gradstep.Adam(params)),
    "Accumulate": lambda params: gradstep.Accumulate(gradstep.Adam(params), 1),
    "groups": in_groups(gradstep.Adam),
    "groups, LAMB": in_groups(lambda groups: gradstep.Optimizer(groups, gradstep.lamb())),
    "groups, clipped": in_groups(lambda groups: gradstep.Optimizer(groups, CLIPPED)),
    "groups, Prodigy": in_groups(lambda groups: gradstep.Optimizer(groups, gradstep.prodigy())),
    "groups, named": lambda params: gradstep.Adam(
        [{"params": [(f"weight {i}", p)]} for i, p in enumerate(params)]
    ),
}


def lines_of(work: Callable[[], Any]) -> tuple[Counter[str], Any]:
    """How often a call runs each line of ours."""
    found: Counter[str] = Counter()

    def within(frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        found[f"{code.co_filename}:{frame.f_lineno} {code.co_name}"] += event == "line"
        return within

    def entered(frame: FrameType, event: str, _: Any) -> Any:
        return within if frame.f_code.co_filename.startswith(OURS) else None

    before = sys.gettrace()
    sys.settrace(entered)
    try:
        result = work()
    finally:
        sys.settrace(before)
    return found, result


def life(make: Make, count: int) -> dict[str, Counter[str]]:
    """How often each thing that is done with an optimizer of so many parameters runs each line."""
    lines: dict[str, Counter[str]] = {}
    params = [torch.nn.Parameter(torch.ones(2, 2)) for _ in range(count)]

    def say(what: str, work: Callable[[], Any]) -> Any:
        lines[what], found = lines_of(work)
        return found

    def step(what: str) -> None:
        for p in params:
            p.grad = torch.ones_like(p)
        say(what, optimizer.step)

    optimizer = say("construction", functools.partial(make, params))
    step("first step")
    step("second step")
    step("third step")
    saved = say("state_dict", optimizer.state_dict)
    say("load_state_dict", functools.partial(optimizer.load_state_dict, saved))
    step("step after loading")
    for each in rules_inside(optimizer):
        say("engines_used", each.engines_used)
        say("named", lambda each=each: list(planner_of(each).named()))
        say("name_of", lambda each=each: list(map(each.name_of, params)))
    say("zero_grad", optimizer.zero_grad)
    return lines


@pytest.mark.parametrize("name", MAKES)
def test_lines_grow_as_the_number_of_parameters(name: str) -> None:
    """Four times the parameters run a line four times as often; a loop in a loop, sixteen."""
    life(MAKES[name], 3)  # compile, and import
    few, many = (life(MAKES[name], count) for count in (12, 48))
    quadratic = {
        (what, line): (few[what][line], times)
        for what in few
        for line, times in many[what].items()
        if times > 6 * few[what][line] + 48
    }
    assert not quadratic
