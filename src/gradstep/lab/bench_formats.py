"""What states and weights in fewer bits cost and save: ``gradstep bench --formats``.

AdamW with each format, in the same rounds as AdamW in float32: the time of a step, bytes a weight,
and how far a state comes back from its format, of states as a training has them.
"""

from __future__ import annotations

import importlib
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import gradstep
from gradstep.lab.bench_models import Size
from gradstep.lab.bench_peers import imported
from gradstep.optimizer.weight_spec import state_specs
from gradstep.program.formats import formats
from gradstep.program.weight_formats import WEIGHT_FORMATS

#: Makes an optimizer of parameters.
Maker = Callable[[Sequence[Tensor]], Any]


@dataclass(frozen=True)
class FormatRow:
    """One contender.

    Attributes:
        name: of the format.
        dtype: of the weights.
        seconds: the median step.
        ratio: to the step of AdamW in float32.
        bytes_a_weight: of weight and states, without the gradient; 0 for another package's.
        error: of the two states, root mean square of what is lost, as a share of the number; None
            where nothing is, or it is another package's.
    """

    name: str
    dtype: str
    seconds: float
    ratio: float
    bytes_a_weight: float
    error: tuple[float, float] | None


def bitsandbytes_makers(library: Any) -> dict[str, Maker]:
    """Its 8-bit AdamW."""
    return {"AdamW8bit": lambda params: library.optim.AdamW8bit(params, lr=1e-3)}


def torchao_makers(library: Any) -> dict[str, Maker]:
    """Its AdamW of 8 and 4 bits."""
    optim = importlib.import_module("torchao.optim")

    return {
        "AdamW8bit": lambda params: optim.AdamW8bit(params, lr=1e-3),
        "AdamWFp8": lambda params: optim.AdamWFp8(params, lr=1e-3),
        "AdamW4bit": lambda params: optim.AdamW4bit(params, lr=1e-3),
    }


def deepspeed_makers(library: Any) -> dict[str, Maker]:
    """Its AdamW for CPUs, which it compiles on the user's machine."""
    adam = importlib.import_module("deepspeed.ops.adam")
    return {"DeepSpeedCPUAdam": lambda params: adam.DeepSpeedCPUAdam(params, lr=1e-3)}


#: Peer -> the module that has its optimizers, what it brings, and the dtypes of weights to time.
FORMAT_PEERS: dict[str, tuple[str, Callable[[Any], dict[str, Maker]], tuple[torch.dtype, ...]]] = {
    "bitsandbytes": ("bitsandbytes", bitsandbytes_makers, (torch.float32,)),
    "torchao": ("torchao", torchao_makers, (torch.float32,)),
    "deepspeed": ("deepspeed", deepspeed_makers, (torch.float32, torch.bfloat16)),
}


def _contenders(size: Size, peers: Sequence[str]) -> Iterator[tuple[str, torch.dtype, Maker, bool]]:
    """Name, dtype of the weights, how it is made, and whether it is ours."""

    def ours(**storage: Any) -> Maker:
        return lambda params: gradstep.AdamW(list(params), lr=1e-3, **storage)

    for name in formats():
        stored = {} if name == "float32" else {"state_dtype": name}
        if name != "float16":  # which squares of gradients leave
            yield name, torch.float32, ours(**stored), True
    yield "torch fused", torch.float32, lambda p: torch.optim.AdamW(list(p), fused=True), False
    for way in ("nearest", *WEIGHT_FORMATS):
        yield way, torch.bfloat16, ours(low_precision=way), True
    both = ours(low_precision="remainder", state_dtype="int8")
    yield "remainder, int8", torch.bfloat16, both, True
    for peer in peers:
        module, makers, dtypes = FORMAT_PEERS[peer]
        for name, make in makers(imported(module, peer, (peer,))).items():
            for dtype in dtypes:
                yield f"{peer} {name}", dtype, make, False


def measure_formats(size: Size, rounds: int, seed: int, peers: Sequence[str]) -> list[FormatRow]:
    """Time a step of each contender, in rounds in which each stands once, in any order.

    Args:
        size: the weights.
        rounds: timed ones; two more go before them.
        seed: of the order within the rounds.
        peers: of :data:`FORMAT_PEERS`.
    """
    made: dict[tuple[str, torch.dtype], Any] = {}
    is_ours: dict[tuple[str, torch.dtype], bool] = {}
    for name, dtype, make, own in _contenders(size, peers):
        params = [torch.nn.Parameter(w) for w in size.weights(dtype)]
        for p, g in zip(params, size.gradients(dtype), strict=True):
            p.grad = g
        made[name, dtype] = make(params)
        is_ours[name, dtype] = own
    times: dict[tuple[str, torch.dtype], list[float]] = {key: [] for key in made}
    order = random.Random(seed)
    keys = list(made)
    for _ in range(2 + rounds):
        order.shuffle(keys)
        for key in keys:
            start = time.perf_counter()
            made[key].step()
            times[key].append(time.perf_counter() - start)
    seconds = {key: statistics.median(found[2:]) for key, found in times.items()}
    base = seconds["float32", torch.float32]
    return [
        FormatRow(
            name,
            str(dtype).removeprefix("torch."),
            seconds[name, dtype],
            seconds[name, dtype] / base,
            _bytes_a_weight(optimizer) if is_ours[name, dtype] else 0.0,
            _errors(name) if is_ours[name, dtype] and dtype == torch.float32 else None,
        )
        for (name, dtype), optimizer in made.items()
    ]


def _bytes_a_weight(optimizer: gradstep.Optimizer) -> float:
    account = gradstep.memory(optimizer)
    return account.bytes("weights", "states") / account.weights


def _errors(name: str) -> tuple[float, float] | None:
    """Of both moments, as they are after some steps on gradients of many sizes."""
    if name == "float32":
        return None
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(256, 1024))
    exact = gradstep.Adam([weight], lr=1e-3)
    sizes = 10 ** torch.randn(256, 1, generator=generator)
    for _ in range(30):
        weight.grad = sizes * torch.randn(256, 1024, generator=generator)
        exact.step()
    rule = gradstep.stored_as(gradstep.adam(), exp_avg=name, exp_avg_sq=name)
    found = []
    for state in ("exp_avg", "exp_avg_sq"):
        value, spec = exact.state[weight][state], state_specs(rule)[state]
        back = spec.read(spec.encoded(value, weight), torch.float32, weight.shape)
        found.append(float(((back - value) / value).square().mean().sqrt()))
    return found[0], found[1]


def lines(rows: Sequence[FormatRow]) -> list[str]:
    """The rows as a table."""
    header = ("", "weights", "a step", "to float32", "bytes a weight", "lost of m", "lost of v")
    table: list[tuple[str, ...]] = [header]
    for row in rows:
        lost = ("", "") if row.error is None else tuple(f"{error:.2%}" for error in row.error)
        held = f"{row.bytes_a_weight:.2f}" if row.bytes_a_weight else ""
        table.append(
            (row.name, row.dtype, f"{1e3 * row.seconds:.1f} ms", f"{row.ratio:.2f}", held, *lost)
        )
    widths = [max(len(line[i]) for line in table) for i in range(len(header))]
    return [
        "  ".join(
            text.ljust(width) if i < 2 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]
