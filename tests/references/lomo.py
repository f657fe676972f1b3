"""LOMO and AdaLomo."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference, f64


def clipped(g: Array, most: float) -> Array:
    return numpy.clip(g, -most, most) if most else g


def lomo(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    clip_value: float = 0.0,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Lv et al. 2023, algorithm 1: each weight moves by its gradient alone."""
    for g in gradients:
        if g is not None:
            w = w * (1 - lr * w.dtype.type(weight_decay))
            w = w - lr * clipped(g, clip_value)
        yield w


def adalomo(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    beta2_decay: float = -0.8,
    eps1: float = 1e-30,
    eps2: float = 1e-3,
    d: float = 1.0,
    clip_value: float = 0.0,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Lv et al. 2023, algorithm 1, with the decay rate and bounds of the authors' code."""
    r, c, t = 0 * w, 0 * w, 0

    def size(x: Array) -> Any:
        return numpy.sqrt(numpy.mean(x**2))

    for g in gradients:
        if g is not None:
            t += 1
            g = clipped(g, clip_value)
            new = w.dtype.type(t) ** w.dtype.type(beta2_decay)
            square = g**2 + eps1
            if w.ndim < 2:
                r = (1 - new) * r + new * square
                u = g / numpy.sqrt(r)
            else:
                r = (1 - new) * r + new * numpy.mean(square, -1, keepdims=True)
                c = (1 - new) * c + new * numpy.mean(square, -2, keepdims=True)
                share = r[..., :1] / numpy.mean(r[..., :1], -2, keepdims=True)
                u = g / numpy.sqrt(share) / numpy.sqrt(c[..., :1, :])
            u = u / max(1, size(u) / d)
            rate = lr * max(eps2, size(w))
            w = w * (1 - rate * w.dtype.type(weight_decay))
            w = w - rate * u
        yield w


REFERENCES = [
    Reference(
        gradstep.LOMO,
        gradstep.lomo,
        lomo,
        extra=[
            {},
            {"lr": 0.1, "weight_decay": 0.1, "maximize": True},
            {"lr": f64(0.05), "clip_value": 0.5},
        ],
    ),
    Reference(
        gradstep.AdaLomo,
        gradstep.adalomo,
        adalomo,
        extra=[
            {},
            {"lr": 0.05, "beta2_decay": -0.5, "d": 0.5, "weight_decay": 0.1, "maximize": True},
            {"lr": f64(0.02), "clip_value": 0.5, "eps2": 0.1},
        ],
        takes_complex=False,
        elementwise=False,
        by_rows=True,
    ),
]
