"""ACProp."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def acprop(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-16,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Zhuang et al. 2021, algorithm 2."""
    m, s, t = 0 * w, 0 * w, 0
    beta1, beta2 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            t += 1
            root = numpy.sqrt(s / (1 - beta2 ** (t - 1))) if t > 1 else 0 * w + 1
            u = g / (root + w.dtype.type(eps))
            s = beta2 * s + (1 - beta2) * (g - m) ** 2 + w.dtype.type(eps)
            m = beta1 * m + (1 - beta1) * g
            w = w - lr * (u + weight_decay * w)
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    import optax

    from reference_optax import InOptax

    beta1, beta2 = options.get("betas", (0.9, 0.999))
    eps = options.get("eps", 1e-16)
    scale = optax.contrib.scale_by_acprop(beta1, beta2, eps, eps)
    decay = optax.add_decayed_weights(options.get("weight_decay", 0.0))
    return InOptax(params, optax.chain(scale, decay, optax.scale(-options.get("lr", 1e-3))))


REFERENCES = [
    Reference(
        gradstep.ACProp,
        gradstep.acprop,
        acprop,
        extra=[
            {"eps": 1e-4},
            {"lr": 0.01, "betas": (0.75, 0.9), "eps": 0.01, "weight_decay": 0.1},
        ],
        oracle=oracle,
    ),
]
