"""The picture of a range test for learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradstep.sight.watch_pictures import blank_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_lr_find(
    lrs: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    steepest: float | None,
    tenth_of_minimum: float | None,
) -> Figure:
    """Loss against learning rate, with what is suggested.

    Args:
        lrs, losses, smoothed: for each step its learning rate, its loss, and that smoothed.
        steepest, tenth_of_minimum: the suggestions, None for none.
    """
    figure = blank_figure(7.5, 4.6)
    axes = figure.subplots()
    axes.plot(lrs, losses, color="#bbbbbb", linewidth=1, label="loss of a batch")
    axes.plot(lrs, smoothed, color="#0072B2", linewidth=1.8, label="smoothed")
    marks = (
        (steepest, "#D55E00", "steepest descent"),
        (tenth_of_minimum, "#009E73", "a tenth of the minimum"),
    )
    for lr, colour, name in marks:
        if lr is not None:
            axes.axvline(lr, color=colour, linewidth=1.2, linestyle="--", label=f"{name}: {lr:.1e}")
    # What diverged would press all else to the bottom.
    low, first = min(smoothed), smoothed[0]
    room = max(first - low, 0.1 * abs(first), 1e-12)
    axes.set_ylim(low - 0.3 * room, first + 0.8 * room)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.set_title("Learning rate range test")
    axes.legend(fontsize=9, framealpha=0.9)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
