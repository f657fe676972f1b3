"""MADGRAD."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def madgrad(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-2,
    momentum: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Defazio & Jelassi 2021, algorithm 1, with eps added to the learning rate."""
    start, s, v, k = w, 0 * w, 0 * w, 0
    c = 1 - w.dtype.type(momentum)
    for g in gradients:
        if g is not None:
            g = g + weight_decay * w
            rate = (lr + eps) * numpy.sqrt(w.dtype.type(k + 1))
            s = s + rate * g
            v = v + rate * g**2
            z = start - s / (numpy.cbrt(v) + eps)
            w = (1 - c) * w + c * z
            k += 1
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from madgrad import MADGRAD

    return MADGRAD(params, **options)


REFERENCES = [
    Reference(
        gradstep.MADGRAD,
        gradstep.madgrad,
        madgrad,
        extra=[
            {},
            {"lr": 0.05, "momentum": 0.5, "eps": 1e-3, "weight_decay": 0.1, "maximize": True},
        ],
        oracle=oracle,
    ),
]
