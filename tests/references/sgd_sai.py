"""SGD-SaI."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def sgd_sai(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 0.01,
    momentum: float = 0.9,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Iterator[Array]:
    """Xu et al. 2024, algorithm 1."""
    m, ratio = 0 * w, None
    for g in gradients:
        if g is not None:
            if ratio is None:
                deviation = numpy.std(g, ddof=1) if g.ndim > 1 and g.size > 1 else 0.0
                length = numpy.sqrt(numpy.sum(g**2))
                ratio = length / (deviation + eps) if deviation else length
                ratio = w.dtype.type(ratio)
            m = momentum * m + (1 - momentum) * g
            w = w - lr * (ratio * m + weight_decay * w)
            ratio = w.dtype.type(numpy.float32(ratio))  # as it is kept
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import SGDSaI

    return SGDSaI(params, **options)


REFERENCES = [
    Reference(
        gradstep.SGDSaI,
        gradstep.sgd_sai,
        sgd_sai,
        extra=[{}, {"lr": 0.05, "momentum": 0.75, "weight_decay": 0.1}],
        takes_complex=False,
        elementwise=False,
        oracle=oracle,
        oracle_shapes=[(8, 6), (5,)],
    ),
]
