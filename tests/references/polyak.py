"""Polyak's step size and ALI-G."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy

import gradstep
from reference_row import Array, Reference, loss_at


def polyak_sgd(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1.0,
    f_min: float = 0.0,
    eps: float = 1e-8,
) -> Iterator[Array]:
    """Loizou et al. 2020, SPS_max with c = 1."""
    for t, g in enumerate(gradients):
        if g is not None:
            rate = min((loss_at(t) - f_min) / (float(numpy.sum(g**2)) + eps), lr)
            w = w - w.dtype.type(rate) * g
        yield w


def alig(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 0.1,
    momentum: float = 0.0,
    eps: float = 1e-6,
) -> Iterator[Array]:
    """Berrada et al. 2019, algorithms 1 and 2."""
    v = 0 * w
    for t, g in enumerate(gradients):
        if g is not None:
            rate = w.dtype.type(min(loss_at(t) / (float(numpy.sum(g**2)) + eps), lr))
            v = momentum * v - rate * g
            w = w - rate * g + momentum * v
        yield w


REFERENCES = [
    Reference(
        gradstep.PolyakSGD,
        gradstep.polyak_sgd,
        polyak_sgd,
        extra=[{}, {"lr": 0.05, "f_min": 0.5, "eps": 0.1}],
        takes_complex=False,
        elementwise=False,
        coupled=True,
    ),
    Reference(
        gradstep.AliG,
        gradstep.alig,
        alig,
        extra=[{}, {"lr": 0.5, "momentum": 0.75, "eps": 0.1}],
        takes_complex=False,
        elementwise=False,
        coupled=True,
    ),
]
