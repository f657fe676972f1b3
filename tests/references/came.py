"""CAME."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy
import torch

import gradstep
from reference_row import Array, Reference, f64


def came(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 2e-4,
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
    eps1: float = 1e-30,
    eps2: float = 1e-16,
    clip_threshold: float = 1.0,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Luo et al. 2023, algorithm 2; vectors have a second moment an element, and no confidence."""
    m, r, c, rr, cr = 0 * w, 0 * w, 0 * w, 0 * w, 0 * w
    beta1, beta2, beta3 = betas  # 1 − 0.9999 of a float32 is off in the fourth digit

    def factored(r: Array, c: Array) -> Array:
        return r * c / numpy.mean(r, -2, keepdims=True)

    for g in gradients:
        if g is not None:
            square = g**2 + eps1
            if w.ndim < 2:
                r = beta2 * r + (1 - beta2) * square
                v = r
            else:
                r = beta2 * r + (1 - beta2) * numpy.mean(square, -1, keepdims=True)
                c = beta2 * c + (1 - beta2) * numpy.mean(square, -2, keepdims=True)
                v = factored(r[..., :1], c[..., :1, :])
            # What is all 0 stays where it is: the least keeps float32 from 0 times infinity.
            u = g / numpy.sqrt(numpy.maximum(v, eps1))
            u = u / max(1, numpy.sqrt(numpy.mean(u**2)) / clip_threshold)
            m = beta1 * m + (1 - beta1) * u
            step = m
            if w.ndim >= 2:
                stray = (u - m) ** 2 + eps2
                rr = beta3 * rr + (1 - beta3) * numpy.mean(stray, -1, keepdims=True)
                cr = beta3 * cr + (1 - beta3) * numpy.mean(stray, -2, keepdims=True)
                step = m / numpy.sqrt(numpy.maximum(factored(rr[..., :1], cr[..., :1, :]), eps2))
            w = w - lr * (step + weight_decay * w)
        yield w


def came_pytorch(params: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    from came_pytorch import CAME

    given = {"lr": 2e-4, **options}
    given["eps"] = (given.pop("eps1", 1e-30), given.pop("eps2", 1e-16))
    return CAME(params, **given)


REFERENCES = [
    Reference(
        gradstep.CAME,
        gradstep.came,
        came,
        extra=[
            {},
            {"lr": 1e-3, "betas": (0.8, 0.9, 0.95), "weight_decay": 0.1, "maximize": True},
            {"lr": f64(1e-3), "clip_threshold": 0.5, "weight_decay": 0.01},
        ],
        takes_complex=False,
        elementwise=False,
        bound=64.0,  # the distance from the average is a difference of nearly equal numbers
        by_rows=True,
        oracle=came_pytorch,
    ),
]
