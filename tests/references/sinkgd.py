"""SinkGD."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy

import gradstep
from reference_row import Array, Reference, f64


def sinkgd(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    iterations: int = 5,
) -> Iterator[Array]:
    """Scetbon et al. 2025, algorithm 3 (SR-Sinkhorn) on each gradient."""
    rows, columns = w.shape[-2:] if w.ndim > 1 else (1, 1)
    for g in gradients:
        if g is not None:
            g = g if w.ndim > 1 else numpy.sign(g)
            for _ in range(iterations if w.ndim > 1 else 0):
                for axis, wanted in ((-1, columns), (-2, rows)):
                    norms = numpy.sqrt(numpy.sum(g**2, axis, keepdims=True))
                    g = g * numpy.sqrt(w.dtype.type(wanted)) / numpy.where(norms > 0, norms, 1)
            w = w - lr * weight_decay * w - lr * g
        yield w


REFERENCES = [
    Reference(
        gradstep.SinkGD,
        gradstep.sinkgd,
        sinkgd,
        extra=[
            {},
            {"lr": f64(0.02), "weight_decay": 0.1, "iterations": 2, "maximize": True},
        ],
        takes_complex=False,
        elementwise=False,
        bound=32.0,
    ),
]
