"""KATE."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def kate(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-5,
    eta: float = 1e-3,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Choudhury et al. 2024, algorithm 1, with eps beside b² and a decay of the weight."""
    b2, m2 = 0 * w, 0 * w
    for g in gradients:
        if g is not None:
            b2 = b2 + g**2
            m2 = m2 + eta * g**2 + g**2 / (b2 + eps)
            w = w - lr * (numpy.sqrt(m2) * g / (b2 + eps) + weight_decay * w)
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import Kate

    eps, eta = options.pop("eps", 1e-8), options.pop("eta", 1e-3)
    optimizer = Kate(params, delta=eta, eps=eps, **{"lr": 1e-5, **options})

    def after(*_: Any) -> None:  # theirs leaves eps in the sum
        for entry in optimizer.state.values():
            entry["b"].square_().sub_(eps).clamp_(min=0).sqrt_()

    optimizer.register_step_post_hook(after)
    return optimizer


REFERENCES = [
    Reference(
        gradstep.Kate,
        gradstep.kate,
        kate,
        extra=[
            {},
            {"lr": 0.01, "eta": 0.1, "eps": 1e-3, "weight_decay": 0.1, "maximize": True},
        ],
        oracle=oracle,
    ),
]
