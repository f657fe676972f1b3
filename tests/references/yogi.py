"""Yogi."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy
import torch

import gradstep
from reference_row import Array, Reference


def yogi(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-2,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-3,
    initial_accumulator: float = 1e-6,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Zaheer et al. 2018, algorithm 2, with Adam's corrections and the usual start of 1e-6."""
    m, v = 0 * w, 0 * w + w.dtype.type(initial_accumulator)
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    t = 0
    for g in gradients:
        if g is not None:
            t += 1
            g = g + weight_decay * w
            m = beta1 * m + (1 - beta1) * g
            v = v - (1 - beta2) * numpy.sign(v - g**2) * g**2
            w = w - lr * m / (1 - beta1**t) / (numpy.sqrt(v / (1 - beta2**t)) + eps)
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from torch_optimizer import Yogi

    optimizer = Yogi(params, **options)
    for p in params:  # theirs starts the average gradient at 1e-6 too
        entry = {"step": 0, "exp_avg": torch.zeros_like(p)}
        optimizer.state[p] = {**entry, "exp_avg_sq": torch.full_like(p, 1e-6)}
    return optimizer


REFERENCES = [
    Reference(
        gradstep.Yogi,
        gradstep.yogi,
        yogi,
        extra=[
            {},
            {"lr": 0.05, "betas": (0.8, 0.9), "eps": 0.01, "weight_decay": 0.1, "maximize": True},
        ],
        oracle=oracle,
    ),
]
