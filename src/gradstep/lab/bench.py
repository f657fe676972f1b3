"""Time optimizer steps, ours, torch.optim's and other libraries', interleaved in one run.

Every contender has its own copy of the weights and shares the gradients. In each round every
contender makes one step, in a new random order, so that what else the machine does falls on all of
them alike. Medians are compared; a single time says little on a machine that others use too.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import gradstep
from gradstep.backends.cpu.run import FlatRun
from gradstep.lab.bench_case import Case
from gradstep.lab.bench_cases import CASES, own_case
from gradstep.lab.bench_memory import temporary_bytes
from gradstep.lab.bench_models import Size
from gradstep.lab.bench_peers import Rivals
from gradstep.optimizer.optimizer import planner_of

__all__ = [
    "CASES",
    "Case",
    "Row",
    "busy_core",
    "contenders",
    "host_work",
    "measure",
    "own_case",
]


@dataclass
class Row:
    """One case at one size.

    Attributes:
        case, size: their names.
        seconds: contender -> median time of a step.
        kernel: our pass over memory alone, without what Python does around it; 0 for a rule that
            sums first, whose passes are not one call.
        bytes_moved: what a step must read and write.
        streaming: seconds that an in-place multiplication of as many weights took, in the same
            rounds; and the bytes that it moved.
        loaded: whether another process kept a core busy.
        aim: the ratio that is asked for, if one is.
        temporary: contender -> bytes of temporary memory in a step.
        left_out: contender -> why it was not timed.
    """

    case: str
    size: str
    seconds: dict[str, float]
    kernel: float
    bytes_moved: int
    streaming: tuple[float, int]
    loaded: bool = False
    aim: float | None = None
    temporary: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def best_of(self, library: str) -> tuple[str, float] | None:
        """A library's fastest mode and its time."""
        modes = {k: v for k, v in self.seconds.items() if k.startswith(library + " ")}
        return min(modes.items(), key=lambda item: item[1]) if modes else None

    def measure_of(self) -> tuple[str, float] | None:
        """What it is held against: torch.optim's fastest mode, or our own rule beside it."""
        return self.best_of("torch") or self.best_of("beside")

    def ratio(self, library: str | None = None) -> float | None:
        """How many times faster than a library's best mode; or than :meth:`measure_of`."""
        best = self.measure_of() if library is None else self.best_of(library)
        return None if best is None else best[1] / self.seconds["gradstep"]

    def reached(self) -> bool | None:
        """Whether the ratio is what was asked for."""
        ratio = self.ratio()
        return None if ratio is None or self.aim is None else ratio >= self.aim

    def share_of_bandwidth(self) -> float:
        """Bytes a second, as a share of what the in-place multiplication reached."""
        seconds, moved = self.streaming
        return (self.bytes_moved / self.seconds["gradstep"]) / (moved / seconds)


def contenders(case: Case, size: Size, dtype: torch.dtype, engine: str) -> dict[str, Any]:
    """Optimizers to time, each with weights of its own."""
    gradients = size.gradients(dtype)

    def parameters() -> list[Tensor]:
        weights = [torch.nn.Parameter(w) for w in size.weights(dtype)]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        return list(weights)

    found = {"gradstep": case.ours(parameters(), engine=engine, **case.options)}
    if case.beside is not None:
        name, make = case.beside
        found[f"beside {name}"] = make(parameters(), engine=engine)
    if case.torchs is not None:
        modes: dict[str, dict[str, bool]] = {
            "torch loop": {} if case.matrices_only else {"foreach": False},
            "torch foreach": {"foreach": True},
            **({"torch fused": {"fused": True}} if case.torch_fuses else {}),
        }
        for name, mode in modes.items():
            if name not in case.left_out:
                found[name] = case.torchs(parameters(), **mode, **case.options)
    return found


def measure(
    case: Case,
    size: Size,
    rounds: int,
    dtype: torch.dtype = torch.float32,
    engine: str = "auto",
    seed: int = 0,
    rivals: Rivals | None = None,
) -> Row:
    """Time one case at one size; after that, look at the temporary memory of a step of each.

    Args:
        case, size: what.
        rounds: timed rounds; three more go before them.
        dtype: of the weights.
        engine: gradstep's.
        seed: of the order within the rounds.
        rivals: other libraries to time beside.
    """
    size = size.matrices() if case.matrices_only else size
    optimizers = contenders(case, size, dtype, engine)
    makers, left_out = rivals.makers(case) if rivals else ({}, {})
    others = {
        name: make(size.weights(dtype), size.gradients(dtype)) for name, make in makers.items()
    }
    streamed = torch.ones(size.elements(), dtype=dtype)
    steps = {name: case.step_of(one) for name, one in (*optimizers.items(), *others.items())}
    times: dict[str, list[float]] = {name: [] for name in steps}
    kernels: list[float] = []
    multiplications: list[float] = []
    order = random.Random(seed)
    work: list[tuple[list[float], Callable[[], object]]] = [
        (times[name], step) for name, step in steps.items()
    ]
    work.append((multiplications, lambda: streamed.mul_(1.0)))
    for _ in range(3 + rounds):
        order.shuffle(work)
        for record, action in work:
            start = time.perf_counter()
            action()
            record.append(time.perf_counter() - start)
        kernels.append(0.0 if case.asks_for_loss else _kernel_alone(optimizers["gradstep"]))
    state_bytes = sum(
        value.nbytes
        for entry in optimizers["gradstep"].state.values()
        for value in entry.values()
        if value.dim() or value.numel() > 1
    )
    temporary = {name: temporary_bytes(steps[name]) for name in optimizers}
    for name, one in others.items():
        own = temporary_bytes(steps[name]) if case.asks_for_loss else one.temporary()
        temporary[name] = own
    item = streamed.element_size()
    return Row(
        case.name,
        size.name,
        {name: statistics.median(record[3:]) for name, record in times.items()},
        statistics.median(kernels[3:]),
        3 * item * size.elements() + 2 * state_bytes,
        (statistics.median(multiplications[3:]), 2 * item * size.elements()),
        aim=case.aim(size.name) if dtype is torch.float32 else None,
        temporary=temporary,
        left_out={**case.left_out, **left_out},
    )


def _kernel_alone(optimizer: Any) -> float:
    """Seconds of a step's pass over memory; 0 where that is not all of it."""
    runs = planner_of(optimizer).plan()
    flat = [run for run in runs if isinstance(run, FlatRun)]
    start = time.perf_counter()
    for run in flat:
        run.run_kernel()
    return (time.perf_counter() - start) * (len(flat) == len(runs))


def host_work(rounds: int = 300) -> tuple[float, float]:
    """What a step of AdamW costs beside its kernel: seconds a step, and seconds a tensor.

    From steps over 1 and over 101 tensors of 8 weights, whose kernels take next to nothing.
    """
    times: dict[int, list[float]] = {1: [], 101: []}
    steps = {}
    for count in times:
        weights = [torch.nn.Parameter(torch.ones(8)) for _ in range(count)]
        for weight in weights:
            weight.grad = torch.ones(8)
        steps[count] = gradstep.AdamW(weights, lr=1e-3).step
    for _ in range(rounds):
        for count, step in steps.items():
            start = time.perf_counter()
            step()
            times[count].append(time.perf_counter() - start)
    one, many = statistics.median(times[1]), statistics.median(times[101])
    a_tensor = (many - one) / 100
    return one - a_tensor, a_tensor


@contextmanager
def busy_core() -> Iterator[None]:
    """Another process that keeps one core busy, for rows under load."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        yield
    finally:
        process.kill()
        process.wait()
