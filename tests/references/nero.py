"""Nero."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def nero(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 0.01,
    beta: float = 0.999,
    eps: float = 1e-8,
    constraints: bool = True,
) -> Iterator[Array]:
    """Liu et al. 2021, algorithm 1; the scale is kept in float32, as all numbers are."""
    kind = w.dtype.type
    beta, eps = kind(beta), kind(eps)

    def norm(x: Array) -> Array:
        if x.ndim < 2:
            return numpy.abs(x)
        axes = tuple(range(1, x.ndim))
        return numpy.sqrt(numpy.sum(x**2, axis=axes, keepdims=True))

    def balanced(x: Array) -> Array:
        if x.ndim < 2 or not constraints:
            return x
        x = x - numpy.mean(x, axis=tuple(range(1, x.ndim)), keepdims=True)
        return x / (norm(x) + eps)

    v, sigma, t = 0 * norm(w), kind(0), 0
    for g in gradients:
        if g is not None:
            t += 1
            if t == 1:
                w = balanced(w)
                sigma = numpy.mean(norm(w)) or kind(0.01)
            v = beta * v + (1 - beta) * norm(g) ** 2
            w = balanced(w - lr * sigma * g / (numpy.sqrt(v / (1 - beta**t)) + eps))
            sigma = kind(numpy.float32(sigma))
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import Nero

    return Nero(params, **{"lr": 0.01, "eps": 1e-8, **options})


REFERENCES = [
    Reference(
        gradstep.Nero,
        gradstep.nero,
        nero,
        extra=[
            {},
            {"lr": 0.05, "beta": 0.9, "eps": 1e-3, "maximize": True},
            {"lr": 0.02, "constraints": False},
        ],
        takes_complex=False,
        elementwise=False,
        by_rows=True,
        shrinks=True,
        oracle=oracle,
    ),
]
