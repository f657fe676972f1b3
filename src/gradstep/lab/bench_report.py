"""The results of a bench run as a table, as JSON, and as a bar chart."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gradstep.lab.bench import Row

_COLUMNS = (
    *("rule", "size", "gradstep", "kernel", "torch's best", "mode", "ratio", "aim", "bandwidth"),
    *("temporary", "torch's"),
)


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def memory(count: int | None) -> str:
    """Bytes in a unit that leaves few digits."""
    if count is None:
        return "-"
    for unit, digits in (("B", 0), ("kB", 1), ("MB", 1)):
        if count < 1000 or unit == "MB":
            return f"{count:.{digits}f} {unit}"
        count /= 1000  # type: ignore[assignment]
    raise AssertionError


def peers_in(rows: Sequence[Row]) -> list[str]:
    """The other libraries beside torch that have one of the rules."""
    contenders = (name for row in rows for name in (*row.seconds, *row.left_out))
    libraries = dict.fromkeys(name.split(" ")[0] for name in contenders)
    return [name for name in libraries if name not in ("gradstep", "torch", "beside")]


def table(rows: Sequence[Row]) -> str:
    """One line a row, in columns; two columns more for each peer. Below, what was left out."""
    peers = peers_in(rows)
    lines = [(*_COLUMNS, *(cell for peer in peers for cell in (peer, "ratio")))]
    lines += [_cells(row, peers) for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    notes = {
        f"not timed: {row.case} of {name}: {reason}"
        for row in rows
        for name, reason in row.left_out.items()
    }
    return "\n".join([*text, *sorted(notes)])


def _cells(row: Row, peers: Sequence[str]) -> tuple[str, ...]:
    best, ratio, reached = row.measure_of(), row.ratio(), row.reached()
    cells = [
        row.case,
        row.size + (" + busy core" if row.loaded else ""),
        duration(row.seconds["gradstep"]),
        duration(row.kernel) if row.kernel else "-",
        duration(best[1]) if best else "-",
        best[0].removeprefix("torch ").removeprefix("beside ") if best else "-",
        f"{ratio:.2f}" if ratio else "-",
        "-" if reached is None else f"≥ {row.aim:g} {'met' if reached else 'missed'}",
        # A net that lies in the cache is not read from memory at all.
        f"{row.share_of_bandwidth():.0%}" if row.size == "large" else "-",
        memory(row.temporary.get("gradstep")),
        memory(row.temporary.get(best[0])) if best else "-",
    ]
    for peer in peers:
        theirs, factor = row.best_of(peer), row.ratio(peer)
        cells += [duration(theirs[1]) if theirs else "-", f"{factor:.2f}" if factor else "-"]
    return tuple(cells)


def record(rows: Sequence[Row], host: tuple[float, float] | None) -> dict[str, Any]:
    """Everything that was measured, in seconds and bytes, for a JSON file."""
    peers = peers_in(rows)
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "host_work": None
        if host is None
        else {"seconds_a_step": host[0], "seconds_a_tensor": host[1]},
        "rows": [
            {
                "rule": row.case,
                "size": row.size,
                "loaded": row.loaded,
                "seconds": row.seconds,
                "kernel_seconds": row.kernel,
                "bytes_moved": row.bytes_moved,
                "streaming_seconds": row.streaming[0],
                "streaming_bytes": row.streaming[1],
                "ratio_to_best_of_torch": row.ratio(),
                "share_of_streaming_bandwidth": row.share_of_bandwidth(),
                "aim": row.aim,
                "aim_reached": row.reached(),
                "ratio_to_best_of_peer": {peer: row.ratio(peer) for peer in peers},
                "temporary_bytes": row.temporary,
                "left_out": row.left_out,
            }
            for row in rows
        ],
    }


def write(folder: Path, rows: Sequence[Row], host: tuple[float, float] | None) -> list[Path]:
    """Write ``bench.json`` and, if matplotlib is installed, ``bench.png``; return what was written.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "bench.json"]
    written[0].write_text(json.dumps(record(rows, host), indent=1) + "\n")
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return written
    figure = _chart(pyplot, rows)
    written.append(folder / "bench.png")
    figure.savefig(written[-1], dpi=130)
    pyplot.close(figure)
    return written


_COLOURS = {
    "gradstep": "#1b7f5c",
    "torch fused": "#b0561f",
    "torch foreach": "#d99a6c",
    "torch loop": "#ecd0b8",
    "beside adamw": "#7fb8a4",
    "optax": "#3b5f9e",
    "pytorch_optimizer": "#7b6ba8",
    "timm": "#a8a39a",
    "optimi": "#c9b458",
}


def _bars(row: Row) -> dict[str, float]:
    """The seconds to draw: every mode of torch's, and of each peer the best."""
    bars = {name: row.seconds[name] for name in _COLOURS if name in row.seconds}
    for peer in peers_in([row]):
        best = row.best_of(peer)
        if best is not None:
            bars[peer] = best[1]
    return bars


def _chart(pyplot: Any, rows: Sequence[Row]) -> Any:
    sizes = list(dict.fromkeys(row.size for row in rows))
    count = max(sum(row.size == size and not row.loaded for row in rows) for size in sizes)
    figure, panels = pyplot.subplots(
        1,
        len(sizes),
        figsize=(5.2 * len(sizes), max(4.6, 1 + 0.45 * count)),
        layout="constrained",
        squeeze=False,
    )
    drawn = {}
    for panel, size in zip(panels[0], sizes, strict=True):
        shown = [row for row in rows if row.size == size and not row.loaded]
        unit, label = (1e6, "µs") if size == "lenet" else (1e3, "ms")
        for place, row in enumerate(shown):
            bars = _bars(row)
            height = min(0.2, 0.9 / len(bars))
            for i, (name, seconds) in enumerate(bars.items()):
                drawn[name] = panel.barh(
                    place + (i - (len(bars) - 1) / 2) * height,
                    seconds * unit,
                    height=0.9 * height,
                    color=_COLOURS[name],
                )
        panel.set_yticks(range(len(shown)), [row.case.replace("-", "\n", 1) for row in shown])
        panel.set_ylim(len(shown) - 0.4, -0.6)
        panel.set_xlabel(f"median time of a step, {label}: shorter is better")
        panel.set_title(size)
        panel.spines[["top", "right"]].set_visible(False)
    labels = [name for name in _COLOURS if name in drawn]
    figure.legend(
        [drawn[name] for name in labels],
        labels,
        frameon=False,
        loc="outside lower center",
        ncols=4 if len(sizes) > 1 else 2,
    )
    return figure
