"""ADOPT."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def adopt(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.9999),
    eps: float = 1e-6,
    clip_exp: float = 0.25,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Taniguchi et al. 2024, algorithm 2 with the clipping of its section 4."""
    m, t = 0 * w, 0
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            if t == 0:
                v = g**2
            else:
                limit = w.dtype.type(t) ** w.dtype.type(clip_exp)
                u = numpy.clip(g / numpy.maximum(numpy.sqrt(v), eps), -limit, limit)
                m = beta1 * m + (1 - beta1) * u
                w = w - lr * (m + weight_decay * w)
                v = beta2 * v + (1 - beta2) * g**2
            t += 1
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from timm.optim.adopt import Adopt

    return Adopt(params, **{"clip_exp": 0.25, **options}, decoupled=True)


REFERENCES = [
    Reference(
        gradstep.ADOPT,
        gradstep.adopt,
        adopt,
        extra=[
            {},
            {
                "lr": 0.01,
                "betas": (0.8, 0.9),
                "clip_exp": 0.5,
                "weight_decay": 0.1,
                "maximize": True,
            },
        ],
        oracle=oracle,
    ),
]
