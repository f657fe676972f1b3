"""Prodigy. All weights are one vector here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference, f64


def prodigy(
    w: Array,
    gradients: Iterable[Array],
    *,
    lr: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    beta3: float | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    d0: float = 1e-6,
    d_coef: float = 1.0,
    use_bias_correction: bool = False,
    safeguard_warmup: bool = False,
) -> Iterator[Array]:
    """Mishchenko & Defazio 2023, algorithm 4 with the averages of its section 5."""
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    kept = numpy.sqrt(beta2) if beta3 is None else beta3
    start, m, v, s, r, d = w, 0 * w, 0 * w, 0 * w, 0, d0
    for t, g in enumerate(gradients, 1):
        step = d * lr
        if use_bias_correction:
            step = step * numpy.sqrt(1 - beta2**t) / (1 - beta1**t)
        r = kept * r + d / d0 * step * numpy.sum(g * (start - w))
        s = kept * s + d / d0 * (d if safeguard_warmup else step) * g
        m = beta1 * m + (1 - beta1) * d * g
        v = beta2 * v + (1 - beta2) * d**2 * g**2
        before, d = d, max(d, d_coef * r / numpy.sum(numpy.abs(s)))
        w = w - step * weight_decay * w - step * m / (numpy.sqrt(v) + d * eps)
        assert d >= before
        yield w


def _prodigy(parameters: Any, options: dict[str, Any]) -> Any:
    from prodigyopt import Prodigy

    return Prodigy(parameters, **options)


REFERENCES = [
    Reference(
        gradstep.Prodigy,
        gradstep.prodigy,
        prodigy,
        extra=[
            {},
            {
                "lr": f64(0.5),
                "d0": 1e-2,
                "betas": (0.8, 0.99),
                "weight_decay": 0.1,
                "beta3": 0.9,
                "d_coef": 2.0,
                "use_bias_correction": True,
                "safeguard_warmup": True,
                "maximize": True,
            },
        ],
        takes_complex=False,
        elementwise=False,
        coupled=True,
        bound=64.0,  # a longer step makes the next longer: roundings grow
        oracle=_prodigy,
    ),
]
