"""``gradstep.lr_find``: the range test for learning rates of Smith (2015, arXiv:1506.01186)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from gradstep.optimizer.observer import unobserved
from gradstep.sight.armed import StepExplanation
from gradstep.sight.restored import restored

#: A loss so many times the smallest one before it has diverged.
DIVERGED = 4.0


@dataclass(frozen=True)
class LrFind:
    """What a range test found.

    ``print()`` shows it in a line.

    Attributes:
        lrs: the learning rates that were tried, rising.
        losses: the loss of the batch at each, before its step.
        smoothed: the same, averaged over the steps around, the nearer the more; where a loss is
            above all that the test began with, that takes its place.
        steepest: where the smoothed loss falls fastest against the logarithm of the rate; None
            where it never falls by more than the first losses differ among each other.
        tenth_of_minimum: a tenth of the rate at which the smoothed loss is smallest; None likewise.
        diverged: whether the test was broken off since the loss grew beyond bounds.
    """

    lrs: list[float]
    losses: list[float]
    smoothed: list[float] = field(repr=False)
    steepest: float | None
    tenth_of_minimum: float | None
    diverged: bool

    @property
    def suggestion(self) -> float | None:
        """The learning rate to begin with: that of the steepest descent."""
        return self.steepest

    def __str__(self) -> str:
        tried = f"{len(self.lrs)} steps from {self.lrs[0]:.1e} to {self.lrs[-1]:.1e}"
        end = f"diverged at {self.lrs[-1]:.1e}" if self.diverged else "did not diverge"
        if self.steepest is None or self.tenth_of_minimum is None:
            return f"lr_find: no suggestion, the loss never fell beyond its noise ({tried}, {end})"
        return (
            f"lr_find: {self.steepest:.1e} (steepest descent), {self.tenth_of_minimum:.1e} (a "
            f"tenth of the minimum) ({tried}, {end})"
        )

    def plot(self, path: str | Path) -> None:
        """Draw loss against learning rate into a file; its ending says the format.

        Raises:
            ImportError: matplotlib is not installed.
            OSError, ValueError: a file that cannot be written, or an ending without a format.
        """
        from gradstep.sight.lr_find_picture import draw_lr_find
        from gradstep.sight.watch_pictures import write

        found = (self.lrs, self.losses, self.smoothed, self.steepest, self.tenth_of_minimum)
        write(lambda: draw_lr_find(*found), path)


def lr_find(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[..., Any],
    data: Iterable[Any] | None = None,
    *,
    lowest: float = 1e-6,
    highest: float = 10.0,
    steps: int = 100,
    smoothing: float = 0.8,
    verbose: bool = True,
) -> LrFind:
    """Find a learning rate: train for some steps while it rises, and see where the loss falls.

    The rate rises from ``lowest`` to ``highest`` by one factor a step. The test ends early where
    the loss diverges. Afterwards all is as before, bit for bit: weights, buffers, gradients, modes,
    the optimizer's states and options, and every random generator; also if something raises
    midway. Where groups have different rates, that of the first is meant, and the others keep their
    proportion to it. Modules stay in the mode that they are in: call ``model.train()`` first.

    Args:
        model: the network.
        optimizer: any :class:`torch.optim.Optimizer` over its parameters. Schedulers do not notice.
        loss: with ``data``, a function of the model's output and the targets; without, a closure as
            ``optimizer.step`` takes it: it calls ``zero_grad()``, works out the loss of a batch of
            its own choice, calls ``backward()`` and returns the loss.
        data: gives ``(inputs, targets)``, a batch a step; begun anew where it ends.
        lowest, highest: the first and the last learning rate.
        steps: how many.
        smoothing: how much less each further step weighs in the average, 0 to below 1.
        verbose: print a line with what was found.

    Returns:
        an :class:`LrFind`, with ``.suggestion`` and ``.plot(path)``.

    Raises:
        TypeError, ValueError: an argument that does not fit, data without a batch, or a loss that
            is no number.

    Example::

        found = gradstep.lr_find(model, optimizer, loss_function, loader)
        found.plot("lr.png")
    """
    _check(model, optimizer, loss, lowest, highest, steps, smoothing)
    lrs, losses = list[float](), list[float]()
    average, best, diverged = 0.0, math.inf, False
    factor = (highest / lowest) ** (1 / (steps - 1))
    with _unseen(optimizer), restored(model, optimizer, data):
        shares = _shares(optimizer)
        batches = None if data is None else _again_and_again(data)
        for number in range(steps):
            lr = lowest * factor**number
            _set_rates(optimizer, lr, shares)
            batch = None if batches is None else next(batches)
            value = _step(model, optimizer, loss, batch)
            if number == 0 and not math.isfinite(value):
                raise ValueError(
                    f"the loss is {value} before the first step; nothing to learn from"
                )
            lrs.append(lr)
            losses.append(value)
            average = smoothing * average + (1 - smoothing) * value
            recent = average / (1 - smoothing ** (number + 1))
            if not math.isfinite(value) or recent > _bound(best):
                diverged = True
                break
            best = min(best, recent)
    smoothed = _smoothed(losses, smoothing)
    steepest, tenth = _suggestions(lrs, losses, smoothed)
    found = LrFind(lrs, losses, smoothed, steepest, tenth, diverged)
    if verbose:
        print(found)
    return found


def _bound(best: float) -> float:
    """The loss beyond which it has diverged; losses below zero are allowed."""
    return best + (DIVERGED - 1) * abs(best) if math.isfinite(best) else math.inf


def _step(model: nn.Module, optimizer: Any, loss: Callable[..., Any], batch: Any) -> float:
    values: list[float] = []

    def closure() -> Any:
        if batch is None:
            result = loss()
        else:
            optimizer.zero_grad()
            inputs, targets = batch
            result = loss(model(inputs), targets)
            _check_loss(result)
            result.backward()
        values.append(_value(result))
        return result

    # An optimizer that searches along a line calls it several times; the first is of this batch
    # with the weights as they were.
    with torch.enable_grad():
        optimizer.step(closure)
    if not values:
        raise TypeError(
            f"{type(optimizer).__name__}.step() did not call its closure. lr_find takes optimizers "
            "that do, as torch's do."
        )
    return values[0]


def _check_loss(result: Any) -> None:
    if not isinstance(result, Tensor) or result.numel() != 1:
        found = (
            f"a tensor of shape {tuple(result.shape)}"
            if isinstance(result, Tensor)
            else f"a {type(result).__name__}"
        )
        raise TypeError(f"the loss function returned {found}. Expected a tensor of one number.")


def _value(result: Any) -> float:
    if isinstance(result, Tensor) and result.numel() == 1:
        return float(result.detach())
    if isinstance(result, int | float):
        return float(result)
    raise TypeError(
        f"the closure returned {'None' if result is None else 'a ' + type(result).__name__}. "
        "Expected the loss: one number."
    )


def _again_and_again(data: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for batch in data:
            empty = False
            if not isinstance(batch, list | tuple) or len(batch) != 2:
                raise TypeError(
                    f"data gave a {type(batch).__name__}. Expected (inputs, targets); for another "
                    "kind of batch leave data out and give a closure as the loss."
                )
            yield batch
        if empty:
            raise ValueError("data gave no batch, or ended and could not be begun anew")


def _shares(optimizer: Any) -> list[float]:
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    if not all(rate > 0 for rate in rates):
        return [1.0] * len(rates)
    return [rate / rates[0] for rate in rates]


def _set_rates(optimizer: Any, lr: float, shares: list[float]) -> None:
    for group, share in zip(optimizer.param_groups, shares, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"] = torch.full_like(group["lr"], lr * share)
        else:
            group["lr"] = lr * share


@contextmanager
def _unseen(optimizer: Any) -> Iterator[None]:
    """Whoever of gradstep watches the optimizer does not see what is tried out within."""
    kinds = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    found = [hooks for kind in kinds if (hooks := getattr(optimizer, kind, None))]
    before = [dict(hooks) for hooks in found]
    for hooks in found:
        for key, hook in list(hooks.items()):
            if str(getattr(hook, "__module__", "")).startswith("gradstep.sight."):
                del hooks[key]
    try:
        with unobserved(optimizer, StepExplanation):
            yield
    finally:
        for hooks, own in zip(found, before, strict=True):
            hooks.clear()
            hooks.update(own)


def _smoothed(losses: list[float], smoothing: float) -> list[float]:
    # An average over the steps before alone would lag, and show each rate what others did.
    early = losses[: max(1, len(losses) // 5)]
    ceiling = max(value for value in early if math.isfinite(value))
    values = numpy.nan_to_num(numpy.array(losses), nan=ceiling, posinf=ceiling).clip(None, ceiling)
    places = numpy.arange(len(losses))
    weights = float(smoothing) ** numpy.abs(places[:, None] - places)
    return [float(value) for value in weights @ values / weights.sum(axis=1)]


def _suggestions(
    lrs: list[float], losses: list[float], smoothed: list[float]
) -> tuple[float | None, float | None]:
    lowest = int(numpy.argmin(smoothed))
    early = max(2, len(losses) // 5)
    noise = float(numpy.std([value for value in losses[:early] if math.isfinite(value)]))
    if lowest < 2 or not numpy.median(smoothed[:early]) - smoothed[lowest] > noise:
        return None, None
    slopes = numpy.gradient(numpy.array(smoothed), numpy.log(lrs))
    return lrs[int(numpy.argmin(slopes[:lowest]))], lrs[lowest] / 10


def _check(
    model: Any, optimizer: Any, loss: Any, lowest: Any, highest: Any, steps: Any, smoothing: Any
) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"lr_find() takes the model first; got a {type(model).__name__}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"lr_find() takes an optimizer second; got a {type(optimizer).__name__}. Expected a "
            "torch.optim.Optimizer."
        )
    if not callable(loss):
        raise TypeError(f"lr_find() takes a loss function third; got a {type(loss).__name__}")
    without = [i for i, g in enumerate(optimizer.param_groups) if "lr" not in g]
    if without:
        raise ValueError(f"group {without[0]} of {type(optimizer).__name__} has no lr to be found")
    if not 0 < lowest < highest < math.inf:
        raise ValueError(f"lowest={lowest!r}, highest={highest!r}; expected 0 < lowest < highest")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
        raise ValueError(f"steps={steps!r}; expected a whole number, 2 or more")
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing={smoothing!r}; expected a number from 0 to below 1")
    ours = {id(p) for p in model.parameters()}
    if not any(id(p) in ours for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(
            "the optimizer holds no parameter of the model. Make it of model.parameters()."
        )
