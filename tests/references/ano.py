"""Ano."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def ano(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.92, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Kegreisz 2025, algorithm 1."""
    m, v, t = 0 * w, 0 * w, 0
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            t += 1
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * numpy.sign(g**2 - v) * g**2
            u = numpy.abs(g) * numpy.sign(m) / (numpy.sqrt(v / (1 - beta2**t)) + eps)
            w = w - lr * (u + weight_decay * w)
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import Ano

    return Ano(params, **options)


REFERENCES = [
    Reference(
        gradstep.Ano,
        gradstep.ano,
        ano,
        extra=[{}, {"lr": 0.01, "betas": (0.75, 0.9), "eps": 0.01, "weight_decay": 0.1}],
        oracle=oracle,
    ),
]
