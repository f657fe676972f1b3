"""What a watch has recorded: of one step, of many, as JSON lines and as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy

from gradstep.sight.histograms import Histogram
from gradstep.sight.statistics import COUNTS, FIELDS


@dataclass(frozen=True, eq=False)
class Record:
    """One step, parameter by parameter.

    ``record["fc1.weight"]["update_ratio"]`` is one number;
    :data:`gradstep.sight.statistics.FIELDS` says which there are and what each means.

    Attributes:
        step: which step, 1 for the first.
        lr: the learning rate of each parameter group.
        gradient_norm: the Euclidean norm of all gradients together.
        step_seconds: how long ``optimizer.step()`` took.
        loop_seconds: from one step to the next, the mean since the last record; None in the first.
            The watch's own time is not in it.
        names: of the parameters that had a gradient.
        values: float64, a row a parameter, a column a field.
        histograms: name -> those of ``"weight"`` and ``"gradient"``, if they were asked for.
    """

    step: int
    lr: tuple[float, ...]
    gradient_norm: float
    step_seconds: float
    loop_seconds: float | None
    names: tuple[str, ...]
    values: Any
    histograms: Mapping[str, Mapping[str, Histogram]] | None = None

    def __getitem__(self, name: str) -> dict[str, float]:
        try:
            row = self.values[self.names.index(name)].tolist()
        except ValueError:
            raise KeyError(
                f"step {self.step} has no record of {name!r}; it has {', '.join(self.names)}"
            ) from None
        return _fields(row)

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain dicts, lists and numbers."""
        content: dict[str, Any] = {
            "step": self.step,
            "lr": list(self.lr),
            "gradient_norm": self.gradient_norm,
            "step_seconds": self.step_seconds,
            "loop_seconds": self.loop_seconds,
            "parameters": dict(zip(self.names, map(_fields, self.values.tolist()), strict=True)),
        }
        for name, own in (self.histograms or {}).items():
            content["parameters"][name]["histograms"] = {
                what: {"limit": h.limit, "counts": list(h.counts)} for what, h in own.items()
            }
        return content

    def as_line(self) -> str:
        """A line of JSON, its end included. It knows no nan and no infinity: null is for both."""
        content = self.as_dict()
        try:
            text = json.dumps(content, ensure_ascii=False, allow_nan=False)
        except ValueError:
            text = json.dumps(_finite(content), ensure_ascii=False, allow_nan=False)
        return text + "\n"


def from_dict(content: Mapping[str, Any]) -> Record:
    """The inverse of :meth:`Record.as_dict`, with nan where that has None for a number.

    Raises KeyError, TypeError or ValueError for what is no record.
    """
    parameters = content["parameters"]
    rows = [[_number(own[field]) for field in FIELDS] for own in parameters.values()]
    histograms = {
        str(name): {
            what: Histogram(_number(h["limit"]), tuple(map(int, h["counts"])))
            for what, h in own["histograms"].items()
        }
        for name, own in parameters.items()
        if "histograms" in own
    }
    loop = content["loop_seconds"]
    return Record(
        int(content["step"]),
        tuple(map(_number, content["lr"])),
        _number(content["gradient_norm"]),
        float(content["step_seconds"]),
        None if loop is None else float(loop),
        tuple(map(str, parameters)),
        numpy.array(rows, dtype=numpy.float64).reshape(len(rows), len(FIELDS)),
        histograms or None,
    )


def read_records(path: str | Path) -> list[Record]:
    """The records in a file of JSON lines, as ``watch(…, to="run.jsonl")`` writes it.

    A last line that was cut off by a crash is left out. Where a step is there twice, since a
    training went on from an earlier checkpoint, the later line counts.

    Raises:
        OSError: a file that cannot be read.
        ValueError: another line that is no record; says which.
    """
    found: dict[int, Record] = {}
    lines = Path(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = from_dict(json.loads(line))
        except (KeyError, TypeError, ValueError, AttributeError):
            if number == len(lines):  # without a line end
                break
            raise ValueError(
                f"line {number} of {path} is no record of a watch. Expected a file that "
                "gradstep.watch(…, to=…) wrote."
            ) from None
        found.pop(record.step, None)
        found[record.step] = record
    return [found[step] for step in sorted(found)]


def frame(records: Sequence[Record]) -> Any:
    """The records as a pandas DataFrame: a row for each step and parameter.

    Its columns: step, parameter, the fields of a parameter, and those of the step.

    Raises:
        ImportError: pandas is not installed.
    """
    try:
        pandas: Any = import_module("pandas")
    except ImportError:
        raise ImportError(
            "frame() needs pandas: pip install pandas. Without it, .records has the same numbers."
        ) from None
    values = (
        numpy.concatenate([r.values for r in records]) if records else numpy.empty((0, len(FIELDS)))
    )
    lengths = [len(r.names) for r in records]
    columns: dict[str, Any] = {
        "step": numpy.repeat([r.step for r in records], lengths).astype(numpy.int64),
        "parameter": [name for r in records for name in r.names],
    }
    for number, field in enumerate(FIELDS):
        column = values[:, number]
        columns[field] = column.astype(numpy.int64) if field in COUNTS else column
    for field in ("gradient_norm", "step_seconds", "loop_seconds"):
        own = [math.nan if (v := getattr(r, field)) is None else v for r in records]
        columns[field] = numpy.repeat(numpy.array(own, dtype=numpy.float64), lengths)
    return pandas.DataFrame(columns)


def _fields(row: Iterable[float]) -> dict[str, float]:
    found = dict(zip(FIELDS, row, strict=True))
    for field in COUNTS:
        found[field] = int(found[field])
    return found


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
