"""AdamS, stable weight decay. All weights are one vector here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference, f64


def adams(
    w: Array,
    gradients: Iterable[Array],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
) -> Iterator[Array]:
    """Xie et al. 2020, algorithm 3."""
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    m, v = 0 * w, 0 * w
    for t, g in enumerate(gradients, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        v_hat = v / (1 - beta2**t)
        decay = lr * weight_decay / (numpy.sqrt(numpy.mean(v_hat)) + eps) * w
        w = w - (lr * (m / (1 - beta1**t)) / (numpy.sqrt(v_hat) + eps) + decay)
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import AdamS

    return AdamS(params, **options)


REFERENCES = [
    Reference(
        gradstep.AdamS,
        gradstep.adams,
        adams,
        extra=[
            {},
            {"lr": 0.01, "betas": (0.8, 0.99), "weight_decay": 0.1, "maximize": True},
            {"lr": f64(0.01), "weight_decay": 0.0, "eps": 1e-3},
        ],
        takes_complex=False,
        elementwise=False,
        coupled=True,
        oracle=oracle,
    ),
]
