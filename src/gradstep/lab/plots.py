"""The pictures of a run: how it learned, what the first layer looks for, what it gets wrong.

Each function returns a matplotlib figure and writes nothing; :func:`png` makes bytes of one.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy
from torch import Tensor

from gradstep.lab.colours import COLOURS, looks_of
from gradstep.lab.training import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
_LINES = ["-", "--", ":"]
_LOOKS = len(_MARKERS) * len(_LINES)
_GREY = "#666666"
_GREEN = "#00745A"
_RED = "#B8420A"


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def draw_curves(records: Sequence[Record]) -> Figure:
    """Train loss and test accuracy against the epoch, all optimizers in one picture.

    Both axes widen towards the end of learning, where the differences are small: the loss is on a
    logarithmic scale, and so is what the accuracy lacks to 100 %.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    figure = _figure(11, 4.6, layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    all_accuracies = [100 * record["test_accuracy"] for record in records]
    looks = looks_of(dict.fromkeys(record["optimizer"] for record in records), _LOOKS)
    for name, look in looks.items():
        own = [record for record in records if record["optimizer"] == name]
        style = _style(look, len(own))
        epochs = [record["epoch"] for record in own]
        accuracies = [100 * record["test_accuracy"] for record in own]
        label = f"{name}: {accuracies[-1]:.1f} %"
        loss_axes.plot(epochs, [record["train_loss"] for record in own], **style)
        accuracy_axes.plot(epochs, accuracies, label=label, **style)

    loss_axes.set_title("Loss while learning")
    loss_axes.set_ylabel("mean cross-entropy of an epoch")
    loss_axes.set_yscale("log")
    loss_axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss_axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    loss_axes.yaxis.set_minor_formatter(NullFormatter())
    accuracy_axes.set_title("Test images read correctly")
    lowest, highest = min(all_accuracies), max(all_accuracies)
    accuracy_axes.set_yscale("function", functions=(_stretched, _unstretched))
    bottom = max(0, lowest - 0.15 * (100 - lowest) - 0.2)
    top = 100.02 if highest > 98 else highest + 0.4 * (100 - highest)
    accuracy_axes.set_ylim(bottom, top)
    accuracy_axes.set_yticks([tick for tick in _ACCURACY_TICKS if bottom <= tick <= top])
    accuracy_axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    accuracy_axes.legend(title="after the last epoch", loc="lower right", framealpha=0.9)
    for axes in (loss_axes, accuracy_axes):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


_ACCURACY_TICKS = (0, 20, 40, 60, 70, 80, 85, 90, 92, 94, 96, 97, 98, 99, 99.5, 100)
_LEAST_ERROR = 0.5  # per cent, added so that 100 % has a place on the scale


def _stretched(accuracy: Any) -> Any:
    return -numpy.log(numpy.maximum(100 + _LEAST_ERROR - accuracy, 1e-3))


def _unstretched(height: Any) -> Any:
    return 100 + _LEAST_ERROR - numpy.exp(-height)


def draw_filters(before: Tensor, after: Mapping[str, Tensor]) -> Figure:
    """The first layer's kernels, ``(6, 1, 5, 5)``: a row before, a row after for each optimizer.

    A row has one scale of its own: its largest weight, by absolute value, is full colour.
    """
    rows = {"before": before} | {
        ("after" if len(after) == 1 else f"after {name}"): kernels
        for name, kernels in after.items()
    }
    # All measures in inches.
    side, gap, label_width, scale_width, title_height = 1.2, 0.1, 1.3, 0.75, 0.65
    width = label_width + len(before) * (side + gap) + scale_width
    height = title_height + len(rows) * (side + gap) + gap
    figure = _figure(width, height)
    sheet = _sheet(figure)
    figure.text(
        *(0.5, 1 - 0.25 / height, "conv1: the six 5×5 kernels (red adds, blue takes away)"),
        ha="center",
        fontsize=11,
    )
    for row, (label, kernels) in enumerate(rows.items()):
        bottom = height - title_height - (row + 1) * side - row * gap
        middle = bottom + side / 2
        figure.text((label_width - 0.15) / width, middle / height, label, ha="right", va="center")
        largest = float(kernels.abs().max())
        scale = {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}
        for number, kernel in enumerate(kernels):
            left = label_width + number * (side + gap)
            _place(sheet, kernel[0].numpy(), left, bottom, side, side, **scale)
            if row == 0:
                above = (left + side / 2, bottom + side + 0.05)
                sheet.text(*above, f"kernel {number}", fontsize=9, color=_GREY, ha="center")
        left, low, long = label_width + len(before) * (side + gap), bottom + 0.06, side - 0.12
        colours = numpy.linspace(largest, -largest, 129)[:, None]
        _place(sheet, colours, left, low, 0.1, long, **scale)
        for part, text in ((0.0, f"−{largest:.2f}"), (0.5, "0"), (1.0, f"{largest:.2f}")):
            sheet.text(left + 0.16, low + part * long, text, fontsize=8, va="center")
    return figure


def draw_mistakes(images: Tensor, labels: Tensor, scores: Mapping[str, Tensor]) -> Figure:
    """The test images that are read wrong, the surest mistakes first.

    ``images`` is ``(n, 1, 32, 32)``, ``labels`` ``(n,)``, and ``scores`` has for each optimizer's
    name its network's scores ``(n, 10)``. One optimizer gets up to four rows, several get one
    row each.
    """
    mistakes = {name: _mistakes(own, labels) for name, own in scores.items()}
    most_rows = 4 if len(scores) == 1 else 1
    columns = min(10, max(5, *map(len, mistakes.values()), 0))
    rows = [min(most_rows, -(-len(wrong) // columns)) for wrong in mistakes.values()]

    # All measures in inches.
    cell_width, cell_height, side, title_height, margin = 1.0, 1.32, 0.86, 0.42, 0.15
    width = columns * cell_width + 2 * margin
    height = sum(rows) * cell_height + len(rows) * title_height + margin
    figure = _figure(width, height)
    sheet = _sheet(figure)
    top = height
    for (name, wrong), row_count in zip(mistakes.items(), rows, strict=True):
        shown = wrong[: row_count * columns]
        title = f"{name}: {len(wrong):,} of {len(labels):,} test images read wrong"
        if len(shown) < len(wrong):
            title += f"; the {len(shown)} surest"
        figure.text(margin / width, (top - 0.3) / height, title, fontsize=11)
        top -= title_height
        for number, (place, answer) in enumerate(shown):
            left = margin + number % columns * cell_width + (cell_width - side) / 2
            bottom = top - number // columns * cell_height - 0.2 - side
            _place(sheet, images[place, 0].numpy(), left, bottom, side, side, cmap="gray_r")
            says, truth = f"says {answer}", f"is {int(labels[place])}"
            middle = {"x": left + side / 2, "ha": "center", "fontsize": 10}
            sheet.text(y=bottom + side + 0.04, s=says, color=_RED, va="bottom", **middle)
            sheet.text(y=bottom - 0.04, s=truth, color=_GREEN, va="top", **middle)
        top -= row_count * cell_height
    return figure


def _mistakes(scores: Tensor, labels: Tensor) -> list[tuple[int, int]]:
    """Place and wrong answer of each mistake, the surest first."""
    sureness, answers = scores.double().softmax(1).max(1)
    wrong = (answers != labels).nonzero().flatten()
    wrong = wrong[sureness[wrong].argsort(descending=True, stable=True)]
    return [(int(place), int(answers[place])) for place in wrong]


def _style(look: int, epochs: int) -> dict[str, Any]:
    lap, place = divmod(look, len(COLOURS))
    # The ninth has another marker than the first, the sixty-fifth another line.
    line = _LINES[lap // len(_MARKERS) % len(_LINES)]
    return {
        "color": COLOURS[place],
        "marker": _MARKERS[(place + lap) % len(_MARKERS)],
        "linestyle": line,
        "markersize": 4,
        "markevery": max(1, -(-epochs // 20)),
        "linewidth": 1.6,
    }


def _figure(width: float, height: float, layout: Any = None) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _sheet(figure: Figure) -> Any:
    """Axes over the whole figure, measured in inches, that show nothing of themselves.

    Axes of its own for each of 54 small pictures took three quarters of a short run.
    """
    width, height = figure.get_size_inches()
    sheet = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height), autoscale_on=False)
    sheet.set_axis_off()
    return sheet


def _place(
    sheet: Any, pixels: Any, left: float, bottom: float, width: float, height: float, **scale: Any
) -> None:
    """Put a picture in a frame onto the sheet."""
    from matplotlib.patches import Rectangle

    extent = (left, left + width, bottom, bottom + height)
    sheet.imshow(pixels, extent=extent, aspect="auto", interpolation="nearest", **scale)
    frame = Rectangle((left, bottom), width, height, fill=False, linewidth=0.4, edgecolor=_GREY)
    sheet.add_patch(frame)
