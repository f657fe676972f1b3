"""AggMo."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import gradstep
from reference_row import Array, Reference


def aggmo(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-2,
    betas: tuple[float, ...] = (0.0, 0.9, 0.99),
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Lucas et al. 2018, equation 2."""
    velocities = [0 * w for _ in betas]
    for g in gradients:
        if g is not None:
            g = g + weight_decay * w
            velocities = [beta * v - g for beta, v in zip(betas, velocities, strict=True)]
            w = w + lr / len(betas) * sum(velocities)
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from torch_optimizer import AggMo

    return AggMo(params, **{"lr": 1e-2, **options})


REFERENCES = [
    Reference(
        gradstep.AggMo,
        gradstep.aggmo,
        aggmo,
        extra=[
            {},
            {"lr": 0.05, "betas": (0.5, 0.8, 0.9), "weight_decay": 0.1, "maximize": True},
        ],
        oracle=oracle,
    ),
]
