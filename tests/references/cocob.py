"""COCOB."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def cocob(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1.0,
    alpha: float = 100.0,
    eps: float = 1e-8,
) -> Iterator[Array]:
    """Orabona & Tommasi 2017, algorithm 2."""
    start = w
    theta, largest, total, reward = 0 * w, 0 * w + eps, 0 * w, 0 * w
    for g in gradients:
        if g is not None:
            largest = numpy.maximum(largest, numpy.abs(g))
            total = total + numpy.abs(g)
            reward = numpy.maximum(reward - g * (w - start), 0)
            theta = theta - g
            share = theta / (largest * numpy.maximum(total + largest, alpha * largest))
            w = start + lr * share * (largest + reward)
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    import optax

    from reference_optax import InOptax

    rule = optax.contrib.scale_by_cocob(options.get("alpha", 100.0), options.get("eps", 1e-8))
    return InOptax(params, rule)


REFERENCES = [
    Reference(
        gradstep.COCOB,
        gradstep.cocob,
        cocob,
        extra=[{}, {"alpha": 5.0, "eps": 0.1}],
        oracle=oracle,
    ),
]
