"""PID."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import gradstep
from reference_row import Array, Reference


def pid(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    momentum: float = 0.9,
    dampening: float = 0.0,
    derivative: float = 10.0,
    integral: float = 5.0,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """An et al. 2018, equation 12."""
    total, change, last = 0 * w, 0 * w, None
    for g in gradients:
        if g is not None:
            g = g + weight_decay * w
            total = momentum * total + (1 - dampening) * g
            change = momentum * change + (1 - momentum) * (g - (g if last is None else last))
            last = g
            w = w - lr * (g + integral * total + derivative * change)
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import PID

    return PID(params, **{"momentum": 0.9, **options})


REFERENCES = [
    Reference(
        gradstep.PID,
        gradstep.pid,
        pid,
        extra=[
            {},
            {"lr": 0.01, "momentum": 0.75, "dampening": 0.5, "derivative": 2.0, "integral": 1.0},
        ],
        oracle=oracle,
    ),
]
