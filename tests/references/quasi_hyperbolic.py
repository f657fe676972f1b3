"""QHM and QHAdam."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def qhm(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1.0,
    momentum: float = 0.999,
    nu: float = 0.7,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Ma & Yarats 2018, equations 1 and 2."""
    average, beta, nu = 0 * w, w.dtype.type(momentum), w.dtype.type(nu)
    for g in gradients:
        if g is not None:
            g = g + weight_decay * w
            average = beta * average + (1 - beta) * g
            w = w - lr * ((1 - nu) * g + nu * average)
        yield w


def qhadam(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.995, 0.999),
    nu1: float = 0.7,
    nu2: float = 1.0,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Ma & Yarats 2018, section 4.4."""
    m, v, t = 0 * w, 0 * w, 0
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    nu1, nu2 = w.dtype.type(nu1), w.dtype.type(nu2)
    for g in gradients:
        if g is not None:
            t += 1
            g = g + weight_decay * w
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g**2
            top = (1 - nu1) * g + nu1 * m / (1 - beta1**t)
            below = numpy.sqrt((1 - nu2) * g**2 + nu2 * v / (1 - beta2**t)) + eps
            w = w - lr * top / below
        yield w


def qhm_oracle(params: Any, options: dict[str, Any]) -> Any:
    from torch_optimizer import QHM

    return QHM(params, **{"lr": 1.0, "momentum": 0.999, "nu": 0.7, **options})


def qhadam_oracle(params: Any, options: dict[str, Any]) -> Any:
    from torch_optimizer import QHAdam

    nus = options.pop("nu1", 0.7), options.pop("nu2", 1.0)
    return QHAdam(params, nus=nus, **{"betas": (0.995, 0.999), **options})


REFERENCES = [
    Reference(
        gradstep.QHM,
        gradstep.qhm,
        qhm,
        extra=[
            {"lr": 0.05},  # the paper's 1.0 is too much for most losses
            {"lr": 0.05, "momentum": 0.9, "nu": 0.5, "weight_decay": 0.1, "maximize": True},
        ],
        oracle=qhm_oracle,
    ),
    Reference(
        gradstep.QHAdam,
        gradstep.qhadam,
        qhadam,
        extra=[
            {},
            {
                "lr": 0.01,
                "betas": (0.8, 0.9),
                "nu1": 0.5,
                "nu2": 0.75,
                "weight_decay": 0.1,
                "maximize": True,
            },
        ],
        oracle=qhadam_oracle,
    ),
]
