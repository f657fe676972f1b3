"""Sophia, before any estimate of the Hessian; with estimates it is in ``test_hessian.py``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy

import gradstep
from reference_row import Array, Reference, f64


def sophia(
    w: Array,
    gradients: Iterable[Array | None],
    estimates: Mapping[int, Array] | None = None,
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.965, 0.99),
    rho: float = 0.04,
    eps: float = 1e-12,
    weight_decay: float = 0.1,
) -> Iterator[Array]:
    """Liu et al. 2023, algorithm 3, with estimates by the number of the step that they precede."""
    m, h = 0 * w, 0 * w
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    for t, g in enumerate(gradients):
        if estimates and t in estimates:
            h = beta2 * h + (1 - beta2) * estimates[t]
        if g is not None:
            m = beta1 * m + (1 - beta1) * g
            update = numpy.clip(m / numpy.maximum(rho * h, w.dtype.type(eps)), -1, 1)
            w = w - lr * (update + weight_decay * w)
        yield w


REFERENCES = [
    Reference(
        gradstep.Sophia,
        gradstep.sophia,
        sophia,
        extra=[
            {},
            {"lr": 0.01, "rho": 0.5, "weight_decay": 0.0, "maximize": True},
            # Steps that are not clipped, for which eps stands in the place of the curvature.
            {"lr": f64(0.01), "betas": (0.75, 0.5), "eps": 2.0, "weight_decay": 1.0},
        ],
    ),
]
