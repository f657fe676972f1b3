"""TAM and AdaTAM."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def cosine(m: Array, g: Array) -> Any:
    lengths = numpy.sqrt(numpy.sum(m**2)) * numpy.sqrt(numpy.sum(g**2))
    return numpy.sum(m * g) / lengths if lengths else 0.0


def tam(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    momentum: float = 0.9,
    decay_rate: float = 0.9,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Malviya et al. 2024, algorithm 1."""
    m, s = 0 * w, 0.0
    for g in gradients:
        if g is not None:
            s = decay_rate * s + (1 - decay_rate) * float(cosine(m, g))
            m = momentum * m + w.dtype.type((1 + s) / 2 + eps) * g
            w = w - lr * (m + weight_decay * w)
            s = float(numpy.float32(s))  # as it is kept
        yield w


def adatam(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    decay_rate: float = 0.9,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Malviya et al. 2024, section 3.2."""
    m, v, s = 0 * w, 0 * w, 0.0
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            s = decay_rate * s + (1 - decay_rate) * float(cosine(m, g))
            m = beta1 * m + w.dtype.type((1 + s) / 2 + eps) * g
            v = beta2 * v + (1 - beta2) * g**2
            w = w - lr * (m / (numpy.sqrt(v) + eps) + weight_decay * w)
            s = float(numpy.float32(s))
        yield w


REFERENCES = [
    Reference(
        gradstep.TAM,
        gradstep.tam,
        tam,
        extra=[
            {},
            {
                "lr": 0.05,
                "momentum": 0.75,
                "decay_rate": 0.5,
                "weight_decay": 0.1,
                "maximize": True,
            },
        ],
        takes_complex=False,
        elementwise=False,
    ),
    Reference(
        gradstep.AdaTAM,
        gradstep.adatam,
        adatam,
        extra=[
            {},
            {"lr": 0.01, "betas": (0.75, 0.9), "decay_rate": 0.5, "eps": 0.01, "weight_decay": 0.1},
        ],
        takes_complex=False,
        elementwise=False,
    ),
]
