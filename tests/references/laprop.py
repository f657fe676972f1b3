"""LaProp."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def laprop(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 4e-4,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-15,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Ziyin et al. 2020, algorithm 1, with a decay of the weight."""
    m, n, t = 0 * w, 0 * w, 0
    mu, nu = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            t += 1
            n = nu * n + (1 - nu) * g**2
            m = mu * m + (1 - mu) * g / (numpy.sqrt(n / (1 - nu**t)) + eps)
            w = w - lr * (m / (1 - mu**t) + weight_decay * w)
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from timm.optim import LaProp

    decay, lr = options.pop("weight_decay", 0.0), options.get("lr", 4e-4)
    optimizer = LaProp(params, **options)

    def before(*_: Any) -> None:  # theirs decays after the step
        for p in params:
            if p.grad is not None:
                p.data.mul_(1 - lr * decay)

    optimizer.register_step_pre_hook(before)
    return optimizer


REFERENCES = [
    Reference(
        gradstep.LaProp,
        gradstep.laprop,
        laprop,
        extra=[
            {},
            {
                "lr": 0.01,
                "betas": (0.8, 0.9),
                "eps": 1e-3,
                "weight_decay": 0.1,
                "maximize": True,
            },
        ],
        oracle=oracle,
    ),
]
