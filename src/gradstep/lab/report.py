"""What a person reads: a line an epoch, a table at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradstep.lab.optimizers import choice
from gradstep.lab.training import Learner, Record


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the cells in columns: the first to the left, the others to the right."""
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "   ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "─" * max(map(len, lines)))
    return lines


def epoch_header(names: Sequence[str]) -> list[str]:
    """What stands above the lines of :func:`epoch_line`; nothing for a single optimizer."""
    if len(names) == 1:
        return []
    return [
        "epoch    " + "".join(f"{name:>17}" for name in names),
        "         " + f"{'loss':>9}{'test':>8}" * len(names),
    ]


def epoch_line(records: Sequence[Record], epochs: int) -> str:
    """One line for an epoch; with several optimizers, loss and test accuracy of each."""
    width = len(str(epochs))
    start = f"{records[0]['epoch']:>{width}}/{epochs}"
    if len(records) > 1:
        return f"{start:<9}" + "".join(
            f"{number(r['train_loss']):>9}{percent(r['test_accuracy']):>8}" for r in records
        )
    (record,) = records
    return (
        f"epoch {start}   "
        f"train loss {number(record['train_loss'])}   "
        f"train accuracy {percent(record['train_accuracy'])}   "
        f"test accuracy {percent(record['test_accuracy'])}   "
        f"{record['images_per_second']:,.0f} images/s   "
        f"step {percent(record['step_share'])}"
    )


def final_table(records: Sequence[Record], lrs: dict[str, float]) -> list[str]:
    """The last epoch of each optimizer, and the time that all its epochs took.

    ``lrs`` has each optimizer's learning rate in the first epoch. "step" is one call of
    ``optimizer.step()`` in microseconds, and its share of the time of training.
    """
    rows = []
    for name, lr in lrs.items():
        own = [record for record in records if record["optimizer"] == name]
        seconds = sum(record["seconds"] for record in own)
        step_seconds = sum(record["step_seconds"] for record in own)
        steps = sum(record["steps"] for record in own)
        last = own[-1]
        rows.append(
            [
                name,
                f"{lr:g}",
                number(last["train_loss"]),
                percent(last["test_accuracy"], 2),
                f"{seconds:.1f} s",
                f"{step_seconds / steps * 1e6:.0f} µs",
                percent(step_seconds / seconds),
            ]
        )
    header = ["optimizer", "lr", "train loss", "test accuracy", "time", "a step", "share of time"]
    return table(header, rows)


def diverged(learner: Learner, records: Sequence[Record]) -> str | None:
    """A warning if one of the losses that the learner has in ``records`` is no number any more."""
    losses = [r["train_loss"] for r in records if r["optimizer"] == learner.name]
    if all(map(math.isfinite, losses)):
        return None
    default = choice(learner.name).lr
    advice = f"try --lr {default:g}" if learner.lr > default else "try a smaller --lr"
    return (
        f"the loss of {learner.name} is no longer a finite number: "
        f"a learning rate of {learner.lr:g} is too large; {advice}"
    )


def number(value: float) -> str:
    """A loss with four digits after the point."""
    return f"{value:.4f}" if math.isfinite(value) and value < 10000 else f"{value:.2g}"


def percent(share: float, digits: int = 1) -> str:
    """A share from 0 to 1 as per cent."""
    return f"{share * 100:.{digits}f} %"
