"""StableAdamW."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy
import torch

import gradstep
from reference_row import Array, Reference, f64


def stable_adamw(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-6,
    weight_decay: float = 0.2,
) -> Iterator[Array]:
    """Wortsman et al. 2023, algorithm 2."""
    v, u, t = 0 * w, 0 * w, 0
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            t += 1
            hat1 = beta1 * (1 - beta1 ** (t - 1)) / (1 - beta1**t)
            hat2 = beta2 * (1 - beta2 ** (t - 1)) / (1 - beta2**t)
            v = hat1 * v + (1 - hat1) * g
            u = hat2 * u + (1 - hat2) * g**2
            rms = numpy.sqrt(numpy.mean(g**2 / numpy.maximum(u, w.dtype.type(eps) ** 2)))
            eta = lr / numpy.maximum(1, rms)
            w = w - eta * weight_decay * w - eta * v / (numpy.sqrt(u) + eps)
        yield w


def optimi_stable_adamw(params: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    from optimi import StableAdamW

    given = {"lr": 2e-3, "weight_decay": 0.2, **options}
    return StableAdamW(params, **given, kahan_sum=False, foreach=False, triton=False)


REFERENCES = [
    Reference(
        gradstep.StableAdamW,
        gradstep.stable_adamw,
        stable_adamw,
        extra=[
            {},
            {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1, "maximize": True},
            {"lr": f64(0.01), "weight_decay": 0.0, "eps": 1e-3},
        ],
        takes_complex=False,
        elementwise=False,
        oracle=optimi_stable_adamw,
    ),
]
