"""The size of an update against the size of the weights: a learning rate that is far off."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gradstep.optimizer.optimizer import Optimizer, planner_of
from gradstep.program.shards import local
from gradstep.program.weight_formats import NARROW, WEIGHT_FORMATS, in_bytes
from gradstep.sight.mistakes.backward import Backward
from gradstep.sight.mistakes.finding import Mistake
from gradstep.sight.mistakes.watched import Family, Held, Watched, values_of

LEARNING_RATE_TOO_HIGH = Mistake(
    "learning-rate-too-high",
    when="a step moves the weights by more than 10 % of their size, or one of the first by three "
    "times their size, and the loss does not come down",
    why="training jumps about or diverges",
    write="a smaller lr: begin with a tenth",
    severity="advice",
)
LEARNING_RATE_TOO_LOW = Mistake(
    "learning-rate-too-low",
    when="a step moves the weights by less than a millionth of their size",
    why="training takes thousands of times as many steps as it needs",
    write="a larger lr: begin with ten times as much",
    severity="advice",
)
UPDATES_ROUND_AWAY = Mistake(
    "updates-round-away",
    when="float16 or bfloat16 weights stay as they are though they have a gradient",
    why="an update that is smaller than half the distance between two numbers of the type is "
    "rounded to nothing",
    write='low_precision="remainder" in gradstep\'s optimizers, or the weights in float32, with '
    "torch.autocast for the forward pass",
)

#: Usual is about 1e-3 a step. An order of magnitude off, with another one for doubt:
_TOO_LARGE, _TOO_SMALL = 0.1, 1e-6
_LOOKS = 5
#: So many of the first looks are at how long the first steps are.
_LEAP = 3
_FAR = 3.0
#: Of the weights that had a gradient, how many may stay the same before that is worth a word.
_ROUNDED = 0.95


class Sizes(Family):
    """Update-to-weight ratios, and updates that low precision rounds away."""

    order = 9

    def __init__(self, diagnosis: Any) -> None:
        super().__init__(diagnosis)
        self._before: list[tuple[Held, Tensor]] = []
        self._ratios: dict[int, list[float]] = {}  # at the looks so far
        self._rates: dict[int, list[float]] = {}
        self._rounded: dict[int, int] = {}
        self._losses: dict[int, list[float]] = {}

    def before_look(self, watched: Watched) -> None:
        self._before = []
        if watched.has_closure:
            return  # a line search of its own finds the length of its steps
        if watched.inner or getattr(watched.optimizer, "found_inf", None) is not None:
            return
        backward = self.diagnosis.family(Backward)
        if backward is not None and backward.loss is not None and not backward.loss.is_complex():
            self._losses.setdefault(id(watched), []).append(float(backward.loss))
        for held in watched.held:
            p = held.parameter
            if p.dim() >= 2 and p.requires_grad and p.grad is not None:
                values = _numbers(watched, held)
                if values is not None:
                    self._before.append((held, values))

    def after_look(self, watched: Watched) -> None:
        before, self._before = self._before, []
        if not before or any(h not in watched.held for h, _ in before):
            return
        olds, news = [], []
        way = _way(watched.optimizer)
        for held, old in before:
            new = _numbers(watched, held)
            if new is None or new.shape != old.shape:
                continue
            if not way.startswith("stochastic") and held.parameter.dtype in NARROW:
                self._rounding(watched, held, old, new, way)
            olds.append(old.float())
            news.append(new.float())
        moves = torch._foreach_sub(news, olds) if olds else []
        ratios = [
            moved / size
            for size, moved in zip(_norms(olds), _norms(moves), strict=True)
            if 0 < size < float("inf") and 0 <= moved < float("inf")
        ]
        if ratios:
            self._ratio(watched, statistics.median(ratios))

    def _ratio(self, watched: Watched, ratio: float) -> None:
        ratios = self._ratios.setdefault(id(watched), [])
        rates = self._rates.setdefault(id(watched), [])
        ratios.append(ratio)
        rates.append(max(float(group.get("lr", 0.0)) for group in watched.optimizer.param_groups))
        if len(ratios) > _LEAP and self.leapt(watched):
            self.say_leap(watched)
        elif (
            min(ratios[-_LOOKS:]) > _TOO_LARGE
            and len(ratios) >= _LOOKS
            and not self._is_learning(watched)
        ):
            usual = statistics.median(ratios[-_LOOKS:])
            self._say_rate(
                watched,
                LEARNING_RATE_TOO_HIGH,
                f"a step moves the weights by {usual:.0%} of their size; about 0.1 % is usual",
                f"a smaller lr than {rates[-1]:g}: begin with a tenth, {rates[-1] / 10:.1g}",
            )
        # Late in a training steps are small because little is left to learn; in a warm-up because
        # the rate still grows.
        elif (
            len(ratios) == _LOOKS
            and 0 < max(ratios) < _TOO_SMALL
            and min(rates) > 0
            and rates[-1] <= rates[0]
            and not any(f.name == "vanishing-gradient" for f in self.diagnosis.findings)
        ):
            usual = statistics.median(ratios)
            self._say_rate(
                watched,
                LEARNING_RATE_TOO_LOW,
                f"a step moves the weights by {usual:.0e} of their size; about 1e-3 is usual",
                f"a larger lr than {rates[-1]:g}: begin with ten times as much, {rates[-1] * 10:g}",
            )

    def _is_learning(self, watched: Watched) -> bool:
        """Whether the loss has come down: some networks do not mind how long their weights are."""
        losses = self._losses.get(id(watched), [])
        if len(losses) < _LEAP:
            return False
        first, last = losses[0], statistics.median(losses[-3:])
        return last < first - 0.05 * abs(first)

    def leapt(self, watched: Watched) -> bool:
        """Whether one of the first steps was far longer than the weights themselves."""
        return max(self._ratios.get(id(watched), [0.0])[:_LEAP]) >= _FAR

    def say_leap(self, watched: Watched) -> None:
        """A step of such a length is a learning rate too high, unless the network learns."""
        if self._is_learning(watched):
            return
        longest = max(self._ratios[id(watched)][:_LEAP])
        rate = self._rates[id(watched)][0]
        self._say_rate(
            watched,
            LEARNING_RATE_TOO_HIGH,
            f"one of the first steps moved the weights by {longest:.0%} of their size; about 0.1 % "
            "is usual",
            f"a much smaller lr than {rate:g}: begin with {rate / (100 * longest):.0e}",
        )

    def _say_rate(self, watched: Watched, mistake: Mistake, seen: str, write: str) -> None:
        self.diagnosis.report(
            mistake,
            f"{seen} ({len(self._ratios[id(watched)])} looks)",
            write=write,
            watched=watched,
        )

    def _rounding(self, watched: Watched, held: Held, old: Tensor, new: Tensor, way: str) -> None:
        gradient = None if held.parameter.grad is None else values_of(held.parameter.grad)
        if gradient is None or gradient.shape != old.shape or not float(held.group.get("lr", 0)):
            return
        had = gradient != 0
        count = int(had.sum())
        if not count:
            return
        same = int(((new == old) & had).sum()) / count
        looks = self._rounded[id(held)] = (
            self._rounded.get(id(held), 0) + 1 if same >= _ROUNDED else 0
        )
        if looks >= _LOOKS:
            name = self.diagnosis.name_of(held.parameter)
            dtype = str(old.dtype).removeprefix("torch.")
            write = UPDATES_ROUND_AWAY.write
            if way != "nearest":
                rate = float(held.group["lr"])
                write = f"a larger lr than {rate:g}, which is too small even with {way!r}"
            self.diagnosis.report(
                UPDATES_ROUND_AWAY,
                f"{same:.0%} of the weights of {name}, which are {dtype}, stay as they are at a "
                f"step, though they have a gradient ({looks} looks)",
                why=f"an update that is smaller than half the distance between two {dtype} numbers "
                "is rounded to nothing",
                write=write,
                parameter=name,
                watched=watched,
            )


def _norms(tensors: Any) -> list[float]:
    """The norms of all, in few calls and with one wait for a device."""
    if not tensors:
        return []
    norms: list[float] = torch.stack([n.cpu() for n in torch._foreach_norm(tensors)]).tolist()
    return norms


def _way(optimizer: Any) -> str:
    """How an optimizer of this package keeps weights of 16 bits; others round to the nearest."""
    inside = getattr(optimizer, "parts", None)
    parts = list(inside.values()) if isinstance(inside, Mapping) else [optimizer]
    ways = {planner_of(part).rule.low_precision for part in parts if isinstance(part, Optimizer)}
    return min(ways, key=lambda way: (way == "nearest", way), default="nearest")


def _numbers(watched: Watched, held: Held) -> Tensor | None:
    """Some of a parameter's numbers, with all digits that the optimizer keeps of them."""
    p = held.parameter
    values, entry = values_of(p), watched.optimizer.state.get(p, {})
    for formats in WEIGHT_FORMATS.values():
        for format in formats:
            beside = [entry.get(name) for name in format.beside]
            if beside and format.dtype == p.dtype and all(isinstance(t, Tensor) for t in beside):
                more: list[Any] = [values_of(format.like_weight(local(t))) for t in beside]
                if values is not None and all(
                    m is not None and m.shape == values.shape for m in more
                ):
                    in_two = format.extra[0][1] == torch.uint8
                    more = [in_bytes(m) for m in more] if in_two else more
                    return format.decode([values, *more], torch.float32)
    return values
