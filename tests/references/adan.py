"""Adan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def adan(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    no_prox: bool = False,
) -> Iterator[Array]:
    """Xie et al. 2022, algorithm 1 with the corrections of its section 3, betas as 1 − β."""
    m, v, n, before, t = 0 * w, 0 * w, 0 * w, 0 * w, 0
    beta1, beta2, beta3 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            t += 1
            change = 0 * g if t == 1 else g - before
            before = g
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * change
            n = beta3 * n + (1 - beta3) * (g + beta2 * change) ** 2
            eta = lr / (numpy.sqrt(n / (1 - beta3**t)) + eps)
            d = eta * (m / (1 - beta1**t) + beta2 * v / (1 - beta2**t))
            if no_prox:
                w = (1 - lr * weight_decay) * w - d
            else:
                w = (w - d) / (1 + lr * weight_decay)
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import Adan

    return Adan(params, weight_decouple=options.pop("no_prox", False), **options)


REFERENCES = [
    Reference(
        gradstep.Adan,
        gradstep.adan,
        adan,
        extra=[
            {},
            {"lr": 0.01, "betas": (0.9, 0.8, 0.95), "weight_decay": 0.1, "maximize": True},
            {"lr": 0.01, "weight_decay": 0.1, "no_prox": True},
        ],
        oracle=oracle,
    ),
]
