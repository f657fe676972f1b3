"""Schedule-Free SGD and AdamW."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def float32(x: float) -> float:
    """A number as a checkpoint holds it."""
    return float(numpy.float32(x))


def schedule_free(
    w: Array,
    directions: Any,
    gradients: Iterable[Array | None],
    lr: float,
    beta: float,
    warmup_steps: float,
    r: float,
    power: float,
) -> Iterator[Array]:
    """Defazio et al. 2024, equations 4 to 6, which keep x itself; directions as ``(g, y, t)``."""
    beta = w.dtype.type(beta)
    x = z = w
    t, total, largest = 0, 0.0, 0.0
    for g in gradients:
        if g is not None:
            t += 1
            rate = lr * min(1.0, t / warmup_steps) if warmup_steps else lr
            largest = float32(max(largest, rate))
            weight = t**r * largest**power
            total = float32(total + weight)
            c = w.dtype.type(weight / total)
            z = z - rate * directions(g, w, t)
            x = (1 - c) * x + c * z
            w = (1 - beta) * z + beta * x
        yield w


def sgd_schedule_free(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1.0,
    momentum: float = 0.9,
    warmup_steps: float = 0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """With the gradient itself as the direction."""

    def direction(g: Array, y: Array, t: int) -> Array:
        return g + weight_decay * y

    rest = (lr, momentum, warmup_steps, r, weight_lr_power)
    return schedule_free(w, direction, gradients, *rest)


def adamw_schedule_free(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 2.5e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    warmup_steps: float = 0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Algorithm 1."""
    v = 0 * w
    beta2 = w.dtype.type(betas[1])

    def direction(g: Array, y: Array, t: int) -> Array:
        nonlocal v
        v = beta2 * v + (1 - beta2) * g**2
        return g / (numpy.sqrt(v / (1 - beta2**t)) + eps) + weight_decay * y

    return schedule_free(w, direction, gradients, lr, betas[0], warmup_steps, r, weight_lr_power)


def sgd_oracle(params: Any, options: dict[str, Any]) -> Any:
    from schedulefree import SGDScheduleFree

    optimizer = SGDScheduleFree(params, **{"lr": 1.0, **options})
    optimizer.train()
    return optimizer


def adamw_oracle(params: Any, options: dict[str, Any]) -> Any:
    from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(params, **options)
    optimizer.train()
    return optimizer


REFERENCES = [
    Reference(
        gradstep.SGDScheduleFree,
        gradstep.sgd_schedule_free,
        sgd_schedule_free,
        extra=[
            {"lr": 0.1},
            {
                "lr": 0.1,
                "momentum": 0.75,
                "warmup_steps": 8,
                "r": 0.5,
                "weight_lr_power": 1.0,
                "weight_decay": 0.1,
                "maximize": True,
            },
        ],
        oracle=sgd_oracle,
    ),
    Reference(
        gradstep.AdamWScheduleFree,
        gradstep.adamw_schedule_free,
        adamw_schedule_free,
        extra=[
            {},
            {
                "lr": 0.02,
                "betas": (0.75, 0.9),
                "warmup_steps": 8,
                "r": 1.0,
                "weight_decay": 0.1,
                "maximize": True,
            },
        ],
        oracle=adamw_oracle,
    ),
]
