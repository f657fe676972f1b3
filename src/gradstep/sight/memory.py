"""What training takes of memory: weights, gradients and states, measured and predicted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradstep import rules
from gradstep.backends.update import has_shape, is_matrix
from gradstep.compose.wrapper import rules_inside
from gradstep.optimizer.optimizer import planner_of
from gradstep.optimizer.weight_spec import WeightSpec, state_specs
from gradstep.program.format import Part
from gradstep.program.formats import with_storage
from gradstep.program.shards import local
from gradstep.rule.definition import Rule


@dataclass(frozen=True)
class MemoryRow:
    """What tensors of one kind take.

    Attributes:
        kind: ``"weights"``, ``"gradients"`` or ``"states"``.
        name: of a state its name, of its scales too; else the kind again.
        dtypes: of the tensors, as torch spells them, without ``torch.``.
        measured: bytes of the tensors that are there by now.
        predicted: bytes once every weight has had a gradient; None where nobody can tell: of
            optimizers from outside the package.
    """

    kind: str
    name: str
    dtypes: tuple[str, ...]
    measured: int
    predicted: int | None


@dataclass(frozen=True)
class Memory:
    """The account of an optimizer's memory; ``print()`` shows it as a table.

    Attributes:
        weights: how many numbers the optimizer updates.
        rows: what each kind of tensor takes.
    """

    weights: int
    rows: tuple[MemoryRow, ...]

    def bytes(self, *kinds: str) -> int:
        """What tensors of these kinds take, of all by default, as measured."""
        return sum(row.measured for row in self.rows if row.kind in kinds or not kinds)

    def predicted(self, *kinds: str) -> int:
        """The same as predicted; what cannot be predicted counts as it was measured."""
        rows = [row for row in self.rows if row.kind in kinds or not kinds]
        return sum(row.measured if row.predicted is None else row.predicted for row in rows)

    def __str__(self) -> str:
        header = ("", "stored as", "measured", "bytes a weight", "predicted", "bytes a weight")
        lines: list[tuple[str, ...]] = [header]
        for row in self.rows:
            named = row.kind if row.name == row.kind else f"  {row.name}"
            lines.append(self._line(named, ", ".join(row.dtypes), row.measured, row.predicted))
        lines.append(self._line("together", "", self.bytes(), self.predicted()))
        widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
        found = [
            "  ".join(
                text.ljust(width) if i < 2 else text.rjust(width)
                for i, (text, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([f"{self.weights:,} weights", *found])

    def _line(self, *given: Any) -> tuple[str, ...]:
        name, dtypes, measured, predicted = given
        both = []
        for count in (measured, predicted):
            share = "" if count is None or not self.weights else f"{count / self.weights:.2f}"
            both += ["?" if count is None else spoken_bytes(count), share]
        return (name, dtypes, *both)


def spoken_bytes(count: int) -> str:
    """``1.5 MiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if unit != "B" else f"{count} B"
        size /= 1024
    return f"{size:.3g} GiB" if size < 1000 else f"{size:,.0f} GiB"


