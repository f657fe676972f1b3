"""NovoGrad."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy
import torch

import gradstep
from reference_row import Array, Reference, f64


def novograd(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 0.01,
    betas: tuple[float, float] = (0.95, 0.98),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    grad_averaging: bool = False,
) -> Iterator[Array]:
    """Ginsburg et al. 2019, algorithm 1; v is kept in float32, as a parameter's numbers are."""
    m, v = 0 * w, None
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            squares = numpy.sum(g**2)
            v = squares if v is None else beta2 * w.dtype.type(v) + (1 - beta2) * squares
            d = g / (numpy.sqrt(v) + eps) + weight_decay * w
            m = beta1 * m + ((1 - beta1) * d if grad_averaging else d)
            w = w - lr * m
            v = numpy.float32(v)
        yield w


def timm_novograd(params: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    from timm.optim import NvNovoGrad

    return NvNovoGrad(params, **{"lr": 0.01, **options})


REFERENCES = [
    Reference(
        gradstep.NovoGrad,
        gradstep.novograd,
        novograd,
        extra=[
            {},
            {"lr": 0.05, "betas": (0.9, 0.25), "weight_decay": 0.1, "maximize": True},
            {"lr": f64(0.02), "grad_averaging": True, "weight_decay": 0.01, "eps": 1e-3},
        ],
        takes_complex=False,
        elementwise=False,
        oracle=timm_novograd,
    ),
]
