"""Adai. All weights are one vector here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference, f64


def adai(
    w: Array,
    gradients: Iterable[Array],
    *,
    lr: float = 0.1,
    beta0: float = 0.1,
    beta2: float = 0.99,
    eps: float = 1e-3,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
) -> Iterator[Array]:
    """Xie et al. 2020, algorithms 2 (Adai) and 3 (AdaiW)."""
    m, v, product = 0 * w, 0 * w, 0 * w + 1
    beta2 = w.dtype.type(beta2)
    for t, g in enumerate(gradients, 1):
        decay = 0 * w
        if decoupled_weight_decay:
            decay = weight_decay * w
        else:
            g = g + weight_decay * w
        v = beta2 * v + (1 - beta2) * g**2
        v_hat = v / (1 - beta2**t)
        beta1 = numpy.clip(1 - beta0 / numpy.mean(v_hat) * v_hat, 0, 1 - eps)
        m = beta1 * m + (1 - beta1) * g
        product = product * beta1
        w = w - lr * (m / (1 - product) + decay)
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import Adai

    given = {"lr": 0.1, "beta0": 0.1, "beta2": 0.99, **options}
    betas = given.pop("beta0"), given.pop("beta2")
    decoupled = given.pop("decoupled_weight_decay", False)
    rest = {"weight_decouple": decoupled, "stable_weight_decay": decoupled}
    return Adai(params, betas=betas, **given, **rest)


REFERENCES = [
    Reference(
        gradstep.Adai,
        gradstep.adai,
        adai,
        extra=[
            {},
            {"lr": 0.05, "beta0": 0.5, "beta2": 0.9, "weight_decay": 0.1, "maximize": True},
            {"lr": f64(0.02), "weight_decay": 0.1, "decoupled_weight_decay": True, "eps": 0.01},
        ],
        takes_complex=False,
        elementwise=False,
        coupled=True,
        oracle=oracle,
    ),
]
