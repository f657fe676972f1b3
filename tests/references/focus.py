"""FOCUS."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def focus(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.99),
    gamma: float = 0.1,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Liu et al. 2025, algorithm 1."""
    m, average, t = 0 * w, 0 * w, 0
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            t += 1
            m = beta1 * m + (1 - beta1) * g
            average = beta2 * average + (1 - beta2) * w
            centre = average / (1 - beta2**t)
            w = w - lr * weight_decay * centre
            w = w - lr * (numpy.sign(m) + gamma * numpy.sign(w - centre))
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import FOCUS

    return FOCUS(params, **options)


REFERENCES = [
    Reference(
        gradstep.FOCUS,
        gradstep.focus,
        focus,
        extra=[
            {"lr": 0.005, "gamma": 0.0},
            {"lr": 0.01, "betas": (0.75, 0.5), "gamma": 0.5, "weight_decay": 0.1},
        ],
        oracle=oracle,
    ),
]
