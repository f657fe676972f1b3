"""Lion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference, f64


def lion(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Chen et al. 2023, algorithm 2."""
    m = 0 * w
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            c = beta1 * m + (1 - beta1) * g
            w = w - lr * (numpy.sign(c) + weight_decay * w)
            m = beta2 * m + (1 - beta2) * g
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from lion_pytorch import Lion

    return Lion(params, **options)


REFERENCES = [
    Reference(
        gradstep.Lion,
        gradstep.lion,
        lion,
        extra=[
            {},
            {"lr": 0.01, "weight_decay": 0.1},
            {"lr": 0.01, "betas": (0.95, 0.98), "maximize": True},
            {"lr": f64(0.001), "betas": (0.0, 0.5), "weight_decay": 1.0},
        ],
        oracle=oracle,
    ),
]
