"""PNM and AdaPNM."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def pnm(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 1.0),
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Xie et al. 2021, algorithm 2: the momenta take turns."""
    m, t = [0 * w, 0 * w], 0
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            t += 1
            own, other = t % 2, 1 - t % 2
            m[own] = beta1**2 * m[own] + (1 - beta1**2) * g
            u = ((1 + beta2) * m[own] - beta2 * m[other]) / numpy.hypot(1 + beta2, beta2)
            w = w - lr * (u + weight_decay * w)
        yield w


def adapnm(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float, float] = (0.9, 0.999, 1.0),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = True,
) -> Iterator[Array]:
    """Xie et al. 2021, algorithm 3."""
    m, v, largest, t = [0 * w, 0 * w], 0 * w, 0 * w, 0
    beta1, beta2, beta3 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            t += 1
            own, other = t % 2, 1 - t % 2
            m[own] = beta1**2 * m[own] + (1 - beta1**2) * g
            v = beta2 * v + (1 - beta2) * g**2
            largest = numpy.maximum(largest, v)
            u = ((1 + beta3) * m[own] - beta3 * m[other]) / numpy.hypot(1 + beta3, beta3)
            root = numpy.sqrt((largest if amsgrad else v) / (1 - beta2**t)) + eps
            w = w - lr * (u / (1 - beta1**t) / root + weight_decay * w)
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import PNM

    return PNM(params, **options)


REFERENCES = [
    Reference(
        gradstep.PNM,
        gradstep.pnm,
        pnm,
        extra=[{}, {"lr": 0.05, "betas": (0.75, 0.5), "weight_decay": 0.1}],
        oracle=oracle,
    ),
    Reference(
        gradstep.AdaPNM,
        gradstep.adapnm,
        adapnm,
        extra=[
            {},
            {
                "lr": 0.01,
                "betas": (0.75, 0.9, 0.5),
                "eps": 0.01,
                "weight_decay": 0.1,
                "amsgrad": False,
            },
        ],
    ),
]
