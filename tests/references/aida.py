"""Aida."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def aida(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Zhang et al. 2022, algorithm 1, with two projections, made one after the other."""
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    m, v, t = 0 * w, 0 * w, 0
    for g in gradients:
        if g is not None:
            t += 1
            w = w - lr * (weight_decay * w)
            m = beta1 * m + (1 - beta1) * g
            along_g, along_m = g, m
            for _ in range(2):
                product = numpy.sum(along_g * along_m)
                # Of vectors that are 0, or as good as that, all projections are.
                tiny = numpy.finfo(w.dtype).tiny
                g_share = product / max(numpy.sum(along_g**2), tiny)
                m_share = product / max(numpy.sum(along_m**2), tiny)
                along_g, along_m = g_share * along_g, m_share * along_m
            v = beta2 * v + (1 - beta2) * (along_m - along_g) ** 2 + eps
            root = (numpy.sqrt(v) + eps) / numpy.sqrt(1 - beta2**t)
            w = w - lr * m / (1 - beta1**t) / root
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import Aida

    return Aida(params, weight_decouple=True, **options)


REFERENCES = [
    Reference(
        gradstep.Aida,
        gradstep.aida,
        aida,
        extra=[
            {},
            {"lr": 0.01, "betas": (0.8, 0.99), "weight_decay": 0.1, "maximize": True},
            {"lr": 0.01, "betas": (0.95, 0.9), "eps": 1e-4},
        ],
        takes_complex=False,
        elementwise=False,
        oracle=oracle,
    ),
]
