"""What happens on the screen while a run goes on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from gradstep.lab.report import number, percent
from gradstep.lab.training import Learner
from gradstep.sight.ink import writable
from gradstep.sight.language import say


def write(line: str = "") -> None:
    """Print a line. A reader that went away (``gradstep train | head``) is no reason to stop."""
    try:
        print(writable(line, sys.stdout), flush=True)
    except OSError:
        _discard_output()


def _discard_output() -> None:
    """Let all that is still printed, also by the interpreter at its exit, go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


class Progress:
    """Shows how far an epoch is. This one shows nothing: for pipes, files and ``--quiet``."""

    def begin_epoch(self, epoch: int, epochs: int, batches: int, names: Sequence[str]) -> None:
        """An epoch of so many batches begins."""

    def after_batch(self, learners: Sequence[Learner]) -> None:
        """A batch is done."""

    def end_epoch(self) -> None:
        """The epoch is over, or was broken off."""


class ProgressBar(Progress):
    """A bar for each optimizer, drawn anew ten times a second; needs rich and a terminal."""

    interval = 0.1

    def __init__(self) -> None:
        self._bars: Any = None
        self._tasks: list[Any] = []
        self._next = 0.0
        self._batch = 0

    def begin_epoch(self, epoch: int, epochs: int, batches: int, names: Sequence[str]) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[state]}"),
            transient=True,  # the line of the epoch takes its place
            auto_refresh=False,
        )
        width = max(map(len, names))
        start = say("epoch bar", epoch=epoch, epochs=epochs)
        self._tasks = [
            self._bars.add_task(f"{start}  {name:<{width}}", total=batches, state="")
            for name in names
        ]
        self._batch, self._next = 0, 0.0
        self._start()

    def after_batch(self, learners: Sequence[Learner]) -> None:
        self._batch += 1
        now = perf_counter()
        if now < self._next:
            return
        self._next = now + self.interval
        for task, learner in zip(self._tasks, learners, strict=True):
            self._bars.update(task, completed=self._batch, state=_state(learner))
        self._refresh()

    def end_epoch(self) -> None:
        if self._bars is not None:
            self._stop()
            self._bars = None

    def _start(self) -> None:
        self._bars.start()

    def _refresh(self) -> None:
        self._bars.refresh()

    def _stop(self) -> None:
        self._bars.stop()


def _state(learner: Learner) -> str:
    tally = learner.tally
    return say(
        "bar",
        loss=number(tally.loss),
        right=percent(tally.accuracy),
        speed=tally.images_per_second,
        share=percent(tally.step_share),
    )


def choose_progress(quiet: bool, bar: Callable[[], Progress] | None = None) -> Progress:
    """A bar where one can be drawn, nothing elsewhere.

    Args:
        quiet: nothing is wanted.
        bar: makes another view in place of the plain bar.
    """
    if quiet or sys.stdout is None or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return Progress()
    try:
        import rich  # noqa: F401
    except ImportError:
        return Progress()
    return ProgressBar() if bar is None else bar()
