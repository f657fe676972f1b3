"""Apollo, the quasi-Newton method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy
import torch

import gradstep
from reference_row import Array, Reference, f64


def apollo_quasi_newton(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 0.01,
    beta: float = 0.9,
    rebound: float = 0.01,
    eps: float = 1e-4,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Ma 2020, algorithm 1, with the bound σ and its eps as the authors' code has them."""
    m, b, d, t = 0 * w, 0 * w, 0 * w, 0
    beta = w.dtype.type(beta)
    for g in gradients:
        if g is not None:
            t += 1
            g = g + weight_decay * w
            before = m
            m = (beta * (1 - beta ** (t - 1)) * m + (1 - beta) * g) / (1 - beta**t)
            size = numpy.sum(d**4) ** w.dtype.type(0.25) + w.dtype.type(eps) / rebound
            s = d / size
            y = (m - before) / size
            b = b - (numpy.sum(s * y) + numpy.sum(s * b * s)) * s**2
            d = m / numpy.maximum(numpy.abs(b), rebound)
            w = w - lr * d
        yield w


def pytorch_optimizer_apollo(params: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    from pytorch_optimizer import ApolloDQN

    return ApolloDQN(params, **options, warmup_steps=1)


REFERENCES = [
    Reference(
        gradstep.ApolloQuasiNewton,
        gradstep.apollo_quasi_newton,
        apollo_quasi_newton,
        extra=[
            {"lr": 1e-4},  # without a warm-up
            {"lr": 0.05, "beta": 0.5, "weight_decay": 0.1, "maximize": True},
            {"lr": f64(2e-4), "eps": 1e-2},
        ],
        takes_complex=False,
        elementwise=False,
        bound=32.0,  # a guess is corrected by differences
        oracle=pytorch_optimizer_apollo,
    ),
]
