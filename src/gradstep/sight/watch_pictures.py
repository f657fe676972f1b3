"""Pictures of a watch's records: over the steps, as a heat map, as histograms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from gradstep.sight.records import Record
from gradstep.sight.statistics import FIELDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: Okabe and Ito's colours, which people who do not see red and green apart can tell.
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6BB1"]
_STYLES = ["-", "--", ":", "-."]
_GREY = "#666666"

#: The ratio that a step of a healthy training often has, about. A custom, no law.
USUAL_RATIO = 1e-3

#: Histograms a picture shows over the steps, at most.
SHOWN = 12


def save(records: Sequence[Record], path: str | Path, kind: str, title: str = "") -> None:
    """Draw records into a file. Raises what :meth:`gradstep.sight.watch.Watch.plot` says."""
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}; expected one of {', '.join(map(repr, KINDS))}")
    if not any(record.names for record in records):
        raise ValueError("no step with a gradient was recorded, so there is nothing to draw")
    write(lambda: titled(KINDS[kind](records), title), path)


def titled(figure: Figure, title: str) -> Figure:
    """The figure with a title above all, such as the rule that made the steps."""
    if title:
        figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    return figure


def write(draw: Callable[[], Figure], path: str | Path) -> None:
    """Draw into a file. Raises ImportError, OSError or ValueError if that cannot be done."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError("plot() needs matplotlib: pip install matplotlib") from None
    figure = draw()
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from None
    except ValueError as error:  # an ending that matplotlib does not know
        raise ValueError(f"cannot draw to {path}: {error}") from None


def overview(records: Sequence[Record]) -> Figure:
    """Ratio, gradients, weights and gradient norm over the steps; a line a parameter.

    The parameters of one layer have one colour.
    """
    names = _names(records)
    steps = [record.step for record in records]
    figure = blank_figure(12, 8)
    grid = figure.subplots(2, 2, sharex=True).flatten()
    styles = _styles(names)
    panels = (
        ("update_ratio", "Update-to-weight ratio", "rms of update / rms of weight"),
        ("gradient_rms", "Gradients", "rms"),
        ("weight_rms", "Weights", "rms"),
    )
    for axes, (field, title, label) in zip(grid, panels, strict=False):
        table = _table(records, names, field)
        for own, name, style in zip(table, names, styles, strict=True):
            axes.plot(steps, _positive(own), label=name, **style)
        _logarithmic(axes, table)
        axes.set_title(title)
        axes.set_ylabel(label)
    low, high = grid[0].get_ylim()
    if low < USUAL_RATIO < high:
        grid[0].axhline(USUAL_RATIO, color=_GREY, linewidth=0.8, linestyle=(0, (1, 3)))
        grid[0].annotate(
            "often about here", (0.995, USUAL_RATIO), xycoords=("axes fraction", "data"),
            ha="right", va="bottom", fontsize=8, color=_GREY,
        )  # fmt: skip
    _draw_norm(grid[3], records)
    for axes in grid:
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[2:]:
        axes.set_xlabel("step")
    _explain_colours(figure, grid[0], names)
    return figure


def heatmap(records: Sequence[Record]) -> Figure:
    """The update-to-weight ratio as a field of parameters × steps, on a logarithmic scale."""
    from matplotlib.colors import LogNorm

    names = _names(records)
    table = _table(records, names, "update_ratio")
    figure = blank_figure(11, min(30.0, max(3.2, 1.6 + 0.24 * len(names))))
    axes = figure.subplots()
    good = table[numpy.isfinite(table) & (table > 0)]
    low, high = (good.min(), good.max()) if good.size else (1e-4, 1e-2)
    # One odd step shall not take all of the scale.
    if good.size > 20:
        low, high = numpy.quantile(good, [0.01, 0.99])
    norm = LogNorm(min(low, high / 1.5), high)
    shown = numpy.ma.masked_where(~numpy.isfinite(table), numpy.maximum(table, 1e-300))
    picture = axes.imshow(
        shown, aspect="auto", interpolation="nearest", norm=norm, cmap=_colour_map()
    )
    _label_columns(axes, [record.step for record in records])
    _label_rows(axes, names)
    axes.set_title("Update-to-weight ratio")
    bar = figure.colorbar(picture, ax=axes, extend="both", pad=0.015, fraction=0.04)
    bar.set_label("rms of update / rms of weight")
    if not numpy.isfinite(table).all():
        axes.set_xlabel("step  (grey: no gradient, or nan or infinity)")
    return figure


