"""``gradstep doctor --device cuda``: every rule on a device, held against the CPU's bits.

Each makes three steps on both, from the same weights and gradients. Where the device's own kernel
refuses a rule, the table says so, and why stands below it; nothing is compared then, since torch's
operations on a device round as they please.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import gradstep
from gradstep.backends.cuda.self_check import unlike
from gradstep.backends.update import in_pairs
from gradstep.program.formats import stored_as
from gradstep.rule.definition import Rule
from gradstep.sight.catalogue import find_rule, is_stage, rule_names

#: What weights and states are stored as: the title of a column -> the weights' dtype, and the
#: format of the states, None for that of the weights.
COLUMNS: dict[str, tuple[torch.dtype, str | None]] = {
    "float32": (torch.float32, None),
    "float64": (torch.float64, None),
    "bfloat16": (torch.bfloat16, None),
    "float16": (torch.float16, None),
    "complex64": (torch.complex64, None),
    "bfloat16 states": (torch.float32, "bfloat16"),
    "8-bit states": (torch.float32, "int8"),
}

#: Of the weights: one number, a ragged end, several of the kernel's pieces, rows and columns.
SHAPES: tuple[tuple[int, ...], ...] = ((), (1027,), (20_001,), (37, 129))

_STEPS = 3


@dataclass
class Cell:
    """What came of a rule in one column.

    Attributes:
        engine: what made its steps on the device; "" where none was made.
        different: how many numbers have other bits than on the CPU.
        total: of how many.
        reason: why it was not the device's own kernel, or why no step was made.
    """

    engine: str = ""
    different: int = 0
    total: int = 0
    reason: str = ""

    def text(self, engine: str) -> str:
        """It in the table."""
        if not self.engine:
            return "-"
        if self.engine != engine:
            return self.engine
        return "equal" if not self.different else f"{self.different:,}/{self.total:,}"


@dataclass
class Report:
    """What came of all rules.

    Attributes:
        engine: whose kernels were looked at.
        columns: of the table.
        cells: rule -> column -> what came of it.
    """

    engine: str
    columns: Sequence[str]
    cells: dict[str, dict[str, Cell]] = field(default_factory=dict)

    def all(self) -> list[Cell]:
        """Every cell."""
        return [cell for row in self.cells.values() for cell in row.values()]

    def differs(self) -> bool:
        """Whether a kernel that was used has other bits than the CPU's."""
        return any(cell.different for cell in self.all())

    def lines(self) -> list[str]:
        """The table, what it comes to, and why some rules are left to other engines."""
        titles = ["rule", *self.columns]
        rows = [
            [name, *(row[column].text(self.engine) for column in self.columns)]
            for name, row in self.cells.items()
        ]
        widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
        lines = [
            "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
            for row in (titles, *rows)
        ]
        own = [cell for cell in self.all() if cell.engine == self.engine]
        numbers = sum(cell.total for cell in own)
        wrong = sum(cell.different for cell in own)
        lines += [
            "",
            f"{self.engine}: {len(own)} of {len(self.all())} combinations, {numbers:,} numbers, "
            f"{wrong:,} with other bits than the CPU's",
        ]
        reasons: dict[str, list[str]] = {}
        for name, row in self.cells.items():
            for cell in row.values():
                if cell.reason and name not in reasons.setdefault(cell.reason, []):
                    reasons[cell.reason].append(name)
        for reason, names in reasons.items():
            shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
            lines.append(f"not by {self.engine}: {reason} ({shown})")
        return lines


def checked(
    names: Sequence[str], device: torch.device, engine: str = "cuda", columns: Sequence[str] = ()
) -> Iterator[Report]:
    """Check rules one by one; the report so far after each.

    Args:
        names: of rules; none for all but the stages of chains.
        device: the device.
        engine: whose kernels are looked at.
        columns: of the table; none for all.

    Raises:
        UnknownName: no such rule.
    """
    rules = [find_rule(name) for name in names]
    if not names:
        rules = [r for r in map(find_rule, rule_names()) if not is_stage(r)]
    report = Report(engine, columns or tuple(COLUMNS))
    for rule in rules:
        row = report.cells[rule.name] = {}
        for column in report.columns:
            row[column] = _cell(rule, *COLUMNS[column], device, engine)
        yield report


def _cell(
    rule: Rule, dtype: torch.dtype, stored: str | None, device: torch.device, engine: str
) -> Cell:
    if stored is not None:
        likes = [
            name
            for name, state in rule.states.items()
            if state.shape == "weight"
            and state.start != "number"
            and state.exists(rule.hyperparameters)
        ]
        if not likes:
            return Cell()
        rule = stored_as(rule, **dict.fromkeys(likes, stored))
    try:
        try:
            right, _ = _trained(rule, SHAPES, dtype, torch.device("cpu"), "fused")
            shapes = SHAPES
        except ValueError:  # it takes matrices alone
            shapes = tuple(shape for shape in SHAPES if len(shape) > 1)
            right, _ = _trained(rule, shapes, dtype, torch.device("cpu"), "fused")
        with _logged() as said:
            found, engines = _trained(rule, shapes, dtype, device, engine)
    except Exception as error:  # it takes no such weights, or no such gradients
        return Cell(reason=str(error).partition(". ")[0].partition(", and ")[0])
    other = next((name for name in engines if name != engine), None)
    if other is not None:
        reason = said[0].partition(": ")[2] if said else ""
        return Cell(other, reason=reason)
    different = sum(int(unlike(a, b).sum()) for a, b in zip(right, found, strict=True))
    return Cell(engine, different, sum(a.numel() for a in right))


def _trained(
    rule: Rule,
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
    device: torch.device,
    engine: str,
) -> tuple[list[Tensor], set[str]]:
    """Weights and states after some steps, on the CPU; and what made the steps."""
    random = torch.Generator().manual_seed(0)
    wide = torch.complex128 if dtype.is_complex else torch.float64

    def normal(shape: Sequence[int]) -> Tensor:
        return torch.randn(shape, generator=random, dtype=wide)

    params = [torch.nn.Parameter(normal(shape).to(dtype).to(device)) for shape in shapes]
    optimizer = gradstep.Optimizer(params, rule, lr=0.01, engine=engine)
    for _ in range(_STEPS):
        for p in params:
            size = 10.0 ** (4 * torch.rand(p.shape, generator=random, dtype=torch.float64) - 3)
            p.grad = (normal(p.shape) * size).to(dtype).to(device)
        optimizer.step(lambda: torch.tensor(0.5))
    tensors: list[Any] = [*params]
    for p in params:
        tensors += [t for t in optimizer.state.get(p, {}).values() if isinstance(t, Tensor)]
    return [in_pairs(t.detach()).cpu() for t in tensors], set(optimizer.engines_used().values())


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@contextmanager
def _logged() -> Iterator[list[str]]:
    """What gradstep logs meanwhile, which goes nowhere else."""
    log, handler = logging.getLogger("gradstep"), _Lines()
    spreads, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        yield handler.said
    finally:
        log.removeHandler(handler)
        log.propagate = spreads
