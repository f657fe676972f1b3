"""SWATS. All weights are one vector here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference, f64


def swats(
    w: Array,
    gradients: Iterable[Array],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-9,
    tolerance: float = 1e-6,
) -> Iterator[Array]:
    """Keskar & Socher 2017, algorithm 1, with a constant learning rate.

    ``tolerance · lr`` is what the paper calls eps there.
    """
    beta1, beta2 = betas
    m, a, v = 0 * w, 0 * w, 0 * w
    phase, average, rate = "Adam", 0.0, 0.0
    for k, g in enumerate(gradients, 1):
        if phase == "SGD":
            v = beta1 * v + g
            w = w - (1 - beta1) * rate * v
            yield w
            continue
        m = beta1 * m + (1 - beta1) * g
        a = beta2 * a + (1 - beta2) * g**2
        p = -lr * numpy.sqrt(1 - beta2**k) / (1 - beta1**k) * m / (numpy.sqrt(a) + eps)
        w = w + p
        if numpy.sum(p * g) != 0:
            gamma = numpy.sum(p * p) / -numpy.sum(p * g)
            average = beta2 * average + (1 - beta2) * gamma
            found = average / (1 - beta2**k)
            if k > 1 and found > 0 and abs(found - gamma) < tolerance * lr:
                phase, rate = "SGD", found
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    """It measures each tensor by itself, so that only steps before the switch agree."""
    from pytorch_optimizer import SWATS

    if "tolerance" in options:
        raise NotImplementedError("its test for the switch is another")
    return SWATS(params, **{"eps": 1e-9, **options})


REFERENCES = [
    Reference(
        gradstep.SWATS,
        gradstep.swats,
        swats,
        extra=[
            {},
            {"lr": f64(0.01), "betas": (0.8, 0.99), "maximize": True},
            {"lr": 0.001, "betas": (0.9, 0.99), "tolerance": 1.0},  # goes over to SGD
        ],
        takes_complex=False,
        elementwise=False,
        coupled=True,
        oracle=oracle,
    ),
]
