"""RACS."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy

import gradstep
from reference_row import Array, Reference, f64


def racs(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 0.02,
    beta: float = 0.9,
    alpha: float = 0.05,
    gamma: float = 1.01,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    iterations: int = 5,
) -> Iterator[Array]:
    """Gong et al. 2025, algorithm 1 with equation 16; the norm is kept in float32.

    A vector is a matrix of one column; of more dimensions the last two are rows and columns.
    """
    kind = w.dtype.type
    beta = kind(beta)
    shape, w = w.shape, w.reshape(w.shape if w.ndim > 1 else (-1, 1))
    q_average = s_average = square = 0 * w
    before = 0.0
    for g in gradients:
        if g is not None:
            g = g.reshape(w.shape)
            q = 0 * g[..., :1] + 1
            for _ in range(iterations):
                s = over(numpy.sum(g**2 * q, -2, keepdims=True), numpy.sum(q**2, -2, keepdims=True))
                q = over(numpy.sum(g**2 * s, -1, keepdims=True), numpy.sum(s**2, -1, keepdims=True))
            q_average = beta * q_average + (1 - beta) * q
            s_average = beta * s_average + (1 - beta) * s
            square = beta * square + (1 - beta) * g**2
            estimate = q_average * s_average if len(shape) > 1 else square
            scaled = g / (numpy.sqrt(estimate) + kind(eps))
            size = numpy.sqrt(numpy.sum(scaled**2))
            limit = gamma / max(size / (before + 1e-8), gamma) if before else 1.0
            before = float(numpy.float32(limit * size))
            w = w - lr * weight_decay * w - lr * kind(alpha * limit) * scaled
        yield w.reshape(shape)


def over(a: Array, b: Array) -> Array:
    """A ratio, 0 where its denominator is."""
    return numpy.asarray(numpy.where(b > 0, a / numpy.where(b > 0, b, 1), 0))


REFERENCES = [
    Reference(
        gradstep.RACS,
        gradstep.racs,
        racs,
        extra=[
            {},
            {"lr": f64(0.02), "beta": 0.5, "alpha": 1.0, "gamma": 1.5, "maximize": True},
            {"weight_decay": 0.1, "eps": 0.1, "iterations": 1},
        ],
        takes_complex=False,
        elementwise=False,
        bound=32.0,
    ),
]
