"""AvaGrad. All weights are one vector here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference, f64


def avagrad(
    w: Array,
    gradients: Iterable[Array],
    *,
    lr: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 0.1,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Savarese et al. 2019, algorithm 2, with the corrections and the norm of the authors' code."""
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    m, v, gamma = 0 * w, 0 * w, 0
    for t, g in enumerate(gradients, start=1):
        w = w - lr * weight_decay * w
        m = beta1 * m + (1 - beta1) * g
        if t > 1:
            rates = 1 / (numpy.sqrt(v / (1 - beta2 ** (t - 1))) + eps)
            w = w - lr * gamma * rates * m / (1 - beta1**t)
        inverse = 1 / (numpy.sqrt(v / (1 - beta2**t)) + eps)
        gamma = 1 / (numpy.sqrt(numpy.sum(inverse**2)) / numpy.sqrt(w.size))
        v = beta2 * v + (1 - beta2) * g**2
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import AvaGrad

    return AvaGrad(params, **options)


REFERENCES = [
    Reference(
        gradstep.AvaGrad,
        gradstep.avagrad,
        avagrad,
        extra=[
            {},
            {"lr": 0.01, "betas": (0.8, 0.99), "weight_decay": 0.1, "maximize": True},
            {"lr": f64(0.01), "eps": 1e-3},
        ],
        takes_complex=False,
        elementwise=False,
        coupled=True,
        oracle=oracle,
    ),
]
