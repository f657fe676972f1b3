"""AdaBound and AdaMod."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def adabound(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    final_lr: float = 0.1,
    gamma: float = 1e-3,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsbound: bool = False,
) -> Iterator[Array]:
    """Luo et al. 2019, algorithms 2 and 3, with Adam's corrections."""
    m, v, largest, t = 0 * w, 0 * w, 0 * w, 0
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            t += 1
            g = g + weight_decay * w
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g**2
            largest = numpy.maximum(largest, v)
            alpha = lr * numpy.sqrt(1 - beta2**t) / (1 - beta1**t)
            eta = alpha / (numpy.sqrt(largest if amsbound else v) + eps)
            low, high = final_lr - final_lr / (gamma * t + 1), final_lr + final_lr / (gamma * t)
            w = w - numpy.clip(eta, low, high) * m
        yield w


def adamod(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float, float] = (0.9, 0.999, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Ding et al. 2019, algorithm 1, eps beside the uncorrected root as in the authors' code."""
    m, v, s, t = 0 * w, 0 * w, 0 * w, 0
    beta1, beta2, beta3 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            t += 1
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g**2
            eta = lr * numpy.sqrt(1 - beta2**t) / (1 - beta1**t) / (numpy.sqrt(v) + eps)
            eta = numpy.where(v > 0, eta, 0)  # weights that never had a gradient have no rate
            s = beta3 * s + (1 - beta3) * eta
            w = w - lr * weight_decay * w - numpy.minimum(eta, s) * m
        yield w


def adabound_oracle(params: Any, options: dict[str, Any]) -> Any:
    from torch_optimizer import AdaBound

    return AdaBound(params, **options)


def adamod_oracle(params: Any, options: dict[str, Any]) -> Any:
    from torch_optimizer import AdaMod

    *betas, beta3 = options.pop("betas", (0.9, 0.999, 0.999))
    return AdaMod(params, betas=betas, beta3=beta3, **options)


REFERENCES = [
    Reference(
        gradstep.AdaBound,
        gradstep.adabound,
        adabound,
        extra=[
            {},
            {
                "lr": 0.01,
                "betas": (0.8, 0.9),
                "final_lr": 0.02,
                "gamma": 0.1,
                "weight_decay": 0.1,
                "amsbound": True,
                "maximize": True,
            },
        ],
        oracle=adabound_oracle,
    ),
    Reference(
        gradstep.AdaMod,
        gradstep.adamod,
        adamod,
        extra=[
            {},
            {"lr": 0.1, "betas": (0.8, 0.9, 0.5), "weight_decay": 0.1, "maximize": True},
        ],
        oracle=adamod_oracle,
    ),
]