def histograms(records: Sequence[Record]) -> Figure:
    """How weights and gradients are spread, step after step: a row a parameter, dark is many."""
    kept = [record for record in records if record.histograms]
    if not kept:
        raise ValueError("no histograms were recorded; ask for them: watch(…, histograms=True)")
    every = max(1, -(-len(kept) // 400))
    kept = kept[::every]
    names = _names(kept)
    if len(names) > SHOWN:
        places = numpy.linspace(0, len(names) - 1, SHOWN).round().astype(int)
        names = [names[i] for i in places]
    figure = blank_figure(11, 1.0 + 1.3 * len(names))
    grid = figure.subplots(len(names), 2, squeeze=False)
    steps = [record.step for record in kept]
    for row, name in zip(grid, names, strict=True):
        for axes, what in zip(row, ("weight", "gradient"), strict=True):
            _draw_spread(axes, kept, name, what)
            _label_columns(axes, steps)
            if axes is not row[0] or name is not names[-1]:
                axes.set_xlabel("")
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    grid[0, 0].set_title("Weights")
    grid[0, 1].set_title("Gradients")
    for axes in grid[-1]:
        axes.set_xlabel("step")
    for axes in grid[:-1].flatten():
        axes.set_xticklabels([])
    return figure


KINDS: dict[str, Callable[[Sequence[Record]], Figure]] = {
    "overview": overview,
    "heatmap": heatmap,
    "histograms": histograms,
}


def _draw_spread(axes: Any, records: Sequence[Record], name: str, what: str) -> None:
    own = [(record.histograms or {}).get(name, {}).get(what) for record in records]
    limits = [h.limit for h in own if h is not None and h.limit > 0]
    limit = max(limits, default=1.0)
    bins = 81
    field = numpy.full((bins, len(records)), numpy.nan)
    for column, h in enumerate(own):
        if h is None or not sum(h.counts):
            continue
        # Brought to one scale: each bin's share goes to where its middle lies.
        width = 2 * (h.limit or limit) / len(h.counts)
        middles = -(h.limit or limit) + width * (numpy.arange(len(h.counts)) + 0.5)
        edges = numpy.linspace(-limit, limit, bins + 1)
        density = numpy.array(h.counts) / (sum(h.counts) * width)
        centres = (edges[:-1] + edges[1:]) / 2
        nearest = numpy.floor((centres - (middles[0] - width / 2)) / width).astype(int)
        inside = (nearest >= 0) & (nearest < len(middles))
        field[:, column] = numpy.where(inside, density[nearest.clip(0, len(middles) - 1)], 0.0)
        field[:, column] /= max(field[:, column].max(), 1e-300)
    cmap = _colour_map("Blues")
    shown = numpy.ma.masked_invalid(numpy.sqrt(field))
    axes.imshow(
        shown, aspect="auto", origin="lower", interpolation="nearest", cmap=cmap, vmin=0, vmax=1,
        extent=(-0.5, len(records) - 0.5, -limit, limit),
    )  # fmt: skip
    axes.set_yticks([-limit, 0, limit], [f"−{limit:.2g}", "0", f"{limit:.2g}"], fontsize=8)


def _draw_norm(axes: Any, records: Sequence[Record]) -> None:
    steps = [record.step for record in records]
    norms = numpy.array([[record.gradient_norm for record in records]])
    axes.plot(steps, _positive(norms[0]), color="#000000", linewidth=1.4, label="gradient norm")
    _logarithmic(axes, norms)
    axes.set_title("Norm of all gradients, and learning rate")
    axes.set_ylabel("gradient norm (black)")
    rates = numpy.array([_padded(record.lr, len(records[0].lr)) for record in records]).T
    if numpy.isfinite(rates).any() and (rates > 0).any():
        right = axes.twinx()
        for rate in rates:
            right.plot(steps, _positive(rate), color="#D55E00", linewidth=1.2, linestyle="--")
        _logarithmic(right, rates)
        right.set_ylabel("lr (dashed)", color="#D55E00")
        right.tick_params(axis="y", colors="#D55E00")
        right.spines[["top"]].set_visible(False)


def _names(records: Sequence[Record]) -> list[str]:
    """All names, in the order in which parameters stand in the optimizer."""
    return list(dict.fromkeys(name for record in records for name in record.names))


def _table(records: Sequence[Record], names: Sequence[str], field: str) -> Any:
    """A field of all records: a row a parameter, nan where it has no record."""
    place = {name: row for row, name in enumerate(names)}
    table = numpy.full((len(names), len(records)), math.nan)
    column = FIELDS.index(field)
    for number, record in enumerate(records):
        table[[place[name] for name in record.names], number] = record.values[:, column]
    return table


def _positive(values: Any) -> Any:
    """What a logarithmic axis can show, gaps for the rest."""
    values = numpy.asarray(values, dtype=numpy.float64)
    return numpy.where(numpy.isfinite(values) & (values > 0), values, math.nan)


def _padded(rates: Sequence[float], count: int) -> list[float]:
    return [*rates, *(math.nan,) * count][:count]


def _logarithmic(axes: Any, values: Any) -> None:
    """A logarithmic axis, with room around values that are all alike."""
    good = _positive(values)
    good = good[numpy.isfinite(good)]
    axes.set_yscale("log")
    if good.size and good.max() < 3 * good.min():
        axes.set_ylim(good.min() / 3, good.max() * 3)


def _styles(names: Sequence[str]) -> list[dict[str, Any]]:
    """A colour a layer, a dash a parameter of it."""
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
    colours = _colours(len(layers))
    style = {}
    for colour, own in zip(colours, layers.values(), strict=True):
        for number, name in enumerate(own):
            style[name] = {
                "color": colour,
                "linestyle": _STYLES[number % len(_STYLES)],
                "linewidth": 1.4,
            }
    return [style[name] for name in names]


def _colours(count: int) -> list[Any]:
    if count <= len(_COLOURS):
        return list(_COLOURS[:count])
    from matplotlib import colormaps

    return [colormaps["viridis"](0.95 * i / (count - 1)) for i in range(count)]


def _explain_colours(figure: Any, axes: Any, names: Sequence[str]) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(names) <= 24:
        figure.legend(
            handles, labels, loc="outside lower center", fontsize=8, frameon=False,
            ncols=min(6, -(-len(names) // 2) if len(names) > 6 else len(names)),
        )  # fmt: skip
        return
    note = f"{len(names)} parameters, from the first layer (dark) to the last (yellow)"
    figure.supxlabel(note, fontsize=9, color=_GREY)


def _label_columns(axes: Any, steps: Sequence[int]) -> None:
    """A few of the steps below the columns; records need not be evenly spaced."""
    count = min(8, len(steps))
    places = sorted({round(i * (len(steps) - 1) / max(1, count - 1)) for i in range(count)})
    axes.set_xticks(places, [f"{steps[i]:,}" for i in places], fontsize=8)
    axes.set_xlabel("step")


def _label_rows(axes: Any, names: Sequence[str]) -> None:
    every = max(1, -(-len(names) // 110))
    places = list(range(0, len(names), every))
    axes.set_yticks(places, [names[i] for i in places], fontsize=8 if len(names) < 60 else 6)


def _colour_map(name: str = "viridis") -> Any:
    from matplotlib import colormaps

    return colormaps[name].with_extremes(bad="#cccccc")


def blank_figure(width: float, height: float) -> Figure:
    """An empty picture of so many inches, of no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
