"""MoMo and MoMo-Adam. All weights are one vector here."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference, f64, loss_at


def momo(
    w: Array,
    gradients: Iterable[Array],
    *,
    lr: float = 1.0,
    beta: float = 0.9,
    weight_decay: float = 0.0,
    lb: float = 0.0,
) -> Iterator[Array]:
    """Schaipp et al. 2023, algorithm 1, with d, f and gamma starting as the first of them."""
    beta = w.dtype.type(beta)
    shrink = 1 + lr * weight_decay
    for t, g in zip(itertools.count(), gradients):
        loss = loss_at(t)
        if t == 0:
            d, f, gamma = g, loss, numpy.sum(g * w)
        d = beta * d + (1 - beta) * g
        f = beta * f + (1 - beta) * loss
        gamma = beta * gamma + (1 - beta) * numpy.sum(g * w)
        height = shrink * (f - lb - gamma) + numpy.sum(d * w)
        w = (w - min(lr, max(height, 0) / numpy.sum(d**2)) * d) / shrink
        yield w


def momo_adam(
    w: Array,
    gradients: Iterable[Array],
    *,
    lr: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    lb: float = 0.0,
) -> Iterator[Array]:
    """Schaipp et al. 2023, algorithm 2 (MoMo-Adam), with d, v, f and gamma starting at 0."""
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    shrink = 1 + lr * weight_decay
    d, v, f, gamma = 0 * w, 0 * w, 0, 0
    for t, g in zip(itertools.count(1), gradients):
        d = beta1 * d + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        f = beta1 * f + (1 - beta1) * loss_at(t - 1)
        gamma = beta1 * gamma + (1 - beta1) * numpy.sum(g * w)
        scale = eps + numpy.sqrt(v / (1 - beta2**t))
        height = shrink * (f - (1 - beta1**t) * lb - gamma) + numpy.sum(d * w)
        tau = min(lr / (1 - beta1**t), max(height, 0) / numpy.sum(d**2 / scale))
        w = (w - tau * d / scale) / shrink
        yield w


def _momo_adam(parameters: Any, options: dict[str, Any]) -> Any:
    from momo import MomoAdam

    return MomoAdam(parameters, **options)


def _momo(parameters: Any, options: dict[str, Any]) -> Any:
    from momo import Momo

    return Momo(parameters, **options)


REFERENCES = [
    Reference(
        gradstep.Momo,
        gradstep.momo,
        momo,
        extra=[{}, {"lr": f64(0.1), "beta": 0.5, "weight_decay": 0.1, "lb": -1.0}],
        takes_complex=False,
        elementwise=False,
        coupled=True,
        oracle=_momo,
    ),
    Reference(
        gradstep.MomoAdam,
        gradstep.momo_adam,
        momo_adam,
        extra=[
            {},
            {"lr": f64(0.1), "betas": (0.5, 0.9), "eps": 0.01, "weight_decay": 0.1, "lb": -1.0},
        ],
        takes_complex=False,
        elementwise=False,
        coupled=True,
        oracle=_momo_adam,
    ),
]
