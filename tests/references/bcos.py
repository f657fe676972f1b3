"""BCOS."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def bcos(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    beta: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float = 0.1,
) -> Iterator[Array]:
    """Jiang & Xiao 2025, algorithm 3: the conditional estimator."""
    m = 0 * w
    beta = w.dtype.type(beta)
    for g in gradients:
        if g is not None:
            v = (3 * beta**2 - 2 * beta**3) * m**2 + (1 - beta) ** 2 * g**2
            v = v + 2 * beta * (1 - beta) ** 2 * m * g
            m = beta * m + (1 - beta) * g
            w = w - lr * (m / (numpy.sqrt(v) + eps) + weight_decay * w)
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import BCOS

    return BCOS(params, **options)


REFERENCES = [
    Reference(
        gradstep.BCOS,
        gradstep.bcos,
        bcos,
        extra=[{}, {"lr": 0.01, "beta": 0.75, "eps": 0.01, "weight_decay": 0.5, "maximize": True}],
    ),
]
