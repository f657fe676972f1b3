"""What a person is told who gives an optimizer no rule, or a rule a wrong thing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import gradstep
from gradstep import where


def weight(*shape: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros(*shape))


@gradstep.rule
def by_rows(g: Any, row: Any = gradstep.per_row(), *, beta: float = 0.9) -> Any:
    row = beta * row + gradstep.mean(g * g, dim=-1)
    return g / gradstep.sqrt(row), row


@gradstep.rule
def negated(g: Any) -> Any:
    return where(not (g > 0), g, 0.0)


@gradstep.rule
def branches(g: Any) -> Any:
    if g > 0 and g < 1:
        return g
    return -g


@gradstep.rule
def named(g: Any, *, kind: str = "plain") -> Any:
    return g if kind == "plain" else -g


class Callable_:
    def __call__(self, g: Any) -> Any:
        return g


def step(rule: gradstep.Rule) -> None:
    w = weight(3)
    optimizer = gradstep.Optimizer([w], rule, lr=0.1)
    w.grad = torch.ones(3)
    optimizer.step()


net = torch.nn.Sequential(torch.nn.Embedding(5, 3), torch.nn.Linear(3, 3), torch.nn.Linear(3, 5))
PARTS = {"matrices": gradstep.muon(), "rest": gradstep.adam()}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: step(by_rows), "the state row, one number a row, which weights with fewer than"),
        (lambda: step(negated), "a comparison is true, which and, or, not .* ~ for not"),
        (lambda: step(branches), "branches on a tensor"),
        (lambda: named(kind=3), "Invalid kind value: 3; named takes text, such as 'plain'"),
        (
            lambda: gradstep.Optimizer([weight(3)], gradstep.Adam),  # type: ignore[arg-type]
            r"got Adam. That is an optimizer already: gradstep.Adam\(params, lr=…\)",
        ),
        (
            lambda: gradstep.Optimizer([weight(3)], "adam"),  # type: ignore[arg-type]
            r"got 'adam'. Write gradstep.Optimizer\(params, gradstep.adam\(\)\)",
        ),
        (
            lambda: gradstep.Optimizer([weight(3)], gradstep.Adam([weight(2)])),  # type: ignore[arg-type]
            "got an object of class Adam. That is an optimizer already",
        ),
        (lambda: gradstep.rule(Callable_()), "takes a function, .*; got Callable_"),
        (lambda: gradstep.rule(functools.partial(max, 3)), "takes a function, .*; got partial"),
        (lambda: gradstep.rule(torch.relu), "takes a function, .*; got builtin_function"),
        (
            lambda: gradstep.partition(PARTS, net.parameters(), lr=0.01),
            "parameters without names may be embeddings or a head.* Give partition.. the model",
        ),
    ],
)
def test_it_is_told_what_to_write(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        call()
    assert str(caught.value).count("\n") <= 2


def test_a_wrapper_around_a_partition_prints_its_table() -> None:
    inside = gradstep.partition(PARTS, net, lr=0.01)
    first, *rest = repr(gradstep.EMA(inside, decay=0.9)).splitlines()
    assert first == "EMA around"
    ends = [row.index("0.01") + len("0.01") for row in rest[1:]]
    assert rest[0].startswith("part ") and set(ends) == {rest[0].index("lr") + len("lr")}