def memory(optimizer: torch.optim.Optimizer) -> Memory:
    """What an optimizer's weights, their gradients and its states take of memory.

    ::

        print(gradstep.memory(optimizer))

    Args:
        optimizer: of this package or of torch; a partition or a wrapper too. Before the first step
            states are predicted alone. Of DTensors this process's part counts.

    Raises:
        TypeError: no optimizer.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"memory() takes an optimizer; got a {type(optimizer).__name__}. Call it as "
            "gradstep.memory(gradstep.AdamW(model.parameters()))"
        )
    params = list(_params(optimizer))
    rows = [
        _row("weights", "weights", params, sum(map(_bytes, params))),
        _row(
            "gradients",
            "gradients",
            [p.grad for p in params if p.grad is not None],
            sum(_bytes(p) for p in params if p.requires_grad),
        ),
    ]
    held: dict[str, list[Tensor]] = {}
    for p in params:
        entry = optimizer.state.get(p, {})
        for name, value in entry.items() if isinstance(entry, Mapping) else ():
            if isinstance(value, Tensor) and not any(value is t for t in held.get(name, [])[-1:]):
                held.setdefault(name, []).append(value)
    predicted = _predicted(optimizer)
    for name in dict.fromkeys([*(predicted or {}), *held]):
        parts = None if predicted is None else predicted.get(name, [])
        count = None if parts is None else sum(part.bytes() for part in parts)
        row = _row("states", name, held.get(name, []), count)
        if not row.dtypes and parts:
            names = dict.fromkeys(str(part.dtype).removeprefix("torch.") for part in parts)
            row = MemoryRow(row.kind, name, tuple(names), row.measured, count)
        rows.append(row)
    return Memory(sum(local(p).numel() for p in params), tuple(rows))


def _params(optimizer: torch.optim.Optimizer) -> Iterator[Any]:
    for group in optimizer.param_groups:
        yield from (p for p in group["params"] if has_shape(p))


def _bytes(tensor: Any) -> int:
    own = local(tensor)
    if own.layout is torch.sparse_coo:
        return int(own._values().nbytes + own._indices().nbytes)
    return int(own.nbytes)


def _row(kind: str, name: str, tensors: Iterable[Any], predicted: int | None) -> MemoryRow:
    tensors = list(tensors)
    # One number for all parameters is one tensor.
    once = {id(local(tensor)): tensor for tensor in tensors}.values()
    dtypes = dict.fromkeys(str(tensor.dtype).removeprefix("torch.") for tensor in once)
    return MemoryRow(kind, name, tuple(dtypes), sum(map(_bytes, once)), predicted)


def _predicted(optimizer: torch.optim.Optimizer) -> dict[str, list[Part]] | None:
    """Name -> the tensors that states will be; None for an optimizer from outside the package."""
    try:
        inside = rules_inside(optimizer)
    except TypeError:
        return None
    found: dict[str, list[Part]] = {}
    for each in inside:
        planner = planner_of(each)
        rule = planner.rule
        shared = {name for name, state in rule.states.items() if state.shared}
        for group in each.param_groups:
            values = planner.reader.numbers(group)
            for p in group["params"]:
                if p.requires_grad and has_shape(p):
                    for part in parts_of(rule, local(p), values):
                        if part.name not in shared or part.name not in found:
                            found.setdefault(part.name, []).append(part)
    return found


def parts_of(rule: Rule, weight: Tensor, values: Mapping[str, Any]) -> list[Part]:
    """The tensors that a rule keeps for a weight.

    Args:
        rule: the rule.
        weight: or a tensor of its shape and dtype without memory.
        values: every hyperparameter, by name.
    """
    matrix = is_matrix(weight)
    found = [
        part
        for spec in state_specs(rule).values()
        if isinstance(spec, WeightSpec) or spec.state.exists(values, matrix)
        for part in spec.parts(weight, values)
    ]
    own = [n for n, s in rule.states.items() if s.start == "number" and s.exists(values, matrix)]
    found += [
        Part(name, (), torch.float64 if rule.states[name].shared else torch.float32) for name in own
    ]
    return found + [Part("step", (), torch.float32)] * rule.counts_steps


#: What ``gradstep rules --memory`` has columns for: dtype of the weight, ``state_dtype=`` and
#: ``low_precision=``.
SETTINGS: dict[str, tuple[torch.dtype, str | None, str]] = {
    "float32": (torch.float32, None, "nearest"),
    "+ bfloat16": (torch.float32, "bfloat16", "nearest"),
    "+ int8": (torch.float32, "int8", "nearest"),
    "+ int4": (torch.float32, "int4", "nearest"),
    "bfloat16": (torch.bfloat16, None, "nearest"),
    "+ remainder": (torch.bfloat16, None, "remainder"),
    "+ remainder, int8": (torch.bfloat16, "int8", "remainder"),
}


def memory_table(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Of each rule a row: its name, and the bytes a weight in each setting of :data:`SETTINGS`."""
    rows = [("rule", *SETTINGS)]
    for name in names:
        rule = rules.load()[name]
        rows.append((name, *(f"{bytes_a_weight(rule, setting):.2f}" for setting in SETTINGS)))
    return rows


def bytes_a_weight(rule: Rule, setting: str, shape: tuple[int, ...] = (4096, 4096)) -> float:
    """Bytes a weight of the weight itself and all that is kept for it, without the gradient.

    Args:
        rule: with its default hyperparameters.
        setting: a key of :data:`SETTINGS`.
        shape: of the weight.
    """
    dtype, state_dtype, way = SETTINGS[setting]
    weight = torch.empty(shape, dtype=dtype, device="meta")
    own = with_storage(rule, state_dtype, way)
    parts = parts_of(own, weight, {**own.hyperparameters, "lr": own.lr})
    return (weight.nbytes + sum(part.bytes() for part in parts)) / weight.numel()
