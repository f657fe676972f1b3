"""MoMo. All weights are one vector here."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference, f64, loss_at


def momo(
    w: Array,
    gradients: Iterable[Array],
    *,
    lr: float = 1.0,
    beta: float = 0.9,
    weight_decay: float = 0.0,
    lb: float = 0.0,
) -> Iterator[Array]:
    """Schaipp et al. 2023, algorithm 1, with d, f and gamma starting as the first of them."""
    beta = w.dtype.type(beta)
    shrink = 1 + lr * weight_decay
    for t, g in zip(itertools.count(), gradients):
        loss = loss_at(t)
        if t == 0:
            d, f, gamma = g, loss, numpy.sum(g * w)
        d = beta * d + (1 - beta) * g
        f = beta * f + (1 - beta) * loss
        gamma = beta * gamma + (1 - beta) * numpy.sum(g * w)
        height = shrink * (f - lb - gamma) + numpy.sum(d * w)
        w = (w - min(lr, max(height, 0) / numpy.sum(d**2)) * d) / shrink
        yield w


def _momo(parameters: Any, options: dict[str, Any]) -> Any:
    from momo import Momo

    return Momo(parameters, **options)


REFERENCES = [
    Reference(
        gradstep.Momo,
        gradstep.momo,
        momo,
        extra=[{}, {"lr": f64(0.1), "beta": 0.5, "weight_decay": 0.1, "lb": -1.0}],
        takes_complex=False,
        elementwise=False,
        coupled=True,
        oracle=_momo,
    ),
]
