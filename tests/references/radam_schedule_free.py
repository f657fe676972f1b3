"""Schedule-Free RAdam."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def radam_schedule_free(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 2.5e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
    weight_decay: float = 0.0,
    silent_sgd_phase: bool = True,
) -> Iterator[Array]:
    """Defazio et al. 2024, equations 4 to 6, x itself being kept; the rate of Liu et al. 2019."""
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    x = z = w
    v, t, total, largest = 0 * w, 0, 0.0, 0.0
    longest = 2 / (1 - betas[1]) - 1
    for g in gradients:
        if g is not None:
            t += 1
            kept = betas[1] ** t
            length = longest - 2 * t * kept / (1 - kept)
            v = beta2 * v + (1 - beta2) * g**2
            if length > 4:
                over = (longest - 4) * (longest - 2) * length
                rate = lr * ((length - 4) * (length - 2) * longest / over) ** 0.5
                g = g / (numpy.sqrt(v / (1 - beta2**t)) + eps)
            else:
                rate = 0.0 if silent_sgd_phase else lr
            rate = w.dtype.type(rate)
            g = g + weight_decay * w
            largest = float(numpy.float32(max(largest, float(rate))))
            weight = t**r * largest**weight_lr_power
            total = float(numpy.float32(total + weight))
            c = w.dtype.type(weight / total if total else 0.0)
            z = z - rate * g
            x = (1 - c) * x + c * z
            w = (1 - beta1) * z + beta1 * x
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from schedulefree import RAdamScheduleFree

    optimizer = RAdamScheduleFree(params, **options)
    optimizer.train()
    return optimizer


REFERENCES = [
    Reference(
        gradstep.RAdamScheduleFree,
        gradstep.radam_schedule_free,
        radam_schedule_free,
        extra=[
            {},
            {
                "lr": 0.02,
                "betas": (0.75, 0.9),
                "r": 1.0,
                "weight_decay": 0.1,
                "silent_sgd_phase": False,
            },
        ],
        oracle=oracle,
    ),
]
