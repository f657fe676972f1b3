"""What a person reads: a line an epoch, a table at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradstep.lab.optimizers import choice
from gradstep.lab.training import Learner, Record
from gradstep.sight.language import columns, say, to_left, to_right


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the cells in columns: the first to the left, the others to the right."""
    cells = [list(header), *map(list, rows)]
    widths = [max(columns(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "   ".join(
            to_left(cell, width) if column == 0 else to_right(cell, width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "─" * max(map(columns, lines)))
    return lines


def epoch_header(names: Sequence[str]) -> list[str]:
    """What stands above the lines of :func:`epoch_line`; nothing for a single optimizer."""
    if len(names) == 1:
        return []
    return [
        to_left(say("epoch"), 9) + "".join(f"{name:>17}" for name in names),
        " " * 9 + (to_right(say("loss"), 9) + to_right(say("test"), 8)) * len(names),
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
    return say(
        "epoch line",
        start=start,
        loss=number(record["train_loss"]),
        train=percent(record["train_accuracy"]),
        test=percent(record["test_accuracy"]),
        speed=record["images_per_second"],
        share=percent(record["step_share"]),
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
    heads = ("optimizer", "lr", "loss", "accuracy", "time", "step", "share")
    return table([say(f"table {head}") for head in heads], rows)


def diverged(learner: Learner, records: Sequence[Record]) -> str | None:
    """A warning if one of the losses that the learner has in ``records`` is no number any more."""
    losses = [r["train_loss"] for r in records if r["optimizer"] == learner.name]
    if all(map(math.isfinite, losses)):
        return None
    default = choice(learner.name).lr
    advice = say("try lr", lr=default) if learner.lr > default else say("try smaller")
    return say("diverged", name=learner.name, lr=learner.lr, advice=advice)


def number(value: float) -> str:
    """A loss with four digits after the point."""
    return f"{value:.4f}" if math.isfinite(value) and value < 10000 else f"{value:.2g}"


def percent(share: float, digits: int = 1) -> str:
    """A share from 0 to 1 as per cent."""
    return f"{share * 100:.{digits}f} %"
