"""Fromage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy
import torch

import gradstep
from reference_row import Array, Reference, f64


def fromage(w: Array, gradients: Iterable[Array | None], *, lr: float = 0.01) -> Iterator[Array]:
    """Bernstein et al. 2020, algorithm 1, with a ratio of 1 where it has none."""
    for g in gradients:
        if g is not None:
            size, slope = numpy.sqrt(numpy.sum(w**2)), numpy.sqrt(numpy.sum(g**2))
            ratio = size / slope if size > 0 and slope > 0 else 1
            w = (w - lr * ratio * g) / numpy.sqrt(1 + w.dtype.type(lr) ** 2)
        yield w


def pytorch_optimizer_fromage(params: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    from pytorch_optimizer import Fromage

    return Fromage(params, **options)


REFERENCES = [
    Reference(
        gradstep.Fromage,
        gradstep.fromage,
        fromage,
        extra=[{}, {"lr": 0.1, "maximize": True}, {"lr": f64(0.05)}],
        takes_complex=False,
        elementwise=False,
        bound=16.0,  # each step rounds the whole weight
        shrinks=True,
        oracle=pytorch_optimizer_fromage,
    ),
]
