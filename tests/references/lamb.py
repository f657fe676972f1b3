"""LAMB."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy
import torch

import gradstep
from reference_row import Array, Reference, f64


def lamb(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.01,
    bias_correction: bool = True,
) -> Iterator[Array]:
    """You et al. 2019, algorithm 2, with φ(z) = z and a ratio of 1 where it has none."""
    m, v, t = 0 * w, 0 * w, 0
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            t += 1
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g**2
            m_hat, v_hat = m, v
            if bias_correction:
                m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
            u = m_hat / (numpy.sqrt(v_hat) + eps) + weight_decay * w
            size, step = numpy.sqrt(numpy.sum(w**2)), numpy.sqrt(numpy.sum(u**2))
            w = w - lr * (size / step if size > 0 and step > 0 else 1) * u
        yield w


def timm_lamb(params: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    from timm.optim import Lamb

    return Lamb(params, **options, max_grad_norm=None, always_adapt=True)


REFERENCES = [
    Reference(
        gradstep.LAMB,
        gradstep.lamb,
        lamb,
        extra=[
            {},
            {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.9), "maximize": True},
            {"lr": f64(0.01), "bias_correction": False, "weight_decay": 0.0, "eps": 1e-3},
        ],
        takes_complex=False,
        elementwise=False,
        oracle=timm_lamb,
    ),
]
