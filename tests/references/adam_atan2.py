"""Adam-atan2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def adam_atan2(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    a: float = 1.27,
    b: float = 1.0,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Everett et al. 2024, section 4.3."""
    m, v, t = 0 * w, 0 * w, 0
    beta1, beta2 = (w.dtype.type(beta) for beta in betas)
    for g in gradients:
        if g is not None:
            t += 1
            w = w - lr * w.dtype.type(weight_decay) * w
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g**2
            angle = numpy.arctan2(m / (1 - beta1**t), b * numpy.sqrt(v / (1 - beta2**t)))
            w = w - lr * w.dtype.type(a) * angle
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from adam_atan2_pytorch import AdamAtan2

    return AdamAtan2(params, **options)


REFERENCES = [
    Reference(
        gradstep.AdamAtan2,
        gradstep.adam_atan2,
        adam_atan2,
        extra=[
            {},
            {"lr": 0.01, "betas": (0.8, 0.9), "a": 1.0, "b": 2.0, "weight_decay": 0.1},
        ],
        oracle=oracle,
    ),
]
