"""MARS."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy
import torch

import gradstep
from reference_row import Array, Reference, f64


def mars(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 3e-3,
    betas: tuple[float, float] = (0.95, 0.99),
    gamma: float = 0.025,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Yuan et al. 2024, algorithm 2, with the last gradient as that of the batch before."""
    m, v, t, before = 0 * w, 0 * w, 0, None
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            t += 1
            before = g if before is None else before
            c = g + gamma * beta1 / (1 - beta1) * (g - before)
            size = numpy.sqrt(numpy.sum(c**2))
            c = c / size if size > 1 else c
            m = beta1 * m + (1 - beta1) * c
            v = beta2 * v + (1 - beta2) * c**2
            u = m / (1 - beta1**t) / (numpy.sqrt(v / (1 - beta2**t)) + eps)
            w = w - lr * (u + weight_decay * w)
            before = g
        yield w


def timm_mars(params: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    from timm.optim import Mars

    return Mars(params, **{"betas": (0.95, 0.99), **options}, optimize_1d=True)


REFERENCES = [
    Reference(
        gradstep.MARS,
        gradstep.mars,
        mars,
        extra=[
            {},
            {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1, "maximize": True},
            {"lr": f64(0.01), "gamma": 0.1, "eps": 1e-3},
        ],
        takes_complex=False,
        elementwise=False,
        oracle=timm_mars,
    ),
]
