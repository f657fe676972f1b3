"""Every rule that torch.optim has not, against another library's optimizer.

A row of ``tests/references`` with an ``oracle`` is a case here by itself. What is not installed is
skipped. The oracle is given the same gradients; ``maximize`` is left to it by their sign, for most
libraries have no such argument.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from configurations import spelled
from gradstep.rule.trace import trace
from reference import REFERENCES, Reference
from reference_row import loss_at

STEPS = 50
#: The largest difference allowed, in parts of the longest way that an element of the weight went.
BOUND = 1e-9
SHAPES = ((8, 6), (5,), (4, 3, 2, 2))
#: The steps at which they have their first gradient, where it is late.
FIRST = (0, 9, 23)

CASES = [
    pytest.param(reference, options, id=f"{reference.name}-{spelled(options)}")
    for reference in REFERENCES
    if reference.oracle is not None
    for options in reference.extra
]


@pytest.fixture(autouse=True)
def numbers_in_float64() -> Iterator[None]:
    """Numbers that are states, too, have all the digits that are compared."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def starts(reference: Reference) -> list[Tensor]:
    random = torch.Generator().manual_seed(3)
    shapes = reference.oracle_shapes or filter(reference.takes_shape, SHAPES)
    return [torch.randn(shape, generator=random) for shape in shapes]


def gradient(like: Tensor, number: int, place: int) -> Tensor:
    """Of sizes that grow and fall tenfold, with a turn of signs now and then, and some zeros."""
    random = torch.Generator().manual_seed(1000 * number + place)
    size = 10 ** math.sin(number + place)
    noise = torch.randn(like.shape, generator=random)
    trend = like.sign() if number % 11 < 7 else -like.sign()
    # None is 0 at a first step: what a rule makes of that is its own affair.
    there = torch.rand(like.shape, generator=random) < (0.9 if number > FIRST[-1] else 2)
    return torch.where(there, size * (noise + trend / 2), 0.0)


def plain(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments as numbers, without the sign of the gradients."""

    def number(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(number, value))
        return value.item() if isinstance(value, Tensor) else value

    return {n: number(v) for n, v in options.items() if n != "maximize"}


def run(
    optimizers: Sequence[Any], weights: Sequence[Tensor], sign: int = 1, late: bool = False
) -> list[Tensor]:
    """The weights after all steps; where ``late`` each has its first gradient at another step.

    One optimizer holds all weights, or each one its own, which then makes no step without it.
    """
    signs = [w.detach().sign() for w in weights]
    for number in range(STEPS):
        there = [True] * len(weights)
        if late:
            there = [number >= f and (number - f) % 7 != 5 for f in FIRST[: len(weights)]]
        for place, w in enumerate(weights):
            g = sign * gradient(signs[place], number, place)
            w.grad = g if there[place] else None
        for place, optimizer in enumerate(optimizers):
            if len(optimizers) < len(weights) or there[place]:
                optimizer.step(lambda number=number: torch.tensor(loss_at(number)))
    return [w.detach() for w in weights]


def looks_at_all(reference: Reference, options: dict[str, Any]) -> bool:
    """Whether a weight's step depends on the other weights."""
    numbers = {**reference.rule.hyperparameters, "lr": 0.1}
    graph = trace(reference.rule, {**numbers, **{n: options[n] for n in numbers if n in options}})
    return any(node.operation == "global_sum" for node in graph.nodes)


@pytest.mark.parametrize("late", [False, True], ids=["together", "late"])
@pytest.mark.parametrize(("reference", "options"), CASES)
def test_same_as_the_oracle(reference: Reference, options: dict[str, Any], late: bool) -> None:
    """After 50 steps, with gradients for all weights at once, or late and at times.

    Libraries that count the steps of a group, and not of a weight, are given a group a weight.
    """
    assert reference.oracle is not None
    start = starts(reference)
    if late and looks_at_all(reference, options):
        pytest.skip("a weight's step depends on the other weights")
    ours, theirs = ([torch.nn.Parameter(w.clone()) for w in start] for _ in range(2))
    sign = -1 if options.get("maximize") else 1
    shares = [[w] for w in theirs] if late else [theirs]
    try:
        oracles = [reference.oracle(share, copy.deepcopy(plain(options))) for share in shares]
    except ImportError as error:
        pytest.skip(f"needs {error.name}")
    except NotImplementedError as error:  # the oracle differs in an option
        pytest.skip(str(error))
    expected = run(oracles, theirs, sign, late)
    found = run([reference.ours(ours, **copy.deepcopy(options))], ours, 1, late)
    for a, b, before in zip(found, expected, start, strict=True):
        way = (b - before).abs().max().item()
        assert way > 0
        assert (a - b).abs().max().item() <= BOUND * way


def test_a_slightly_other_rule_is_found() -> None:
    """The bound sees a learning rate that is off in its ninth digit."""
    start = starts(REFERENCES[0])
    ours, theirs = ([torch.nn.Parameter(w.clone()) for w in start] for _ in range(2))
    a = run([torch.optim.SGD(ours, lr=0.1)], ours)
    b = run([torch.optim.SGD(theirs, lr=0.1 * (1 + 3e-9))], theirs)
    way = max((y - x).abs().max().item() for y, x in zip(b, start, strict=True))
    assert max((x - y).abs().max().item() for x, y in zip(a, b, strict=True)) > BOUND * way
