"""Time optimizer steps, ours and torch.optim's, interleaved in one run.

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
from gradstep.engine.fused import FusedLaunch
from gradstep.lab.bench_models import Size


@dataclass(frozen=True)
class Case:
    """A rule with its flags set.

    Attributes:
        name: on the command line.
        ours: gradstep's class.
        torchs: torch.optim's class of the same name, if there is one.
        options: arguments for both.
        torch_fuses: whether torch has a fused CPU kernel for it.
    """

    name: str
    ours: Callable[..., Any]
    torchs: Callable[..., Any] | None
    options: dict[str, Any] = field(default_factory=dict)
    torch_fuses: bool = False


CASES = {
    case.name: case
    for case in [
        Case("sgd", gradstep.SGD, torch.optim.SGD, {"lr": 1e-3}, True),
        Case("momentum", gradstep.SGD, torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9}, True),
        Case("adam", gradstep.Adam, torch.optim.Adam, {}, True),
        Case("adamw", gradstep.AdamW, torch.optim.AdamW, {}, True),
        Case("adagrad", gradstep.Adagrad, torch.optim.Adagrad, {}, True),
        Case("rmsprop", gradstep.RMSprop, torch.optim.RMSprop, {"lr": 1e-3}),
        Case(
            "rmsprop-centered-momentum",
            gradstep.RMSprop,
            torch.optim.RMSprop,
            {"lr": 1e-3, "centered": True, "momentum": 0.9},
        ),
        Case("lion", gradstep.Lion, None),
    ]
}


@dataclass
class Row:
    """One case at one size.

    Attributes:
        case, size: their names.
        seconds: contender -> median time of a step.
        kernel: our pass over memory alone, without what Python does around it.
        bytes_moved: what a step must read and write.
        streaming: seconds that an in-place multiplication of as many weights took, in the same
            rounds; and the bytes that it moved.
        loaded: whether another process kept a core busy.
    """

    case: str
    size: str
    seconds: dict[str, float]
    kernel: float
    bytes_moved: int
    streaming: tuple[float, int]
    loaded: bool = False

    def best_of_torch(self) -> tuple[str, float] | None:
        """torch.optim's fastest mode and its time."""
        modes = {k: v for k, v in self.seconds.items() if k.startswith("torch ")}
        return min(modes.items(), key=lambda item: item[1]) if modes else None

    def ratio(self) -> float | None:
        """How many times faster than torch's best mode."""
        best = self.best_of_torch()
        return None if best is None else best[1] / self.seconds["gradstep"]

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
    if case.torchs is not None:
        found["torch loop"] = case.torchs(parameters(), foreach=False, **case.options)
        found["torch foreach"] = case.torchs(parameters(), foreach=True, **case.options)
        if case.torch_fuses:
            found["torch fused"] = case.torchs(parameters(), fused=True, **case.options)
    return found


def measure(
    case: Case,
    size: Size,
    rounds: int,
    dtype: torch.dtype = torch.float32,
    engine: str = "auto",
    seed: int = 0,
) -> Row:
    """Time one case at one size.

    Args:
        case, size: what.
        rounds: timed rounds; three more go before them.
        dtype: of the weights.
        engine: gradstep's.
        seed: of the order within the rounds.
    """
    optimizers = contenders(case, size, dtype, engine)
    streamed = torch.ones(size.elements(), dtype=dtype)
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    kernels: list[float] = []
    multiplications: list[float] = []
    order = random.Random(seed)
    work: list[tuple[list[float], Callable[[], object]]] = [
        (times[name], optimizer.step) for name, optimizer in optimizers.items()
    ]
    work.append((multiplications, lambda: streamed.mul_(1.0)))
    for _ in range(3 + rounds):
        order.shuffle(work)
        for record, action in work:
            start = time.perf_counter()
            action()
            record.append(time.perf_counter() - start)
        launches = [x for x in optimizers["gradstep"].plan() if isinstance(x, FusedLaunch)]
        start = time.perf_counter()
        for launch in launches:
            launch.run_kernel()
        kernels.append(time.perf_counter() - start)
    state_tensors = sum(
        value.numel()
        for entry in optimizers["gradstep"].state.values()
        for value in entry.values()
        if value.dim() or value.numel() > 1
    )
    item = streamed.element_size()
    return Row(
        case.name,
        size.name,
        {name: statistics.median(record[3:]) for name, record in times.items()},
        statistics.median(kernels[3:]),
        item * (3 * size.elements() + 2 * state_tensors),
        (statistics.median(multiplications[3:]), 2 * item * size.elements()),
    )


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
