"""Simplified AdEMAMix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def simplified_ademamix(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.99, 0.95),
    alpha: float = 0.0,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Morwani et al. 2025, algorithm 2."""
    m, v, t = 0 * w, 0 * w, 0
    beta1, beta2 = (w.dtype.type(beta) for beta in betas)
    for g in gradients:
        if g is not None:
            t += 1
            m = beta1 * m + g
            v = beta2 * v + (1 - beta2) * g**2
            update = (alpha * g + m) / (numpy.sqrt(v / (1 - beta2**t)) + eps)
            w = w - lr * (update + weight_decay * w)
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    import optax

    from reference_optax import InOptax

    beta1, beta2 = options.get("betas", (0.99, 0.95))
    rule = optax.contrib.simplified_ademamix(
        options.get("lr", 1e-4),
        beta1,
        beta2,
        options.get("alpha", 0.0),
        options.get("eps", 1e-8),
        weight_decay=options.get("weight_decay", 0.0),
    )
    return InOptax(params, rule)


REFERENCES = [
    Reference(
        gradstep.SimplifiedAdEMAMix,
        gradstep.simplified_ademamix,
        simplified_ademamix,
        extra=[
            {},
            {"lr": 0.01, "betas": (0.8, 0.9), "alpha": 3.0, "eps": 0.01, "weight_decay": 0.1},
        ],
        oracle=oracle,
    ),
]
