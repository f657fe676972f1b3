"""Grams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def grams(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Cao et al. 2024, algorithm 1."""
    m, v, t = 0 * w, 0 * w, 0
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            t += 1
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g**2
            u = m / (1 - beta1**t) / (numpy.sqrt(v / (1 - beta2**t)) + eps)
            w = w - lr * (numpy.sign(g) * numpy.abs(u) + weight_decay * w)
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import Grams

    return Grams(params, **options)


REFERENCES = [
    Reference(
        gradstep.Grams,
        gradstep.grams,
        grams,
        extra=[
            {},
            {"lr": 0.01, "betas": (0.8, 0.9), "eps": 0.01, "weight_decay": 0.1, "maximize": True},
        ],
        oracle=oracle,
    ),
]
