"""AdaSmooth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

import gradstep
from reference_row import Array, Reference


def adasmooth(
    w: Array,
    gradients: Iterable[Array | None],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.5, 0.99),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
) -> Iterator[Array]:
    """Lu 2022, algorithm 1, with one period for all steps and eps in the ratio."""
    v, moved, walked = 0 * w, 0 * w, 0 * w
    rho1, rho2 = (w.dtype.type(b) for b in betas)
    for g in gradients:
        if g is not None:
            g = g + weight_decay * w
            e = numpy.abs(moved) / (walked + eps)
            c = (rho2 - rho1) * e + (1 - rho2)
            v = c**2 * g**2 + (1 - c**2) * v
            delta = -lr / numpy.sqrt(v + eps) * g
            moved, walked = moved + delta, walked + numpy.abs(delta)
            w = w + delta
        yield w


def oracle(params: Any, options: dict[str, Any]) -> Any:
    from pytorch_optimizer import AdaSmooth

    given = dict(options)
    decay = given.pop("weight_decay", 0.0)
    optimizer = AdaSmooth(params, **given)
    held = list(params)

    def before(*_: Any) -> None:  # theirs shrinks the weight instead
        for p in held:
            if p.grad is not None:
                p.grad = p.grad + decay * p.detach()

    optimizer.register_step_pre_hook(before)
    return optimizer


REFERENCES = [
    Reference(
        gradstep.AdaSmooth,
        gradstep.adasmooth,
        adasmooth,
        extra=[
            {},
            {"lr": 0.02, "betas": (0.25, 0.9), "eps": 0.01, "weight_decay": 0.1, "maximize": True},
        ],
        oracle=oracle,
    ),
]
