"""AdamG."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def adamg(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1.0,
    betas: tuple[float, float, float] = (0.95, 0.999, 0.95),
    p: float = 0.2,
    q: float = 0.24,
    eps: float = 1e-8,
) -> Iterator[Array]:
    """Pan et al. 2024, algorithm 1."""
    m, v, r, t = 0 * w, 0 * w, 0 * w, 0
    beta1, beta2, beta3 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            t += 1
            v = beta2 * v + (1 - beta2) * g**2
            r = beta3 * r + (1 - beta3) * w.dtype.type(p) * v ** w.dtype.type(q)
            m = beta1 * m + (1 - beta1) * r * g
            rate = min(lr, 1 / t**0.5)
            w = w - rate * m / (1 - beta1**t) / (numpy.sqrt(v / (1 - beta2**t)) + eps)
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import AdamG

    return AdamG(params, **options)


REFERENCES = [
    Reference(
        gradstep.AdamG,
        gradstep.adamg,
        adamg,
        extra=[{}, {"lr": 0.25, "betas": (0.75, 0.9, 0.5), "p": 0.5, "q": 0.5, "eps": 0.01}],
        oracle=oracle,
    ),
]
