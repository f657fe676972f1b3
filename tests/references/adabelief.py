"""AdaBelief."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def adabelief(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-16,
    weight_decay: float = 0.0,
    rectify: bool = False,
) -> Iterator[Array]:
    """Zhuang et al. 2020, algorithm 2; Liu et al. 2019, algorithm 2, where rectified."""
    m, s, t = 0 * w, 0 * w, 0
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    longest = 2 / (1 - beta2) - 1
    for g in gradients:
        if g is not None:
            t += 1
            w = w - lr * (weight_decay * w)
            m = beta1 * m + (1 - beta1) * g
            s = beta2 * s + (1 - beta2) * (g - m) ** 2 + eps
            m_hat = m / (1 - beta1**t)
            if rectify:
                length = longest - 2 * t * beta2**t / (1 - beta2**t)
                r = 1 + 0 * w
                if length >= 5:
                    r2 = (length - 4) * (length - 2) * longest
                    r2 = r2 / ((longest - 4) * (longest - 2) * length)
                    r = numpy.sqrt(r2 * (1 - beta2**t)) / (numpy.sqrt(s) + eps)
                w = w - lr * r * m_hat
            else:
                w = w - lr * m_hat / (numpy.sqrt(s / (1 - beta2**t)) + eps)
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from adabelief_pytorch import AdaBelief

    return AdaBelief(params, **{"rectify": False, **options}, print_change_log=False)


REFERENCES = [
    Reference(
        gradstep.AdaBelief,
        gradstep.adabelief,
        adabelief,
        extra=[
            {},
            {"lr": 0.01, "betas": (0.8, 0.99), "weight_decay": 0.1, "maximize": True},
            {"lr": 0.01, "betas": (0.8, 0.9), "rectify": True},
        ],
        oracle=oracle,
    ),
]
