"""The optimizers that the commands know by name, with a learning rate that suits LeNet."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

import gradstep
from gradstep.lab.errors import UnknownOptimizer


@dataclass(frozen=True)
class Choice:
    """An optimizer by its name on the command line.

    ``make(params, lr=…)`` returns the optimizer; ``lr`` is the learning rate to begin with, found
    by trial on the digits; ``meaning`` says in a sentence what it does.
    """

    make: Callable[..., gradstep.Optimizer]
    lr: float
    meaning: str


CHOICES: dict[str, Choice] = {
    "sgd": Choice(gradstep.SGD, 0.1, "weight -= lr * gradient, nothing else"),
    "momentum": Choice(
        partial(gradstep.SGD, momentum=0.9), 0.02, "SGD that keeps some of its speed, as a ball"
    ),
    "nesterov": Choice(
        partial(gradstep.SGD, momentum=0.9, nesterov=True), 0.02, "momentum that looks ahead"
    ),
    "adam": Choice(gradstep.Adam, 0.002, "momentum, with a step size of its own for each weight"),
    "adamw": Choice(gradstep.AdamW, 0.002, "Adam that also shrinks each weight a little"),
    "rmsprop": Choice(gradstep.RMSprop, 0.001, "divides by the recent size of the gradient"),
    "adagrad": Choice(gradstep.Adagrad, 0.02, "divides by the size of all gradients so far"),
    "lion": Choice(gradstep.Lion, 0.0003, "only the sign of a momentum counts"),
}

DEFAULT = "adamw"


def check_name(name: str) -> str:
    """Return ``name`` if it is one of :data:`CHOICES`, else raise UnknownOptimizer."""
    if name in CHOICES:
        return name
    near = difflib.get_close_matches(name.lower(), CHOICES, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(CHOICES)}"
    raise UnknownOptimizer(f"unknown optimizer {name!r}: {hint}")


def make_optimizer(
    name: str, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float | None = None
) -> gradstep.Optimizer:
    """Make the optimizer ``name`` for ``params``; ``lr`` as in :data:`CHOICES` if None."""
    choice = CHOICES[check_name(name)]
    return choice.make(params, lr=choice.lr if lr is None else lr)
