"""NAdamW."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def nadamw(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
) -> Iterator[Array]:
    """Dahl et al. 2023, appendix on NAdamW."""
    m, v, t = 0 * w, 0 * w, 0
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            t += 1
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g**2
            m_hat = (beta1 * m + (1 - beta1) * g) / (1 - beta1**t)
            v_hat = v / (1 - beta2**t)
            w = w - lr * (m_hat / (numpy.sqrt(v_hat) + eps) + weight_decay * w)
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from timm.optim.nadamw import NAdamW

    return NAdamW(params, **options)


REFERENCES = [
    Reference(
        gradstep.NAdamW,
        gradstep.nadamw,
        nadamw,
        extra=[
            {},
            {"lr": 0.01, "betas": (0.8, 0.9), "eps": 0.01, "weight_decay": 0.0, "maximize": True},
        ],
        oracle=oracle,
    ),
]
