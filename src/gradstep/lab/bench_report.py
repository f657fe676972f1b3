"""The results of a bench run as a table, as JSON, and as a bar chart."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gradstep.lab.bench import Row

_COLUMNS = ("rule", "size", "gradstep", "kernel", "torch's best", "mode", "ratio", "bandwidth")


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def table(rows: Sequence[Row]) -> str:
    """One line a row, in columns."""
    lines = [_COLUMNS]
    for row in rows:
        best, ratio = row.best_of_torch(), row.ratio()
        lines.append(
            (
                row.case,
                row.size + (" + busy core" if row.loaded else ""),
                duration(row.seconds["gradstep"]),
                duration(row.kernel),
                duration(best[1]) if best else "-",
                best[0].removeprefix("torch ") if best else "-",
                f"{ratio:.2f}" if ratio else "-",
                # A net that lies in the cache is not read from memory at all.
                f"{row.share_of_bandwidth():.0%}" if row.size == "large" else "-",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def record(rows: Sequence[Row], host: tuple[float, float] | None) -> dict[str, Any]:
    """Everything that was measured, in seconds and bytes, for a JSON file."""
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
    sizes = list(dict.fromkeys(row.size for row in rows))
    figure, panels = pyplot.subplots(
        1, len(sizes), figsize=(5.2 * len(sizes), 4.6), layout="constrained", squeeze=False
    )
    colours = {
        "gradstep": "#1b7f5c",
        "torch fused": "#b0561f",
        "torch foreach": "#d99a6c",
        "torch loop": "#ecd0b8",
    }
    drawn = {}
    for panel, size in zip(panels[0], sizes, strict=True):
        shown = [row for row in rows if row.size == size and not row.loaded]
        unit, label = (1e6, "µs") if size == "lenet" else (1e3, "ms")
        for place, row in enumerate(shown):
            names = [name for name in colours if name in row.seconds]
            for i, name in enumerate(names):
                drawn[name] = panel.barh(
                    place + (i - (len(names) - 1) / 2) * 0.2,
                    row.seconds[name] * unit,
                    height=0.18,
                    color=colours[name],
                )
        panel.set_yticks(range(len(shown)), [row.case.replace("-", "\n", 1) for row in shown])
        panel.invert_yaxis()
        panel.set_xlabel(f"median time of a step, {label}: shorter is better")
        panel.set_title(size)
        panel.spines[["top", "right"]].set_visible(False)
    labels = [name for name in colours if name in drawn]
    figure.legend(
        [drawn[name] for name in labels], labels, frameon=False, loc="outside lower center", ncols=4
    )
    written.append(folder / "bench.png")
    figure.savefig(written[-1], dpi=130)
    pyplot.close(figure)
    return written
