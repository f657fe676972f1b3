"""SGDW."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import gradstep
from reference_row import Array, Reference


def sgdw(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-2,
    momentum: float = 0.9,
    weight_decay: float = 1e-2,
    nesterov: bool = False,
) -> Iterator[Array]:
    """Loshchilov & Hutter 2017, algorithm 1, with all of the step scaled by the learning rate."""
    m = 0 * w
    for g in gradients:
        if g is not None:
            m = momentum * m + g
            w = w - lr * ((g + momentum * m if nesterov else m) + weight_decay * w)
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import SGDW

    return SGDW(params, **{"momentum": 0.9, "weight_decay": 1e-2, "lr": 1e-2, **options})


REFERENCES = [
    Reference(
        gradstep.SGDW,
        gradstep.sgdw,
        sgdw,
        extra=[
            {},
            {"lr": 0.1, "weight_decay": 0.1, "nesterov": True, "momentum": 0.5, "maximize": True},
        ],
        oracle=oracle,
    ),
]
