"""Optimistic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy

import gradstep
from reference_row import Array, Reference


def optimistic_sgd(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 0.01,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> Iterator[Array]:
    """Mokhtari et al. 2019, equation 5, with weights."""
    last = None
    for g in gradients:
        if g is not None:
            change = numpy.zeros_like(g) if last is None else g - last
            last = g
            w = w - lr * (alpha * g + beta * change)
        yield w


REFERENCES = [
    Reference(
        gradstep.OptimisticSGD,
        gradstep.optimistic_sgd,
        optimistic_sgd,
        extra=[{}, {"lr": 0.1, "alpha": 0.5, "beta": 2.0, "maximize": True}],
    ),
]
