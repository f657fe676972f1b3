"""What many small weights cost: from construction to loading, and steps with gradients missing.

Beside torch.optim's class of the same name in its default mode, in CPU time of one thread: the two
take turns, and the ratio is of medians.
"""

from __future__ import annotations

import copy
import functools
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

import gradstep
from gradstep.lab.bench_models import Shapes, transformer_shapes

#: Class and options, by the name that the table has.
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 1e-3}),
    "momentum": ("SGD", {"lr": 1e-3, "momentum": 0.9}),
    "adam": ("Adam", {"lr": 1e-3}),
    "adamw": ("AdamW", {"lr": 1e-3}),
}
#: What is timed in the life of an optimizer, in this order.
PHASES = ("construction", "first step", "later step", "state_dict", "loading", "step after loading")
#: As many groups as there are weights, up to here: torch's time grows with their square.
GROUPS = 2000
#: Later steps of which the median counts; and steps before any with missing gradients is timed.
_LATER, _WARM_UP = 5, 30

Times = dict[str, list[float]]


def experts() -> Shapes:
    """64 experts of three tensors each."""
    return [(16, 16), (16,), (16, 16)] * 64


def _parameters(shapes: Iterable[tuple[int, ...]]) -> list[Tensor]:
    params: list[Tensor] = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def _clocked(times: Times, phase: str, work: Callable[[], Any]) -> Any:
    started = time.thread_time()
    result = work()
    times[phase].append(time.thread_time() - started)
    return result


def _life(times: Times, make: Callable[[Any], Any], params: list[Tensor], one_each: bool) -> None:
    groups: Any = [{"params": [p]} for p in params] if one_each else params
    optimizer = _clocked(times, "construction", lambda: make(groups))
    _clocked(times, "first step", optimizer.step)
    for _ in range(_LATER):
        _clocked(times, "later step", optimizer.step)
    checkpoint = copy.deepcopy(_clocked(times, "state_dict", optimizer.state_dict))
    _clocked(times, "loading", lambda: optimizer.load_state_dict(checkpoint))
    _clocked(times, "step after loading", optimizer.step)


def _makers(rule: str) -> list[Callable[[Any], Any]]:
    name, options = RULES[rule]
    return [functools.partial(getattr(of, name), **options) for of in (gradstep, torch.optim)]


def lives(rule: str, count: int, one_each: bool, rounds: int) -> dict[str, tuple[float, float]]:
    """The median seconds of each phase, ours and torch's.

    Args:
        rule: of :data:`RULES`.
        count: how many weights of four elements.
        one_each: a parameter group for each.
        rounds: how often each library's turn comes, after one that does not count.
    """
    found: list[Times] = [defaultdict(list), defaultdict(list)]
    for turn in range(rounds + 1):
        times = found if turn else [defaultdict(list), defaultdict(list)]
        for own, make in zip(times, _makers(rule), strict=True):
            _life(own, make, _parameters([(4,)] * count), one_each)
    ours, torchs = ({p: statistics.median(t[p]) for p in PHASES} for t in found)
    return {phase: (ours[phase], torchs[phase]) for phase in PHASES}


def missing(
    rule: str, shapes: Shapes, together: int, present: int, rounds: int, seed: int
) -> tuple[float, float]:
    """The median seconds of a step with gradients that were never there together, ours and torch's.

    Args:
        rule: of :data:`RULES`.
        shapes: of the parameters.
        together: so many neighbours have a gradient, or none.
        present: how many of these have one at a step.
        rounds: steps that are timed, after some in which each weight is seen.
        seed: of the choice.
    """
    sides = [(make, _parameters(shapes)) for make in _makers(rule)]
    optimizers = [make(params) for make, params in sides]
    gradients = [[p.grad for p in params] for _, params in sides]
    choice = random.Random(seed)
    times: list[list[float]] = [[], []]
    for step in range(_WARM_UP + rounds):
        chosen = set(choice.sample(range(len(shapes) // together), present))
        for (_, params), optimizer, own, all_gradients in zip(
            sides, optimizers, times, gradients, strict=True
        ):
            for place, (p, gradient) in enumerate(zip(params, all_gradients, strict=True)):
                p.grad = gradient if place // together in chosen else None
            started = time.thread_time()
            optimizer.step()
            if step >= _WARM_UP:
                own.append(time.thread_time() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def lines(rules: Sequence[str], count: int, rounds: int, seed: int) -> Iterable[str]:
    """The tables, row by row as they are measured: our milliseconds, and the ratio to torch's."""
    width = max(map(len, PHASES)) + 2
    groups = min(count, GROUPS)
    for one_each, weights in ((False, count), (True, groups)):
        where = f"{groups} groups of one weight" if one_each else f"{count} weights in one group"
        yield f"{where}: ms, ours : torch"
        yield "".join(["rule".ljust(10), *(phase.rjust(width) for phase in PHASES)])
        for rule in rules:
            found = lives(rule, weights, one_each, rounds)
            cells = [f"{a * 1e3:.2f}  {a / b:.2f}" for a, b in found.values()]
            yield "".join([rule.ljust(10), *(cell.rjust(width) for cell in cells)])
        yield ""
    cases = {
        "64 experts, 8 at a step": (experts(), 3, 8),
        "148 tensors, 74 at a step": (transformer_shapes(12, 32, 65, 64), 1, 74),
    }
    yield "gradients that were never there together: ms, ours : torch"
    yield "".join(["rule".ljust(10), *(case.rjust(28) for case in cases)])
    for rule in rules:
        found_of = [missing(rule, *case, rounds=rounds * 20, seed=seed) for case in cases.values()]
        cells = [f"{a * 1e3:.3f}  {a / b:.2f}" for a, b in found_of]
        yield "".join([rule.ljust(10), *(cell.rjust(28) for cell in cells)])
