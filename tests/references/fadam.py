"""FAdam."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def fadam(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    clip: float = 1.0,
    p: float = 0.5,
    eps: float = 1e-8,
    eps2: float = 0.01,
    weight_decay: float = 0.1,
) -> Iterator[Array]:
    """Hwang 2024, algorithm 1."""
    m, fim, t = 0 * w, 0 * w, 0

    def size(x: Array) -> Any:
        return numpy.sqrt(numpy.mean(x**2))

    def clipped(x: Array) -> Array:
        return x / max(1, size(x) / clip)

    for g in gradients:
        if g is not None:
            t += 1
            kept = w.dtype.type(betas[1] * (1 - betas[1] ** (t - 1)) / (1 - betas[1] ** t))
            fim = kept * fim + (1 - kept) * g**2
            least = min(eps, eps2 * size(g)) if size(g) else eps
            base = fim ** w.dtype.type(p) + w.dtype.type(least) ** w.dtype.type(2 * p)
            m = betas[0] * m + (1 - betas[0]) * clipped(g / base)
            w = w - lr * (m + weight_decay * clipped(w / base))
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    import torch
    from pytorch_optimizer import FAdam

    given = {("eps_2" if n == "eps2" else n): v for n, v in options.items()}
    return FAdam(params, momentum_dtype=torch.float64, fim_dtype=torch.float64, **given)


REFERENCES = [
    Reference(
        gradstep.FAdam,
        gradstep.fadam,
        fadam,
        extra=[
            {},
            {
                "lr": 0.01,
                "betas": (0.75, 0.9),
                "clip": 0.5,
                "p": 0.25,
                "eps": 0.01,
                "weight_decay": 0.5,
            },
        ],
        takes_complex=False,
        elementwise=False,
        oracle=oracle,
    ),
]
