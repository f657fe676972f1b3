"""Gravity."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference, f64


def gravity(
    w: Array, gradients: Iterable[Array | None], *, lr: float = 0.1, beta: float = 0.9
) -> Iterator[Array]:
    """Bahrami & Pousti Zadeh 2021, equations 8 to 11, from a velocity of 0."""
    v, t = 0 * w, 0
    beta = w.dtype.type(beta)
    for g in gradients:
        if g is not None:
            t += 1
            largest = numpy.max(numpy.abs(g))  # 1/m
            zeta = g / (1 + (g * largest) ** 2)
            beta_t = (beta * t + 1) / (t + 2)
            v = beta_t * v + (1 - beta_t) * zeta
            w = w - lr * v
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import Gravity

    return Gravity(params, **{"lr": 0.1, **options}, alpha=0.0)


REFERENCES = [
    Reference(
        gradstep.Gravity,
        gradstep.gravity,
        gravity,
        extra=[{}, {"beta": 0.5, "maximize": True}, {"lr": f64(0.02), "beta": 0.99}],
        takes_complex=False,
        elementwise=False,
        oracle=oracle,
    ),
]
