"""Where a watch's records go: memory, JSON lines, TensorBoard, a function.

A sink is opened, and tried as far as that is possible, before the first step: one that cannot be
written is an error then, and not in the middle of a training.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from gradstep.sight.histograms import Histogram
from gradstep.sight.records import Record, from_dict, read_records


class Sink(Protocol):
    """Takes records."""

    @property
    def name(self) -> str:
        """What it is, for messages."""

    def write(self, record: Record) -> None:
        """Take one record. Whatever it raises ends this sink, and not the training."""

    def close(self) -> None:
        """No more will come."""


class Memory:
    """Keeps the records in a list."""

    name = "memory"

    def __init__(self) -> None:
        self.records: list[Record] = []

    def write(self, record: Record) -> None:
        self.records.append(record)

    def close(self) -> None:
        pass


class JsonLines:
    """Appends a line a record to a file, and hands each to the system at once.

    So a crash of the process loses nothing. What an earlier crash of the machine left of a last
    line is taken away, so that the file stays readable. Folders on the way are made.

    Attributes:
        path: the file.
        last_step: of the last record that it holds, 0 if there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()  # the program may change its folder
        self.name = str(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b", buffering=0)
            try:
                self.last_step = self._find_end()
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise OSError(
                f"cannot write {path}: {error.strerror or error}. Choose another place for to=."
            ) from None

    def _find_end(self) -> int:
        """Cut off what is behind the last line end; return the last record's step."""
        size = self._file.seek(0, os.SEEK_END)
        tail, start = b"", size
        while start and tail.count(b"\n") < 2:
            length = min(start, 1 << 16)
            start -= length
            self._file.seek(start)
            tail = self._file.read(length) + tail
        *lines, torn = tail.split(b"\n")
        try:
            step = from_dict(json.loads(lines[-1])).step if lines else 0
            if not lines and not b'{"step": '.startswith(torn[:9]):
                raise ValueError
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ValueError(
                f"{self.name} holds something other than a watch's records, and is left as it is. "
                "Choose another name for to=."
            ) from None
        if torn:
            self._file.truncate(size - len(torn))
        return step

    def write(self, record: Record) -> None:
        line = record.as_line().encode("utf-8", "backslashreplace")
        while line:
            line = line[self._file.write(line) :]

    def close(self) -> None:
        self._file.close()

    def records(self) -> list[Record]:
        """All that the file holds, of earlier runs too."""
        return read_records(self.path)


class TensorBoard:
    """Writes scalars, and histograms if there are any, for TensorBoard.

    Args:
        writer: a ``SummaryWriter``, which stays open when the watch is closed; or a folder.
    """

    #: Field -> how TensorBoard groups it.
    TAGS = (
        "update_ratio",
        "weight_rms",
        "gradient_rms",
        "update_rms",
        "zero_gradients",
        "nonfinite_gradients",
    )

    def __init__(self, writer: Any) -> None:
        self._own = isinstance(writer, Path)
        self.name = f"the TensorBoard folder {writer}" if self._own else "TensorBoard"
        if self._own:
            writer = _summary_writer(writer)
        self._writer = writer

    def write(self, record: Record) -> None:
        add, step = self._writer.add_scalar, record.step
        add("step/gradient_norm", record.gradient_norm, step)
        add("step/step_seconds", record.step_seconds, step)
        if record.loop_seconds is not None:
            add("step/loop_seconds", record.loop_seconds, step)
        for number, lr in enumerate(record.lr):
            add("step/lr" if len(record.lr) == 1 else f"step/lr_{number}", lr, step)
        for name in record.names:
            own = record[name]
            for field in self.TAGS:
                add(f"{field}/{name}", own[field], step)
        for name, histograms in (record.histograms or {}).items():
            for what, histogram in histograms.items():
                self._add_histogram(f"{what}/{name}", histogram, step)

    def _add_histogram(self, tag: str, histogram: Histogram, step: int) -> None:
        counts, limit = histogram.counts, histogram.limit or 1.0
        width = 2 * limit / len(counts)
        middles = [-limit + width * (i + 0.5) for i in range(len(counts))]
        self._writer.add_histogram_raw(
            tag,
            min=-limit,
            max=limit,
            num=sum(counts),
            sum=sum(c * x for c, x in zip(counts, middles, strict=True)),
            sum_squares=sum(c * x * x for c, x in zip(counts, middles, strict=True)),
            bucket_limits=[x + width / 2 for x in middles],
            bucket_counts=list(counts),
            global_step=step,
        )

    def close(self) -> None:
        self._writer.flush()
        if self._own:
            self._writer.close()


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError(
            f"to={str(folder)!r} is a folder for TensorBoard, which is not installed: pip install "
            "tensorboard. A name that ends in .jsonl needs nothing."
        ) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
        return SummaryWriter(str(folder))
    except OSError as error:
        raise OSError(
            f"cannot write to the folder {folder}: {error.strerror or error}. Choose another place "
            "for to=."
        ) from None


class Function:
    """Calls a function with each record."""

    def __init__(self, function: Callable[[Record], object]) -> None:
        self._function = function
        self.name = getattr(function, "__qualname__", None) or repr(function)

    def write(self, record: Record) -> None:
        self._function(record)

    def close(self) -> None:
        pass


def open_sinks(to: Any) -> list[Sink]:
    """The sinks that ``to`` of :func:`gradstep.watch` names.

    Raises:
        TypeError, ValueError: nothing that records could go to.
        OSError: a file or folder that cannot be written.
        ImportError: a folder for TensorBoard, without TensorBoard.
    """
    if not isinstance(to, list | tuple):
        return [_open(to)]
    if not to:
        raise ValueError(
            "to=[] names no place for the records. Leave it out to keep them in memory."
        )
    opened: list[Sink] = []
    try:
        for each in to:
            opened.append(_open(each))
    except BaseException:
        for sink in opened:
            sink.close()
        raise
    return opened


def _open(to: Any) -> Sink:
    if to is None:
        return Memory()
    if isinstance(to, str | os.PathLike):
        text = os.fspath(to)
        if not isinstance(text, str) or not text:
            raise ValueError(f"to={to!r} is no name of a file or folder")
        path = Path(text)
        if path.suffix == ".jsonl":
            return JsonLines(path)
        if path.suffix and not path.is_dir():
            raise ValueError(
                f"to={text!r}: cannot tell what to write there. A name that ends in .jsonl is for "
                "JSON lines; a folder, without an ending, for TensorBoard."
            )
        return TensorBoard(path)
    if hasattr(to, "add_scalar") and hasattr(to, "flush"):
        return TensorBoard(to)
    if callable(to):
        return Function(to)
    raise TypeError(
        f"to= is a {type(to).__name__}. Expected None (memory), a name that ends in .jsonl, a "
        "folder or SummaryWriter for TensorBoard, a function of one record, or a list of these."
    )
