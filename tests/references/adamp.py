"""AdamP and SGDP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy
import torch

import gradstep
from reference_row import Array, Reference, f64


def projected(
    p: Array, g: Array, w: Array, delta: float, ratio: float, eps: float
) -> tuple[Array, float]:
    """Heo et al. 2020, equation 9 and algorithms 1 and 2: rows first, then all; not of vectors."""

    def length(x: Array) -> Array:
        return numpy.sqrt(numpy.sum(x**2, -1, keepdims=True))

    views = [] if w.ndim < 2 else [(1, -1)] if w.ndim > 2 else [w.shape, (1, -1)]
    for shape in views:
        u, v, s = (x.reshape(shape) for x in (g, w, p))
        sizes = numpy.maximum(length(u), eps) * numpy.maximum(length(v), eps)
        cosine = numpy.abs(numpy.sum(u * v, -1, keepdims=True)) / sizes
        if numpy.max(cosine) < delta / numpy.sqrt(v.shape[1]):
            v = v / (length(v) + eps)
            return (s - v * numpy.sum(v * s, -1, keepdims=True)).reshape(w.shape), ratio
    return p, 1


def adamp(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    delta: float = 0.1,
    wd_ratio: float = 0.1,
) -> Iterator[Array]:
    """Heo et al. 2020, algorithm 2."""
    m, v, t = 0 * w, 0 * w, 0
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            t += 1
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g**2
            p = m / (1 - beta1**t) / (numpy.sqrt(v / (1 - beta2**t)) + eps)
            p, share = projected(p, g, w, delta, wd_ratio, eps)
            w = w - lr * (weight_decay * share) * w - lr * p
        yield w


def sgdp(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    delta: float = 0.1,
    wd_ratio: float = 0.1,
    nesterov: bool = False,
) -> Iterator[Array]:
    """Heo et al. 2020, algorithm 1."""
    v = 0 * w
    momentum = w.dtype.type(momentum)
    for g in gradients:
        if g is not None:
            v = momentum * v + g
            p, share = projected(g + momentum * v if nesterov else v, g, w, delta, wd_ratio, eps)
            w = w - lr * (weight_decay * share / (1 - momentum)) * w - lr * p
        yield w


def channels(self: Any, x: torch.Tensor) -> torch.Tensor:
    """In place of the authors': beyond two dimensions ours tries all of a weight alone."""
    return x.view(x.size(0), -1) if x.dim() == 2 else x.view(1, -1)


def authors_adamp(params: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    from adamp import AdamP

    return type("AdamP", (AdamP,), {"_channel_view": channels})(params, **options)


def authors_sgdp(params: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    """Theirs projects the velocity in place, unless that is kept from it by a copy."""
    from adamp import SGDP

    def projection(self: Any, p: Any, grad: Any, perturb: Any, *numbers: Any) -> Any:
        return SGDP._projection(self, p, grad, perturb.clone(), *numbers)

    members = {"_channel_view": channels, "_projection": projection}
    given = {"lr": 0.1, "momentum": 0.9, **options}
    return type("SGDP", (SGDP,), members)(params, **given)


REFERENCES = [
    Reference(
        gradstep.AdamP,
        gradstep.adamp,
        adamp,
        extra=[
            {},
            {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1, "delta": 1.5, "maximize": True},
            {"lr": f64(0.01), "eps": 1e-3, "delta": 0.5, "weight_decay": 0.5, "wd_ratio": 0.25},
        ],
        takes_complex=False,
        elementwise=False,
        by_rows=True,
        oracle=authors_adamp,
    ),
    Reference(
        gradstep.SGDP,
        gradstep.sgdp,
        sgdp,
        extra=[
            {},
            {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.1, "delta": 1.5, "maximize": True},
            {"lr": f64(0.02), "nesterov": True, "delta": 0.5, "weight_decay": 0.5},
        ],
        takes_complex=False,
        elementwise=False,
        by_rows=True,
        oracle=authors_sgdp,
    ),
]
