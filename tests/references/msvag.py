"""M-SVAG."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def msvag(
    w: Array, gradients: Iterable[Array | None], *, lr: float = 0.01, beta: float = 0.9
) -> Iterator[Array]:
    """Balles & Hennig 2017, algorithm 2."""
    m, v, t = 0 * w, 0 * w, 0
    b = w.dtype.type(beta)
    for g in gradients:
        if g is not None:
            t += 1
            m, v = b * m + (1 - b) * g, b * v + (1 - b) * g**2
            m_hat, v_hat = m / (1 - b**t), v / (1 - b**t)
            rho = (1 - beta ** (2 * t)) * (1 - beta) ** 2 / (1 - beta**2) / (1 - beta**t) ** 2
            rho = min(rho, 0.9999)
            s = (v_hat - m_hat**2) / w.dtype.type(1 - rho)
            total = m_hat**2 + w.dtype.type(rho) * s
            gamma = numpy.where(total == 0, 0, m_hat**2 / numpy.where(total == 0, 1, total))
            w = w - lr * numpy.clip(gamma, 0, 1) * m_hat
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import MSVAG

    return MSVAG(params, **options)


REFERENCES = [
    Reference(
        gradstep.MSVAG,
        gradstep.msvag,
        msvag,
        extra=[{}, {"lr": 0.1, "beta": 0.75}],
        # At the first step a rounding counts 9999 times.
        bound=2.0**17,
        oracle=oracle,
    ),
]
