"""AdEMAMix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def ademamix(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
    alpha: float = 2.0,
    alpha_warmup: float = 0.0,
    beta3_warmup: float = 0.0,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Pagliardini et al. 2024, algorithm 1 and equations 1 and 2 for the warm-ups."""
    fast, slow, v, t = 0 * w, 0 * w, 0 * w, 0
    beta1, beta2, beta3 = (w.dtype.type(b) for b in betas)

    def half_life(beta: Array) -> Array:
        return numpy.log(w.dtype.type(0.5)) / numpy.log(beta)

    for g in gradients:
        if g is not None:
            t += 1
            share, slowest = alpha, beta3
            if t < alpha_warmup:
                share = alpha * t / alpha_warmup
            if t < beta3_warmup:
                part = t / w.dtype.type(beta3_warmup)
                life = (1 - part) * half_life(beta1) + part * half_life(beta3)
                slowest = w.dtype.type(0.5) ** (1 / life)
            fast = beta1 * fast + (1 - beta1) * g
            slow = slowest * slow + (1 - slowest) * g
            v = beta2 * v + (1 - beta2) * g**2
            d = fast / (1 - beta1**t) + share * slow
            w = w - lr * (d / (numpy.sqrt(v / (1 - beta2**t)) + eps) + weight_decay * w)
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import AdEMAMix

    steps = options.pop("alpha_warmup", None)
    assert options.pop("beta3_warmup", None) == steps  # they have one for both
    more = {"t_alpha_beta3": steps, "weight_decouple": True}
    return AdEMAMix(params, **{"alpha": 2.0, **more, **options})


REFERENCES = [
    Reference(
        gradstep.AdEMAMix,
        gradstep.ademamix,
        ademamix,
        extra=[
            {},
            {
                "lr": 0.01,
                "betas": (0.8, 0.99, 0.999),
                "alpha": 5.0,
                "alpha_warmup": 20,
                "beta3_warmup": 20,
                "weight_decay": 0.1,
                "maximize": True,
            },
        ],
        oracle=oracle,
    ),
]
