"""Write the pages about rules: their paths on two surfaces, and a training on the digits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gradstep.lab.atomic import write_atomically
from gradstep.lab.colours import colour_of
from gradstep.lab.errors import UnknownOptimizer
from gradstep.lab.optimizers import TRAINABLE, Choice, check_name
from gradstep.lab.plots import png
from gradstep.lab.race import Course, Entry
from gradstep.lab.race_worker import race_data, race_run
from gradstep.lab.repeatable import repeatable
from gradstep.lab.surface import FORMULAS, GRID, Formula, best_path
from gradstep.lab.surface import Path as Way
from gradstep.sight.catalogue import find_rule, is_stage, rule_names
from gradstep.sight.rule_page import index_markdown, rule_markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HEAD = """\
# The rules

Made by `gradstep rules --pages docs/rules`, from the rules themselves.

"""
_PICTURES = """\
`digits`: the share of scikit-learn's test digits that LeNet reads after {epochs} epochs of training
with the rule, with the learning rate that `gradstep train` begins with. Where that is below 95 %,
the training was too short for it: most such rates are those of papers with larger nets, DoG, LDoG
and D-Adaptation begin with steps of next to nothing, and Kate's falls with every gradient. In the
pictures, the rate for each surface is the best of fifteen.

"""


def write_pages(
    folder: Path,
    epochs: int,
    say: Callable[[str], None],
    names: Sequence[str] | None = None,
) -> None:
    """A page a rule and stage, a picture a rule, and ``README.md`` with the tables.

    Args:
        folder: made if it is not there; files of the same names are replaced.
        epochs: how long LeNet is trained with each rule; 0 for not at all.
        say: called with a line a rule.
        names: of which rules and stages. Default: all, and only then ``README.md``.

    Raises:
        OSError: what cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trained: dict[str, str] = {}
    for name in names or rule_names():
        if is_stage(find_rule(name)):
            _write(folder / f"{name}.md", rule_markdown(name))
            continue
        result, sentence = _train(name, epochs)
        picture = None
        if name in TRAINABLE:
            picture = f"{name}.png"
            write_atomically(folder / picture, png(draw(name, result)))
        if result is not None:
            trained[name] = f"{result['final']['test_accuracy']:.1%}"
        elif sentence:
            trained[name] = "not for LeNet"
        _write(folder / f"{name}.md", rule_markdown(name, picture, sentence))
        say(f"{name}: {trained.get(name, 'not trained')}")
    if names is not None:
        return
    table = index_markdown(trained if epochs else None, linked=True)
    head = _HEAD + (_PICTURES.format(epochs=epochs) if epochs else "")
    _write(folder / "README.md", head + table + "\n")


def _write(path: Path, text: str) -> None:
    write_atomically(path, text.encode())


def _train(name: str, epochs: int) -> tuple[Any, str]:
    """The result of a training, and a sentence about it."""
    try:
        check_name(name)
    except UnknownOptimizer as error:
        return None, f"not trained. {str(error)[:1].upper()}{str(error)[1:]}."
    if not epochs:
        return None, ""
    course = Course(None, None, epochs, None, 64, 1.0, 1, None)
    choice = TRAINABLE[name]
    with repeatable(threads=1):
        result = race_run(
            course, Entry(name, choice.lr, 0), race_data(course, 0), lambda done: None
        )
    accuracy = result["final"]["test_accuracy"]
    return result, (
        f"after {epochs} epochs with {_arguments(choice)} LeNet reads {accuracy:.1%} of "
        "scikit-learn's test images."
    )


def _arguments(choice: Choice) -> str:
    """What ``gradstep train`` makes the optimizer with, beyond defaults."""
    more = choice.make.keywords if isinstance(choice.make, partial) else {}
    return ", ".join([f"lr={choice.lr:g}", *(f"{name}={value!r}" for name, value in more.items())])


def draw(name: str, result: Mapping[str, Any] | None) -> Figure:
    """The rule's paths on the two surfaces, and its loss on the digits if it was trained."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    panels = len(FORMULAS) + (result is not None)
    figure = Figure(figsize=(3.7 * panels, 3.3), layout="constrained")
    axes = figure.subplots(1, panels)
    for formula, own in zip(FORMULAS, axes, strict=False):
        _draw_path(own, formula, best_path(formula, name), colour_of(name))
    if result is not None:
        own = axes[-1]
        steps, loss = result["steps"], result["test_loss"]
        own.plot(steps, loss, color=colour_of(name), linewidth=1.6)
        own.set_yscale("log")
        own.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        own.yaxis.set_major_formatter("{x:g}")
        own.yaxis.set_minor_formatter("")
        own.set_title("LeNet on the digits", fontsize=10)
        own.set_xlabel("step")
        own.set_ylabel("test loss")
        own.grid(True, color="#dddddd", linewidth=0.6)
    return figure


def _draw_path(axes: Any, formula: Formula, way: Way, colour: str) -> None:
    from matplotlib.colors import LogNorm

    xs = torch.linspace(*formula.x_range, GRID, dtype=torch.float64)
    ys = torch.linspace(*formula.y_range, GRID, dtype=torch.float64)
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    loss = formula.loss(x, y).clamp_min(1e-3)
    surface = [tensor.numpy() for tensor in (x, y, loss)]  # matplotlib 3.8 takes no tensors
    levels = torch.logspace(-2, 3.5, 12).tolist()
    axes.contourf(*surface, levels, norm=LogNorm(), cmap="Greys", alpha=0.5, extend="both")
    points = list(zip(*way.points, strict=True))
    axes.plot(*points, color=colour, linewidth=1.2, marker=".", markersize=2.5)
    # No rule's colours: the start is empty, the lowest point full.
    edge = {"color": "none", "markeredgecolor": "#333333", "zorder": 3}
    axes.plot(*formula.start, marker="o", markersize=6, **{**edge, "markerfacecolor": "white"})
    axes.plot(*formula.lowest, marker="*", markersize=12, **{**edge, "markerfacecolor": "#333333"})
    axes.set_xlim(*formula.x_range)
    axes.set_ylim(*formula.y_range)
    axes.set_title(f"{formula.name}\n{way.steps[-1]} steps, lr={way.lr:g}", fontsize=10)
