"""PAdam."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def padam(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.999),
    partial: float = 0.125,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = True,
) -> Iterator[Array]:
    """Chen et al. 2018, algorithm 1, with the authors' corrections of bias."""
    m, v, largest, t = 0 * w, 0 * w, 0 * w, 0
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            t += 1
            g = g + weight_decay * w
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g**2
            largest = numpy.maximum(largest, v)
            root = (numpy.sqrt(largest if amsgrad else v) + eps) ** w.dtype.type(2 * partial)
            w = w - lr * numpy.sqrt(1 - beta2**t) / (1 - beta1**t) * m / root
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    import pytest
    from pytorch_optimizer import PAdam

    if options.get("amsgrad", True):
        pytest.skip("which it has not")
    given = {n: v for n, v in options.items() if n != "amsgrad"}
    return PAdam(params, **{"partial": 0.125, **given})


REFERENCES = [
    Reference(
        gradstep.PAdam,
        gradstep.padam,
        padam,
        extra=[
            {},
            {
                "lr": 0.05,
                "betas": (0.75, 0.9),
                "partial": 0.25,
                "eps": 0.01,
                "weight_decay": 0.1,
                "amsgrad": False,
            },
        ],
        bound=32.0,
        oracle=oracle,
    ),
]
