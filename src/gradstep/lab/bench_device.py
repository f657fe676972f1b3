"""Time optimizer steps on a GPU: ours, torch's modes, and what the memory's speed allows.

Every contender has weights of its own and shares the gradients; in each round every contender makes
one step, in a new random order. The device's own clock takes the time from before the step's first
work to behind its last; where the host is slower than the device, that is the host's time. The
bound is the time in which as many bytes are copied within the device's memory as the step must
read and write.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradstep.lab.bench_case import Case
from gradstep.lab.bench_models import Size, transformer_shapes

#: What is timed if nothing is asked for: what torch fuses, and what it does not.
USUAL = ("sgd", "momentum", "adamw", "lion", "adan", "ademamix", "radam", "rprop", "nadam")

#: Of the copy that bandwidth is taken from.
_COPIED = 1 << 30


def sizes() -> dict[str, Size]:
    """The sizes by name: many small tensors, and a thousand million weights."""
    known = [
        Size(
            "transformer",
            "12-layer transformer of width 192: 148 tensors, 5.4 M weights",
            transformer_shapes(12, 192, 65, 256),
            100,
        ),
        Size("thousand", "1,000 tensors of 4,096 weights", [(64, 64)] * 1000, 100),
        Size(
            "billion",
            "24-layer transformer of width 1,792: 292 tensors, 1.02 billion weights",
            transformer_shapes(24, 1792, 50304, 2048),
            20,
        ),
    ]
    return {size.name: size for size in known}


@dataclass
class Row:
    """One case at one size.

    Attributes:
        case, size: their names.
        engine: what made our steps.
        seconds: contender -> median time of a step.
        first: contender -> seconds of its first step, with all that is loaded or compiled for it.
        bound: seconds in which as many bytes are copied as a step reads and writes; 0 where the
            rule reads something twice.
        left_out: contender -> why it was not timed.
    """

    case: str
    size: str
    engine: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    bound: float = 0.0
    left_out: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """It in words."""
        ours = self.seconds["gradstep"]
        share = f", {self.bound / ours:.2f} of copying" if self.bound else ""
        lines = [
            f"{self.case}, {self.size}: gradstep ({self.engine}) {_spoken(ours)}{share}; "
            f"first step {_spoken(self.first['gradstep'])}"
        ]
        for name, seconds in self.seconds.items():
            if name != "gradstep":
                lines.append(
                    f"  {name:<14} {_spoken(seconds):>10}, {seconds / ours:5.2f} × ours; "
                    f"first step {_spoken(self.first[name])}"
                )
        lines += [f"  {name:<14} not timed: {why}" for name, why in self.left_out.items()]
        return lines


def _spoken(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms" if seconds < 1 else f"{seconds:.2f} s"


class Clock:
    """Takes the time of work on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._events = device.type != "cpu"

    def wait(self) -> None:
        """Wait until the device has done all that it was given."""
        if self._events:
            torch.accelerator.synchronize(self.device)

    def take(self, work: Callable[[], object]) -> float:
        """Seconds from the work's beginning to its end on the device."""
        self.wait()
        if not self._events:
            begun = time.perf_counter()
            work()
            return time.perf_counter() - begun
        begin, end = (torch.Event(self.device, enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        self.wait()
        return float(begin.elapsed_time(end)) / 1e3

    def take_first(self, work: Callable[[], object]) -> float:
        """Seconds of the wall, from the call until the device is done."""
        self.wait()
        begun = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - begun


def copy_bandwidth(device: torch.device, nbytes: int = _COPIED, rounds: int = 20) -> float:
    """Bytes a second that a copy within the device's memory reads and writes, at its median."""
    clock = Clock(device)
    source = torch.zeros(nbytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = [clock.take(lambda: target.copy_(source)) for _ in range(rounds)]
    return 2 * nbytes / statistics.median(times)


def measure(
    case: Case,
    size: Size,
    rounds: int,
    dtype: torch.dtype,
    device: torch.device,
    engine: str,
    bandwidth: float,
    seed: int = 0,
    compiles: bool = True,
) -> Row:
    """Time one case at one size.

    Args:
        case: the rule with its flags.
        size: the shapes of the weights.
        rounds: how many are timed.
        dtype: of weights and gradients.
        device: where they lie.
        engine: ours.
        bandwidth: of the device's memory, in bytes a second.
        seed: of the order within a round.
        compiles: whether torch.compile's mode is timed, which takes its time to begin.
    """
    row, clock = Row(case.name, size.name), Clock(device)
    size = size.matrices() if case.matrices_only else size
    gradients = [g.to(device) for g in size.gradients(dtype)]
    weights = size.weights(dtype)

    def parameters() -> list[Tensor]:
        made = [torch.nn.Parameter(w.to(device)) for w in weights]
        for weight, gradient in zip(made, gradients, strict=True):
            weight.grad = gradient
        return list(made)

    ours = case.ours(parameters(), engine=engine, **case.options)
    makers: dict[str, Callable[[], Any]] = {"gradstep": lambda: ours}
    makers.update(_others(case, parameters, compiles))
    steps: dict[str, Callable[[], object]] = {}
    for name, make in makers.items():
        try:
            step = _stepping(make(), compiled=name == "torch compiled")
            row.first[name] = clock.take_first(step)
        except Exception as error:  # a mode that torch has not on this device, or memory is full
            if name == "gradstep":
                raise
            row.left_out[name] = str(error).partition("\n")[0]
        else:
            steps[name] = step
    row.engine = ", ".join(sorted(set(ours.engines_used().values())))
    times: dict[str, list[float]] = {name: [] for name in steps}
    order, shuffle = list(steps), random.Random(seed)
    for number in range(rounds + 2):
        shuffle.shuffle(order)
        for name in order:
            seconds = clock.take(steps[name])
            if number > 1:  # the first two warm up
                times[name].append(seconds)
    row.seconds = {name: statistics.median(found) for name, found in times.items()}
    row.bound = _moved(ours) / bandwidth
    return row


def _stepping(optimizer: Any, compiled: bool) -> Callable[[], object]:
    if compiled:
        made: Callable[[], object] = torch.compile(optimizer.step)
        return made
    if getattr(optimizer, "needs_loss", False):
        return lambda: optimizer.step(lambda: torch.tensor(0.5))
    step: Callable[[], object] = optimizer.step
    return step


def _others(
    case: Case, parameters: Callable[[], list[Tensor]], compiles: bool
) -> Mapping[str, Callable[[], Any]]:
    """The modes of torch.optim's class; of a rule that torch has not, ours by torch.compile."""
    make, options = case.torchs, case.options
    if make is None:
        beside = {"gradstep compile": lambda: case.ours(parameters(), engine="compile", **options)}
        return beside if compiles else {}
    found: dict[str, Callable[[], Any]] = {}
    if "torch foreach" not in case.left_out:
        found["torch foreach"] = lambda: make(parameters(), foreach=True, **options)
    if case.torch_fuses:
        found["torch fused"] = lambda: make(parameters(), fused=True, **options)
    if compiles:
        found["torch compiled"] = lambda: make(parameters(), **options)
    return found


def _moved(optimizer: Any) -> int:
    """Bytes that a step must read and write: weights and states both, gradients once."""
    found = 0
    for group in optimizer.param_groups:
        for p in group["params"]:
            states: Sequence[Any] = list(optimizer.state.get(p, {}).values())
            own = [t for t in states if isinstance(t, Tensor) and t.numel() > 1]
            found += 3 * p.nbytes + 2 * sum(t.nbytes for t in own)
    return found
