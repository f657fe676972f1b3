"""VSGD."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def vsgd(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 0.1,
    ghattg: float = 30.0,
    ps: float = 1e-8,
    tau1: float = 0.81,
    tau2: float = 0.9,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Chen et al. 2024, algorithm 1."""
    mean, bg, bhg, t = 0 * w, 0 * w, 0 * w, 0
    shape = 2 * ps + 1 + 1e-4
    for g in gradients:
        if g is not None:
            t += 1
            if t == 1:
                sg, shg = 0 * w + 2 * ps / (shape - 1), 0 * w + 2 * ghattg * ps / (shape - 1)
            else:
                sg, shg = bg / shape, bhg / shape
            before, mean = mean, (shg * mean + sg * g) / (sg + shg)
            square = mean**2 + sg * shg / (sg + shg)
            rate1, rate2 = w.dtype.type(t) ** -tau1, w.dtype.type(t) ** -tau2
            bg = (1 - rate1) * bg + rate1 * (2 * ps + square - 2 * mean * before + before**2)
            bhg = (1 - rate2) * bhg + rate2 * (2 * ghattg * ps + square - 2 * g * mean + g**2)
            w = w - lr * (mean / (numpy.sqrt(square) + eps) + weight_decay * w)
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import VSGD

    return VSGD(params, **options)


REFERENCES = [
    Reference(
        gradstep.VSGD,
        gradstep.vsgd,
        vsgd,
        extra=[
            {},
            {"lr": 0.01, "ghattg": 5.0, "ps": 1e-3, "tau1": 0.5, "tau2": 0.6, "weight_decay": 0.1},
        ],
        oracle=oracle,
    ),
]
