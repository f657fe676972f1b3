"""EXAdam."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def exadam(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Adly 2024, algorithm 1, with a fixed learning rate."""
    m, v, t = 0 * w, 0 * w, 0
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            t += 1
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g**2
            m_tilde = m / (1 - beta1**t) * (1 + v / (v + eps) * beta2**t)
            v_tilde = v / (1 - beta2**t) * (1 + m**2 / (m**2 + eps) * beta1**t)
            g_tilde = g / (1 - beta1**t) * (1 + v / (v + eps) * beta2**t)
            u = (m_tilde + g_tilde) / (numpy.sqrt(v_tilde) + eps)
            w = w - lr * (u + weight_decay * w)
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import EXAdam

    return EXAdam(params, **options)


REFERENCES = [
    Reference(
        gradstep.EXAdam,
        gradstep.exadam,
        exadam,
        extra=[{}, {"lr": 0.01, "betas": (0.75, 0.9), "eps": 0.01, "weight_decay": 0.1}],
        oracle=oracle,
    ),
]
