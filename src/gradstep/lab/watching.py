"""``gradstep train --watch``: a watch for each learner, and what it shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradstep.lab.dataset import Dataset
from gradstep.lab.errors import DiskError, SettingsError
from gradstep.lab.plots import png
from gradstep.lab.progress import ProgressBar
from gradstep.lab.run import Run
from gradstep.lab.training import batch_count
from gradstep.sight.language import columns, say, to_left, to_right
from gradstep.sight.records import Record
from gradstep.sight.watch import Watch

EVERY = 10

#: What the bar of a ratio spans, and how many letters it has.
_SPAN = (1e-6, 1e-1)
_BAR = 20


@dataclass(frozen=True)
class Watching:
    """What to watch of a run.

    Attributes:
        every: record each step whose number this divides.
        to: where the records go, None for memory; a run of several optimizers has a file for each,
            with its name before the ending.
    """

    every: int = EVERY
    to: Path | None = None

    @contextmanager
    def of(self, run: Run, data: Dataset) -> Iterator[dict[str, Watch]]:
        """A watch for each learner of a run, by its name.

        Raises:
            DiskError: a file that cannot be written.
            SettingsError: a place that records cannot go to.
        """
        watches: dict[str, Watch] = {}
        learners = run.training.learners
        start = run.training.epoch * batch_count(data, run.settings.batch_size)
        try:
            for learner in learners:
                to = self.to
                if to is not None and len(learners) > 1:
                    to = to.with_name(f"{to.stem}-{learner.name}{to.suffix}")
                try:
                    watches[learner.name] = Watch(
                        learner.model, learner.optimizer, self.every, to, start=start
                    )
                except (ImportError, ValueError) as error:
                    raise SettingsError(f"argument --watch-to: {error}") from None
                except OSError as error:
                    raise DiskError(f"argument --watch-to: {error}") from None
            yield watches
        finally:
            for watch in watches.values():
                watch.close()


def draw(run: Run, watches: dict[str, Watch]) -> list[str]:
    """Write a picture of each watch to the folder of the run; return their names."""
    from gradstep.sight.watch_pictures import overview, titled

    names = []
    for name, watch in watches.items():
        if watch.latest is None:
            continue
        try:
            records = watch.records
        except (OSError, RuntimeError, ValueError):
            continue  # they went to TensorBoard, or their file is gone
        names.append("watch.png" if len(watches) == 1 else f"watch-{name}.png")
        run.keep_picture(names[-1], png(titled(overview(records), name)))
    return names


def table(records: dict[str, Record]) -> list[list[str]]:
    """The records as rows of text, a row a parameter, the heading first.

    One optimizer has all columns, several have ratio and gradient each.
    """
    first = next(iter(records.values()))
    if len(records) == 1:
        heads = ("ratio", "", "update", "gradient", "weight", "zeros")
        heading = ["", *(say(f"watch {head}") if head else "" for head in heads)]
        rows = [[name, *_columns(first[name])] for name in first.names]
        return [heading, *rows]
    heading = [""]
    for name in records:
        heading += [f"{name}: {say('watch ratio')}", say("watch gradient")]
    rows = []
    for name in first.names:
        row = [name]
        for record in records.values():
            own = record[name] if name in record.names else None
            row += (
                ["", ""]
                if own is None
                else [_short(own["update_ratio"]), _short(own["gradient_rms"])]
            )
        rows.append(row)
    return [heading, *rows]


def lines(records: dict[str, Record]) -> list[str]:
    """The same as lines of text, with the step above them."""
    first = next(iter(records.values()))
    rows = table(records)
    widths = [max(map(columns, column)) for column in zip(*rows, strict=True)]
    text = [
        "  ".join(
            to_left(cell, width) if i in _left(len(records)) else to_right(cell, width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return [_title(first, len(records)), *text]


def _title(record: Record, count: int) -> str:
    norm = say("watch norm", norm=_short(record.gradient_norm)) if count == 1 else ""
    return say("watch title", step=record.step, norm=norm)


def _left(count: int) -> tuple[int, ...]:
    return (0, 2) if count == 1 else (0,)


def _columns(own: dict[str, float]) -> list[str]:
    return [
        _short(own["update_ratio"]),
        _bar(own["update_ratio"]),
        _short(own["update_rms"]),
        _short(own["gradient_rms"]),
        _short(own["weight_rms"]),
        f"{100 * own['zero_gradients']:.0f} %",
    ]


def _short(value: float) -> str:
    return f"{value:.1e}" if math.isfinite(value) else say("watch not finite")


def _bar(ratio: float) -> str:
    """A ratio as a bar on a logarithmic scale."""
    if not math.isfinite(ratio) or ratio <= 0:
        return ""
    low, high = map(math.log, _SPAN)
    share = (math.log(ratio) - low) / (high - low)
    return "━" * max(1, min(_BAR, round(share * _BAR)))


class WatchView(ProgressBar):
    """The bars of the epoch, and below them what the last recorded step did to each parameter."""

    def __init__(self, watches: dict[str, Watch]) -> None:
        super().__init__()
        self._watches = watches
        self._live: Any = None

    def _start(self) -> None:
        from rich.live import Live

        self._live = Live(
            get_renderable=self._drawn,
            transient=True,
            auto_refresh=False,
            console=self._bars.console,
        )
        self._live.start(refresh=True)

    def _refresh(self) -> None:
        self._live.refresh()

    def _stop(self) -> None:
        self._live.stop()

    def _drawn(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        latest = {n: w.latest for n, w in self._watches.items() if w.latest is not None}
        if len(latest) < len(self._watches):
            return self._bars.get_renderable()
        heading, *rows = table(latest)
        drawn = Table(box=None, pad_edge=False, header_style="dim")
        for number, text in enumerate(heading):
            left = number in _left(len(latest))
            drawn.add_column(text, justify="left" if left else "right", no_wrap=True)
        for row in rows:
            drawn.add_row(*row)
        title = Text(_title(next(iter(latest.values())), len(latest)), style="dim")
        return Group(self._bars.get_renderable(), Text(), title, drawn)


def kept(watches: dict[str, Watch]) -> dict[str, Record]:
    """The last record of each watch that has one."""
    return {name: watch.latest for name, watch in watches.items() if watch.latest is not None}


def said(watches: dict[str, Watch]) -> Sequence[str]:
    """What stands below the results of a run: the last recorded step."""
    records = kept(watches)
    return lines(records) if records else ()
