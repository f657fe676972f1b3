"""AccSGD."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import gradstep
from reference_row import Array, Reference


def accsgd(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    kappa: float = 1000.0,
    xi: float = 10.0,
    constant: float = 0.7,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Kidambi et al. 2018, algorithm 3."""
    point = w
    alpha = 1 - xi * constant**2 / kappa
    share = constant / (constant + (1 - alpha))
    for g in gradients:
        if g is not None:
            w = w - lr * w.dtype.type(weight_decay) * w
            far = w - w.dtype.type(lr * kappa / constant) * g
            point = w.dtype.type(alpha) * point + w.dtype.type(1 - alpha) * far
            w = w.dtype.type(share) * (w - lr * g) + w.dtype.type(1 - share) * point
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import AccSGD

    return AccSGD(params, **options)


REFERENCES = [
    Reference(
        gradstep.AccSGD,
        gradstep.accsgd,
        accsgd,
        extra=[{}, {"lr": 0.01, "kappa": 100.0, "xi": 5.0, "constant": 0.5}],
        oracle=oracle,
    ),
]
