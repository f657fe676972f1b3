"""Stages with a memory of gradients, each against its formula in NumPy, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradstep

LR, STEPS = 0.125, 9
SHAPES = [(7,), (6, 5), (3, 2, 3)]


@pytest.fixture(autouse=True)
def double_numbers() -> Iterator[None]:
    """States that are one number have all digits."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


#: What a stage makes of one weight's gradients, given the norm over all weights at each step.
Formula = Callable[[list[Any], list[float]], Iterator[Any]]


def gradients(number: int) -> list[Any]:
    """With a spike of all and a spike of one element."""
    made = np.random.default_rng(number)
    found = [made.normal(size=shape) for shape in SHAPES]
    if number == 6:
        found = [30 * g for g in found]
    found[0][3] *= 500 if number == 7 else 1
    return found


def zero_nans(given: list[Any], _: list[float]) -> Iterator[Any]:
    yield from (np.nan_to_num(g, nan=0.0) for g in given)


def adagc(given: list[Any], over_all: list[float]) -> Iterator[Any]:
    gamma: Any = None
    for t, (g, total) in enumerate(zip(given, over_all, strict=True), 1):
        if t < 4:
            clipped = g * min(1.0, 2.0 / (total + 1e-8))
            size = np.linalg.norm(clipped)
            gamma = size if gamma is None else min(gamma, size)
        else:
            clipped = g * min(1.0, 1.5 * gamma / np.linalg.norm(g))
            gamma = 0.75 * gamma + 0.25 * np.linalg.norm(clipped)
        yield clipped


def clip_spikes(given: list[Any], _: list[float]) -> Iterator[Any]:
    v = 0 * given[0]
    for t, g in enumerate(given, 1):
        if t >= 3:
            g = np.where(g**2 > 20 * v, np.sign(g) * np.sqrt(20 * v), g)
        v = 0.9 * v + 0.1 * g**2
        yield g


def stable_spam(given: list[Any], _: list[float]) -> Iterator[Any]:
    most = first = second = 0.0
    for t, g in enumerate(given, 1):
        largest = np.abs(g).max()
        most = 0.9 * most + 0.1 * largest
        usual = most / (1 - 0.9**t)
        g = np.where(np.abs(g) > usual, g / largest * usual, g)
        size = np.linalg.norm(g)
        first = 0.7 * first + 0.3 * size
        second = 0.8 * second + 0.2 * size**2
        yield g / size * (first / (1 - 0.7**t)) / (np.sqrt(second / (1 - 0.8**t)) + 1e-8)


def grokfast(given: list[Any], _: list[float]) -> Iterator[Any]:
    slow = given[0]
    for g in given:
        slow = 0.9 * slow + 0.1 * g
        yield g + 3 * slow


def mars(given: list[Any], _: list[float]) -> Iterator[Any]:
    last = given[0]
    for g in given:
        c = g + 0.1 * 0.9 / (1 - 0.9) * (g - last)
        last = g
        yield c / max(1.0, np.linalg.norm(c) / 2.0)


STAGES: dict[str, tuple[gradstep.Rule, Formula]] = {
    "zero_nans": (gradstep.zero_nans, zero_nans),
    "adagc": (gradstep.adagc(2.0, 1.5, 0.75, 4), adagc),
    "clip_spikes": (gradstep.clip_spikes(20.0, 0.9, 3), clip_spikes),
    "stable_spam": (gradstep.stable_spam(0.7, 0.8, 0.9), stable_spam),
    "grokfast": (gradstep.grokfast(0.9, 3.0), grokfast),
    "mars_correction": (gradstep.mars_correction(0.9, 0.1, 2.0), mars),
}


@pytest.mark.parametrize("engine", ["fused", "eager"])
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_its_formula(name: str, engine: str) -> None:
    rule, formula = STAGES[name]
    weights = [nn.Parameter(torch.zeros(s, dtype=torch.float64)) for s in SHAPES]
    optimizer = gradstep.Optimizer(weights, rule, lr=LR, engine=engine)
    given = [gradients(number) for number in range(STEPS)]
    if name == "zero_nans":
        given[1][0][2] = np.nan
    over_all = [float(np.sqrt(sum((g**2).sum() for g in each))) for each in given]
    wanted = [
        list(formula([each[place] for each in given], over_all)) for place in range(len(SHAPES))
    ]
    for number in range(STEPS):
        before = [w.detach().clone() for w in weights]
        for w, g in zip(weights, given[number], strict=True):
            w.grad = torch.tensor(g)
        optimizer.step()
        for place, (w, old) in enumerate(zip(weights, before, strict=True)):
            made = (old - w.detach()).numpy() / LR
            np.testing.assert_allclose(made, wanted[place][number], rtol=1e-9, atol=1e-11)


def test_mars_before_adam_is_the_rule_mars() -> None:
    made = []
    options = {"beta1": 0.95, "beta2": 0.99, "eps": 1e-8}
    for rule in (
        gradstep.mars(**options),
        gradstep.chain(gradstep.mars_correction(), gradstep.adam(**options)),
    ):
        weights = [nn.Parameter(torch.ones(s, dtype=torch.float64)) for s in SHAPES]
        optimizer = gradstep.Optimizer(weights, rule, lr=LR)
        for number in range(5):
            for w, g in zip(weights, gradients(number), strict=True):
                w.grad = torch.tensor(g)
            optimizer.step()
        made.append(weights)
    for a, b in zip(*made, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
